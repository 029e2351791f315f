-- After pg_restore, before the service starts again: the ledger knows tables by their numbers, and pg_restore deals out new
-- ones. Without this, loads that were open would begin anew, beside the rows that they have loaded. Tables that were
-- dropped under a load stay dropped. See docs/deploy.md.
UPDATE stream_api.segments AS segment
SET table_oid = to_regclass(coalesce(upload.staging_table, upload.target_table))::oid
FROM stream_api.uploads AS upload
WHERE upload.id = segment.upload_id AND segment.table_oid IS NOT NULL
  AND to_regclass(coalesce(upload.staging_table, upload.target_table)) IS NOT NULL
  AND (upload.state IN ('uploaded', 'processing')
       OR upload.state = 'failed' AND upload.error->>'code' NOT IN ('table_missing', 'plan_changed'));
DELETE FROM stream_api.replaced;

-- What a lane asks of the ledger at the beginning and at the end of a segment's transaction, as functions: so that BEGIN
-- rides with the one and COMMIT with the other. What is not as it should be is raised, and so nothing is committed;
-- SQLSTATEs of class SA with the schema `stream_api` are ours alone. They have every name with its schema, but for that
-- of the table, which means what it means in the session.
--
-- Workers of several versions may run at once: what another version has to do otherwise gets a name of its own.

-- The fence is evaluated, and the upload's row locked, before anything is inserted. FOR SHARE is shared by the lanes of
-- a run and is in the way of every UPDATE of the row: a completion, failure, cancellation or taking waits for the
-- segments in flight, and a segment that comes later waits for it and then finds that its run or state has changed.
CREATE FUNCTION stream_api.claim_segment(of_upload uuid, of_run bigint, of_number bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM stream_api.uploads WHERE id = of_upload AND run = of_run AND state = 'processing' FOR SHARE;
    IF NOT FOUND THEN
        RAISE 'run % of upload % is over', of_run, of_upload USING ERRCODE = 'SA001', SCHEMA = 'stream_api';
    END IF;
    INSERT INTO stream_api.segments (upload_id, number) VALUES (of_upload, of_number)
    ON CONFLICT (upload_id, number) DO NOTHING;
    IF NOT FOUND THEN
        RAISE 'segment % is loaded already', of_number USING ERRCODE = 'SA002', SCHEMA = 'stream_api';
    END IF;
    -- The COPY that follows may wait for its table without end.
    PERFORM set_config('lock_timeout', '0', true);
END
$$;

-- `as_meant`: the table is still the one that the rows were meant for.
CREATE FUNCTION stream_api.record_segment(
    of_upload uuid, of_number bigint, went_into text, as_meant boolean,
    starts bigint, ends bigint, begins_on bigint, line_ends bigint,
    read bigint, inserted bigint, updated bigint, skipped bigint,
    by_code jsonb, packed bytea, packed_key text, first_few jsonb, of_file bytea
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF as_meant IS NOT TRUE THEN
        RAISE '% has just changed', went_into USING ERRCODE = 'SA004', SCHEMA = 'stream_api';
    END IF;
    UPDATE stream_api.segments AS segment
    SET table_oid = to_regclass(went_into)::oid, start_byte = starts, end_byte = ends, first_line = begins_on,
        lines = line_ends, rows_read = read, rows_inserted = inserted, rows_updated = updated, rows_skipped = skipped,
        rejected = by_code, committed_at = clock_timestamp(), rejects = packed, rejects_key = packed_key,
        first_rejects = first_few, header = of_file
    FROM stream_api.uploads AS upload
    WHERE segment.upload_id = of_upload AND segment.number = of_number AND segment.table_oid IS NULL
      AND upload.id = segment.upload_id
      AND to_regclass(coalesce(upload.staging_table, upload.target_table)) = to_regclass(went_into);
    IF NOT FOUND THEN
        RAISE '% is not the table of the upload', went_into USING ERRCODE = 'SA003', SCHEMA = 'stream_api';
    END IF;
END
$$;

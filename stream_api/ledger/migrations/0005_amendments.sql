-- What retries have said anew about an upload, in place of its manifest, which is never rewritten: dialect, options and
-- fields, each whole. Null where they have said nothing.

-- json and not jsonb: it is given back byte for byte as it was stored.
ALTER TABLE stream_api.uploads ADD COLUMN amendments json;

-- What of a segment was not loaded: named by its ledger row, so that rejects are there exactly when the row is.

ALTER TABLE stream_api.segments
    -- Few rejections lie here, in the packed form of `stream_api.load.rejects`; many in the object of this key.
    ADD COLUMN rejects       bytea,
    ADD COLUMN rejects_key   text,
    -- [{"line": …, "byteOffset": …, "column": …, "code": …, "reason": …}] of the first ten; null where there are none.
    ADD COLUMN first_rejects jsonb,
    -- The file's header with what stands before it, byte for byte; only in the segment that holds it.
    ADD COLUMN header        bytea,
    ADD CHECK (num_nonnulls(rejects, rejects_key) <= 1),
    -- They are compressed.
    ALTER COLUMN rejects SET STORAGE EXTERNAL;

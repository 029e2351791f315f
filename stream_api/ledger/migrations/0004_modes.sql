-- Loads of which all rows go into the table together, or none: mode atomic or replace, and dry runs.

ALTER TABLE stream_api.uploads
    -- As the plan says.
    ADD COLUMN mode          text NOT NULL DEFAULT 'append' CHECK (mode IN ('append', 'atomic', 'replace')),
    ADD COLUMN dry_run       boolean NOT NULL DEFAULT false,
    -- Where such a load collects its rows: its segments name this table and not the target. Null once it is completed,
    -- and of loads straight into the target.
    ADD COLUMN staging_table text;

-- Which upload has last replaced a table's content; one that was accepted before it comes too late.
CREATE TABLE stream_api.replaced (
    table_oid   oid PRIMARY KEY,
    accepted_at timestamptz NOT NULL,
    upload_id   uuid NOT NULL
);

-- What the service knows about an upload once somebody has taken it, and what of it is loaded.

CREATE TABLE stream_api.uploads (
    id            uuid PRIMARY KEY,
    dataset       text NOT NULL,
    -- As the settings or the dataset name it, ready for to_regclass().
    target_table  text NOT NULL,
    state         text NOT NULL CHECK (state IN ('uploaded', 'processing', 'completed', 'failed', 'cancelled', 'expired')),
    -- The fence: every taking raises it, and whoever acts for an earlier run finds no row.
    run           bigint NOT NULL DEFAULT 0 CHECK (run >= 0),
    -- Raised by every change of state, run or webhook: of two copies of this row it tells the later one.
    revision      bigint NOT NULL DEFAULT 0,
    -- json and not jsonb: it is given back byte for byte as it was stored.
    plan          json,
    size_bytes    bigint NOT NULL CHECK (size_bytes >= 0),
    segment_bytes bigint NOT NULL CHECK (segment_bytes > 0),
    -- {"code": …, "message": …, …} of the last failure.
    error         jsonb,
    created_at    timestamptz NOT NULL,
    started_at    timestamptz,
    ended_at      timestamptz,
    updated_at    timestamptz NOT NULL DEFAULT now(),

    -- The webhook of the last end state: this row is its outbox. All null or 0 where there is no callback_url.
    callback_url     text,
    webhook_state    text CHECK (webhook_state IN ('pending', 'delivered', 'failed')),
    -- Raised whenever a delivery is to begin anew: an end state, a request to send again. Jobs name it.
    webhook_round    bigint NOT NULL DEFAULT 0,
    -- Tries of this round, each counted before it is made.
    webhook_attempts integer NOT NULL DEFAULT 0,
    webhook_error    text,
    -- Not to be tried before.
    webhook_due      timestamptz,
    -- Of the last outcome.
    webhook_at       timestamptz
);

CREATE INDEX uploads_ended_at ON stream_api.uploads (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX uploads_open ON stream_api.uploads (updated_at) WHERE state IN ('uploaded', 'processing');
CREATE INDEX uploads_webhook_due ON stream_api.uploads (webhook_due) WHERE webhook_state = 'pending';

CREATE TABLE stream_api.segments (
    upload_id     uuid NOT NULL REFERENCES stream_api.uploads (id) ON DELETE CASCADE,
    number        bigint NOT NULL CHECK (number >= 0),
    -- Null only inside the transaction that loads the segment: the row is claimed before COPY and completed after it.
    table_oid     oid,
    start_byte    bigint CHECK (start_byte >= 0),
    end_byte      bigint,
    first_line    bigint,
    lines         bigint,
    rows_read     bigint,
    rows_inserted bigint,
    rows_updated  bigint,
    rows_skipped  bigint,
    -- {"code": count}
    rejected      jsonb NOT NULL DEFAULT '{}',
    committed_at  timestamptz,
    PRIMARY KEY (upload_id, number),
    CHECK (end_byte > start_byte),
    CHECK (table_oid IS NULL OR num_nulls(start_byte, end_byte, first_line, lines, rows_read, rows_inserted,
                                          rows_updated, rows_skipped, committed_at) = 0)
);

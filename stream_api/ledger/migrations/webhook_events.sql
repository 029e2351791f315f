-- The table of the built-in dataset. Not a numbered migration: it is created whenever it is missing.
CREATE TABLE webhook_events (
    id          uuid PRIMARY KEY,
    event_type  text NOT NULL,
    source      text NOT NULL,
    payload     jsonb NOT NULL,
    occurred_at timestamptz NOT NULL,
    amount      numeric(12, 2),
    status      text
);

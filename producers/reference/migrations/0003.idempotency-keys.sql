-- The first id of a caller's key. A row that is not confirmed may stand for a record that never reached Kafka.
-- depends: 0002.api-keys

CREATE TABLE idempotency_keys (
    tenant text NOT NULL,
    key text NOT NULL,
    notification_id uuid NOT NULL,
    body_hash bytea NOT NULL,
    accepted_at bigint NOT NULL,
    confirmed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, key)
) WITH (fillfactor = 80); -- room for the confirmation on the same page

-- rows come in by time, so a BRIN index finds the old ones for a few kB
CREATE INDEX idempotency_keys_by_age ON idempotency_keys USING brin (accepted_at);

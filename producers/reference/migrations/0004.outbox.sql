-- What the relay publishes. A writer inserts while it holds the lock of the entity's row, so for one key the order of ids
-- is the order of commits; across keys ids may become visible out of order, and the relay never keeps a high-water mark.
-- depends: 0003.idempotency-keys

CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL,
    key text NOT NULL,
    value bytea
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE FUNCTION notify_outbox() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN PERFORM pg_notify(''heliograph_outbox'', ''''); RETURN NULL; END';

CREATE TRIGGER outbox_notify AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION notify_outbox();

-- What operators had published again: a row per replay, and what it chose, so that it can go on where it was stopped.
-- The plan is written before the first record is published, the replay's row after each batch.

CREATE TABLE IF NOT EXISTS replays_raw
(
    replay_id FixedString(16),
    command LowCardinality(String) COMMENT 'replay, resend or redrive',
    topic LowCardinality(String),
    from_at DateTime64(3, 'UTC'),
    to_at DateTime64(3, 'UTC'),
    filter String,
    tenant LowCardinality(String),
    requested_by String,
    planned UInt64 COMMENT 'records chosen',
    published UInt64 COMMENT 'of them looked at so far: published, or gone',
    gone UInt64 COMMENT 'of them no longer kept by their topic',
    counts String COMMENT 'JSON: messages by what was decided about them',
    state LowCardinality(String) COMMENT 'running, stopped or finished',
    error String,
    started_at DateTime64(3, 'UTC'),
    updated_at DateTime64(3, 'UTC'),
    finished_at DateTime64(3, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY replay_id;

CREATE TABLE IF NOT EXISTS replay_items
(
    replay_id FixedString(16),
    seq UInt64,
    topic LowCardinality(String),
    partition Int32,
    offset Int64,
    tenant LowCardinality(String),
    notification_id FixedString(16) COMMENT 'zeros: the record does not decode',
    message_id FixedString(16) COMMENT 'zeros: a request',
    letter_id FixedString(16) COMMENT 'zeros: not out of the dead letters',
    channels Array(LowCardinality(String)),
    generation Int32,
    attempt Int32,
    possible_duplicate Bool,
    planned_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(planned_at)
ORDER BY (replay_id, seq)
TTL toDateTime(planned_at) + INTERVAL 90 DAY;

CREATE OR REPLACE VIEW replays AS
SELECT
    toUUID(UUIDNumToString(r.replay_id)) AS replay_id,
    r.command AS command,
    r.topic AS topic,
    nullIf(r.from_at, toDateTime64(0, 3, 'UTC')) AS from_at,
    nullIf(r.to_at, toDateTime64(0, 3, 'UTC')) AS to_at,
    r.filter AS filter,
    r.tenant AS tenant,
    r.requested_by AS requested_by,
    r.planned AS planned,
    r.published AS published,
    r.gone AS gone,
    r.counts AS counts,
    r.state AS state,
    r.error AS error,
    r.started_at AS started_at,
    r.updated_at AS updated_at,
    nullIf(r.finished_at, toDateTime64(0, 3, 'UTC')) AS finished_at
FROM replays_raw AS r FINAL;

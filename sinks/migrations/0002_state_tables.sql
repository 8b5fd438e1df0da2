-- The states, kept up to date by every insert. Only idempotent aggregates (max, min, bitwise or, sets): a row inserted twice
-- changes nothing, so there is never a sum over inserted rows.
-- The fact that decides a state is the greatest by (rank, occurred_at, event_id), a strict total order. It is kept as one
-- string that sorts by just that and carries the fact behind it: max of strings takes a third of the time of
-- argMax(tuple, tuple), and its state a fifth of the space. Rank is shifted by one, so that "no state" (-1) is the least.
-- Columns are qualified by the table's alias: an alias of the SELECT would shadow the column in GROUP BY.

CREATE TABLE IF NOT EXISTS message_states
(
    tenant LowCardinality(String),
    hour DateTime('UTC'),
    notification_id FixedString(16),
    message_id FixedString(16),
    accepted_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    channel SimpleAggregateFunction(max, LowCardinality(String)),
    lane SimpleAggregateFunction(max, LowCardinality(String)),
    template_id SimpleAggregateFunction(max, LowCardinality(String)),
    template_version SimpleAggregateFunction(max, Int32),
    latest SimpleAggregateFunction(max, String) COMMENT 'packed: rank, occurred_at, event_id, state, reason, detail',
    via SimpleAggregateFunction(max, String) COMMENT 'packed: names known, rank, occurred_at, event_id, provider, its id',
    attempts SimpleAggregateFunction(max, Int32),
    possible_duplicate SimpleAggregateFunction(max, UInt8),
    sent_at SimpleAggregateFunction(min, Nullable(DateTime64(3, 'UTC'))),
    delivered_at SimpleAggregateFunction(min, Nullable(DateTime64(3, 'UTC'))),
    retrying_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    last_event_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    -- bit n: the n-th word below was stated
    seen SimpleAggregateFunction(groupBitOr, UInt32),
    -- 16 * attempt + the n-th outcome below: what the attempts came to
    outcomes SimpleAggregateFunction(groupUniqArrayArray, Array(Int64))
)
ENGINE = AggregatingMergeTree
PARTITION BY if(hour >= '2020-01-01' AND hour < '2040-01-01', toYYYYMM(hour), 0)
ORDER BY (tenant, hour, notification_id, message_id);

CREATE MATERIALIZED VIEW IF NOT EXISTS message_states_from_events TO message_states AS
SELECT
    e.tenant AS tenant,
    e.hour AS hour,
    e.notification_id AS notification_id,
    e.message_id AS message_id,
    max(e.accepted_at) AS accepted_at,
    max(e.channel) AS channel,
    max(e.lane) AS lane,
    max(e.template_id) AS template_id,
    max(e.template_version) AS template_version,
    max(concat(
        char(e.rank + 1), reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
        e.state, '\0', e.reason, '\0', e.detail)) AS latest,
    max(concat(
        char((e.provider != '') + (e.provider_message_id != '')),
        char(e.rank + 1), reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
        e.provider, '\0', e.provider_message_id)) AS via,
    max(e.attempt) AS attempts,
    max(toUInt8(e.possible_duplicate)) AS possible_duplicate,
    min(if(e.state = 'sent', e.occurred_at, NULL)) AS sent_at,
    min(if(e.state = 'delivered', e.occurred_at, NULL)) AS delivered_at,
    max(if(e.state = 'retrying', e.occurred_at, toDateTime64(0, 3, 'UTC'))) AS retrying_at,
    max(e.occurred_at) AS last_event_at,
    groupBitOr(bitShiftLeft(
        toUInt32(1),
        indexOf(
            ['accepted', 'scheduled', 'held', 'routed', 'sending', 'unknown', 'dead_lettered', 'simulated', 'skipped',
             'suppressed', 'expired', 'cancelled', 'rejected', 'failed', 'sent', 'undelivered', 'delivered', 'bounced',
             'retrying', 'failed_over', 'opened', 'clicked', 'complained', 'unsubscribed', 'read'],
            e.state))) AS seen,
    groupUniqArrayArray(if(
        e.attempt > 0 AND e.state IN
            ('sent', 'undelivered', 'delivered', 'failed', 'rejected', 'simulated', 'skipped', 'suppressed', 'expired',
             'cancelled'),
        [16 * toInt64(e.attempt) + transform(
            e.state,
            ['failed', 'rejected', 'simulated', 'skipped', 'suppressed', 'expired', 'cancelled'],
            [2, 3, 4, 5, 6, 7, 8],
            1)],
        [])) AS outcomes
FROM delivery_events_raw AS e
WHERE e.message_id != toFixedString('', 16)
GROUP BY e.tenant, e.hour, e.notification_id, e.message_id;

-- The acceptance (from the request) and the facts about the notification as a whole.
CREATE TABLE IF NOT EXISTS notification_states
(
    tenant LowCardinality(String),
    hour DateTime('UTC'),
    notification_id FixedString(16),
    accepted_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    accepted SimpleAggregateFunction(max, UInt8),
    lane SimpleAggregateFunction(max, LowCardinality(String)),
    expires_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    send_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    latest SimpleAggregateFunction(max, String) COMMENT 'packed: rank, occurred_at, event_id, state, reason, detail',
    possible_duplicate SimpleAggregateFunction(max, UInt8),
    last_event_at SimpleAggregateFunction(max, DateTime64(3, 'UTC'))
)
ENGINE = AggregatingMergeTree
PARTITION BY if(hour >= '2020-01-01' AND hour < '2040-01-01', toYYYYMM(hour), 0)
ORDER BY (tenant, hour, notification_id);

CREATE MATERIALIZED VIEW IF NOT EXISTS notification_states_from_requests TO notification_states AS
SELECT
    r.tenant AS tenant,
    r.hour AS hour,
    r.notification_id AS notification_id,
    max(r.accepted_at) AS accepted_at,
    toUInt8(1) AS accepted,
    max(r.lane) AS lane,
    max(r.expires_at) AS expires_at,
    max(r.send_at) AS send_at,
    max(r.accepted_at) AS last_event_at
FROM requests_raw AS r
GROUP BY r.tenant, r.hour, r.notification_id;

CREATE MATERIALIZED VIEW IF NOT EXISTS notification_states_from_events TO notification_states AS
SELECT
    e.tenant AS tenant,
    e.hour AS hour,
    e.notification_id AS notification_id,
    max(e.accepted_at) AS accepted_at,
    max(e.lane) AS lane,
    max(concat(
        char(e.rank + 1), reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
        e.state, '\0', e.reason, '\0', e.detail)) AS latest,
    max(toUInt8(e.possible_duplicate)) AS possible_duplicate,
    max(e.occurred_at) AS last_event_at
FROM delivery_events_raw AS e
WHERE e.message_id = toFixedString('', 16)
GROUP BY e.tenant, e.hour, e.notification_id;

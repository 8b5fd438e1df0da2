-- What senders and the router know and nobody kept: the recipient, the category that decided, the locale, the domain, the
-- provider's code, when a wait ends, and when a row was stored. Filled in for the past where the facts have it.

ALTER TABLE requests_raw ADD COLUMN IF NOT EXISTS stored_at DateTime64(3, 'UTC');
ALTER TABLE receipts_raw ADD COLUMN IF NOT EXISTS stored_at DateTime64(3, 'UTC');
ALTER TABLE dead_letters_raw ADD COLUMN IF NOT EXISTS stored_at DateTime64(3, 'UTC');
ALTER TABLE delivery_events_raw
    ADD COLUMN IF NOT EXISTS recipient String,
    ADD COLUMN IF NOT EXISTS category LowCardinality(String),
    ADD COLUMN IF NOT EXISTS locale LowCardinality(String),
    ADD COLUMN IF NOT EXISTS domain LowCardinality(String),
    ADD COLUMN IF NOT EXISTS code LowCardinality(String),
    ADD COLUMN IF NOT EXISTS due_at DateTime64(3, 'UTC'),
    ADD COLUMN IF NOT EXISTS stored_at DateTime64(3, 'UTC');
ALTER TABLE delivery_events_raw MODIFY COLUMN version UInt128 DEFAULT bitOr(
    bitShiftLeft(toUInt128(toUnixTimestamp64Milli(occurred_at)) + possible_duplicate * 140737488355328, 64),
    cityHash64(
        channel, lane, state, rank, reason, detail, attempt, provider, provider_message_id, template_id, template_version,
        preference_version, latency_ms, correlation_id, source_topic, source_partition, source_offset, recipient, category,
        locale, domain, code, due_at));

-- A time in the question skips what is not of it. The first is an expression of the id, and the views' accepted_at is the same one:
-- what BI tools write (`accepted_at >= ...`) then skips as `hour >= ...` does.
ALTER TABLE message_states ADD INDEX IF NOT EXISTS by_accepted_at
    fromUnixTimestamp64Milli(least(toInt64(reinterpretAsUInt64(reverse(substring(notification_id, 1, 6)))), 4102444799999), 'UTC')
    TYPE minmax GRANULARITY 1;
ALTER TABLE notification_states ADD INDEX IF NOT EXISTS by_accepted_at
    fromUnixTimestamp64Milli(least(toInt64(reinterpretAsUInt64(reverse(substring(notification_id, 1, 6)))), 4102444799999), 'UTC')
    TYPE minmax GRANULARITY 1;
ALTER TABLE requests_raw ADD INDEX IF NOT EXISTS by_accepted_at accepted_at TYPE minmax GRANULARITY 1;
ALTER TABLE delivery_events_raw ADD INDEX IF NOT EXISTS by_accepted_at accepted_at TYPE minmax GRANULARITY 1;
ALTER TABLE delivery_events_raw ADD INDEX IF NOT EXISTS by_occurred_at occurred_at TYPE minmax GRANULARITY 1;
ALTER TABLE delivery_events_raw ADD INDEX IF NOT EXISTS by_doubt
    possible_duplicate OR state = 'unknown' TYPE set(2) GRANULARITY 1;
ALTER TABLE message_states MATERIALIZE INDEX by_accepted_at;
ALTER TABLE notification_states MATERIALIZE INDEX by_accepted_at;
ALTER TABLE requests_raw MATERIALIZE INDEX by_accepted_at;
ALTER TABLE delivery_events_raw MATERIALIZE INDEX by_accepted_at;
ALTER TABLE delivery_events_raw MATERIALIZE INDEX by_occurred_at;
ALTER TABLE delivery_events_raw MATERIALIZE INDEX by_doubt;

-- Empty for a message whose facts were stored before, until the statements at the end have filled them in.
ALTER TABLE message_states
    ADD COLUMN IF NOT EXISTS recipient SimpleAggregateFunction(max, String),
    ADD COLUMN IF NOT EXISTS category SimpleAggregateFunction(max, LowCardinality(String)),
    ADD COLUMN IF NOT EXISTS locale SimpleAggregateFunction(max, LowCardinality(String)),
    ADD COLUMN IF NOT EXISTS domain SimpleAggregateFunction(max, LowCardinality(String)),
    ADD COLUMN IF NOT EXISTS preference_version SimpleAggregateFunction(max, Int64),
    ADD COLUMN IF NOT EXISTS failed_over SimpleAggregateFunction(max, String)
        COMMENT 'packed, of the last fail-over: attempt, provider',
    ADD COLUMN IF NOT EXISTS last_error SimpleAggregateFunction(max, String)
        COMMENT 'packed: occurred_at, event_id, due_at, state, provider, code, detail',
    ADD COLUMN IF NOT EXISTS requested SimpleAggregateFunction(groupUniqArrayArray, Array(Int32))
        COMMENT 'attempts at which a provider was asked';
ALTER TABLE notification_states
    ADD COLUMN IF NOT EXISTS template_id SimpleAggregateFunction(max, LowCardinality(String)),
    ADD COLUMN IF NOT EXISTS recipient SimpleAggregateFunction(max, String);

ALTER TABLE message_states_from_events MODIFY QUERY
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
    -- The first proof that it was sent: a report may be the only one.
    min(if(e.state IN ('sent', 'delivered', 'undelivered'), e.occurred_at, NULL)) AS sent_at,
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
        [])) AS outcomes,
    -- A report knows the address alone.
    max(if(e.source_topic = '' AND e.provider != '', '', e.recipient)) AS recipient,
    max(e.category) AS category,
    max(e.locale) AS locale,
    max(e.domain) AS domain,
    max(e.preference_version) AS preference_version,
    max(if(
        e.state = 'failed_over',
        concat(reverse(reinterpretAsFixedString(e.attempt)), e.provider),
        '')) AS failed_over,
    max(if(
        e.state IN ('retrying', 'failed_over', 'unknown', 'failed', 'rejected', 'bounced', 'undelivered'),
        concat(
            reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
            reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.due_at))),
            e.state, '\0', e.provider, '\0', e.code, '\0', e.detail),
        '')) AS last_error,
    groupUniqArrayArray(if(
        e.provider != '' AND e.attempt > 0 AND (
            e.state IN ('sent', 'retrying', 'failed_over', 'rejected', 'failed', 'unknown')
            OR (e.state = 'bounced' AND e.latency_ms >= 0)),
        [e.attempt],
        [])) AS requested
FROM delivery_events_raw AS e
WHERE e.message_id != toFixedString('', 16)
GROUP BY e.tenant, e.hour, e.notification_id, e.message_id;

ALTER TABLE notification_states_from_requests MODIFY QUERY
SELECT
    r.tenant AS tenant,
    r.hour AS hour,
    r.notification_id AS notification_id,
    max(r.accepted_at) AS accepted_at,
    toUInt8(1) AS accepted,
    max(r.lane) AS lane,
    max(r.expires_at) AS expires_at,
    max(r.send_at) AS send_at,
    max(r.accepted_at) AS last_event_at,
    max(r.template_id) AS template_id
FROM requests_raw AS r
GROUP BY r.tenant, r.hour, r.notification_id;

ALTER TABLE notification_states_from_events MODIFY QUERY
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
    max(e.occurred_at) AS last_event_at,
    max(e.template_id) AS template_id,
    max(e.recipient) AS recipient
FROM delivery_events_raw AS e
WHERE e.message_id = toFixedString('', 16)
GROUP BY e.tenant, e.hour, e.notification_id;

-- What a profile refused, at each of its versions. No address, no name.
CREATE TABLE IF NOT EXISTS preferences_raw
(
    tenant LowCardinality(String),
    user_id String,
    profile_version Int64,
    changed_at DateTime64(3, 'UTC'),
    opted_out Array(Tuple(category String, channel String)) COMMENT 'category empty: the whole channel',
    stored_at DateTime64(3, 'UTC'),
    version UInt128 DEFAULT bitOr(
        bitShiftLeft(toUInt128(toUnixTimestamp64Milli(changed_at)), 64),
        cityHash64(opted_out))
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant, user_id, profile_version);

-- What each account has ever reported, and how it is: a row or two an account, whatever it sent.
CREATE TABLE IF NOT EXISTS account_states
(
    provider LowCardinality(String),
    channel LowCardinality(String),
    reports SimpleAggregateFunction(groupUniqArrayArray, Array(String)),
    taken_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'when it took a message at last',
    last_error SimpleAggregateFunction(max, String) COMMENT 'packed: occurred_at, event_id, code'
)
ENGINE = AggregatingMergeTree
ORDER BY (provider, channel);

CREATE MATERIALIZED VIEW IF NOT EXISTS account_states_from_events TO account_states AS
SELECT
    e.provider AS provider,
    e.channel AS channel,
    groupUniqArrayArray(if(
        e.state IN ('delivered', 'undelivered', 'opened', 'clicked', 'complained', 'unsubscribed', 'read'),
        [toString(e.state)], [])) AS reports,
    max(if(e.state = 'sent', e.occurred_at, toDateTime64(0, 3, 'UTC'))) AS taken_at,
    max(if(
        e.state IN ('retrying', 'failed_over', 'unknown', 'failed'),
        concat(reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id, e.code),
        '')) AS last_error
FROM delivery_events_raw AS e
WHERE e.provider != ''
GROUP BY e.provider, e.channel;

-- Sums of the views as they are now: the others are taken again.
CREATE OR REPLACE TABLE hour_sums
(
    tenant LowCardinality(String),
    hour DateTime('UTC'),
    touches UInt64 COMMENT 'of the states summed up',
    summed_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    accepted UInt64,
    unknown UInt64,
    dead_lettered UInt64,
    simulated UInt64,
    skipped UInt64,
    suppressed UInt64,
    expired UInt64,
    cancelled UInt64,
    rejected UInt64,
    failed UInt64,
    sent UInt64,
    undelivered UInt64,
    delivered UInt64,
    bounced UInt64,
    in_flight UInt64,
    findings UInt64 COMMENT 'statuses without a request, and conflicts',
    overdue_at Array(DateTime64(3, 'UTC')) COMMENT 'when each that is in flight is to be a finding too',
    failures Array(Tuple(
        channel String, provider String, state String, reason String, failures UInt64, last_at DateTime64(3, 'UTC'),
        example_detail String, example_notification_id UUID)),
    funnel Array(Tuple(
        channel String, lane String, template_id String, requests UInt64, alone UInt64, messages UInt64, routed UInt64,
        sent UInt64, delivered UInt64, opened UInt64, clicked UInt64, complained UInt64, unsubscribed UInt64, read UInt64,
        succeeded UInt64, unknown UInt64, simulated UInt64, failed UInt64, not_wanted UInt64, in_flight UInt64)),
    latency Array(Tuple(
        channel String, lane String, sent UInt64, sent_ms_p50_p95_p99 Array(Int64), delivered UInt64,
        delivered_ms_p50_p95_p99 Array(Int64))),
    slo Array(Tuple(
        channel String, lane String, messages UInt64, in_flight UInt64, sent_1s UInt64, sent_5s UInt64, sent_30s UInt64,
        sent_5m UInt64, sent_1h UInt64, delivered_5s UInt64, delivered_30s UInt64, delivered_5m UInt64,
        delivered_1h UInt64))
)
ENGINE = ReplacingMergeTree(summed_at)
PARTITION BY if(hour >= '2020-01-01' AND hour < '2040-01-01', toYYYYMM(hour), 0)
ORDER BY (tenant, hour);

-- What the stored facts say of the past. The aggregates are of the kind that a second time does not change.
INSERT INTO message_states
    (tenant, hour, notification_id, message_id, sent_at, preference_version, failed_over, last_error, requested)
SELECT
    e.tenant,
    e.hour,
    e.notification_id,
    e.message_id,
    min(if(e.state IN ('sent', 'delivered', 'undelivered'), e.occurred_at, NULL)),
    max(e.preference_version),
    max(if(
        e.state = 'failed_over',
        concat(reverse(reinterpretAsFixedString(e.attempt)), e.provider),
        '')),
    max(if(
        e.state IN ('retrying', 'failed_over', 'unknown', 'failed', 'rejected', 'bounced', 'undelivered'),
        concat(
            reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
            reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.due_at))),
            e.state, '\0', e.provider, '\0', e.code, '\0', e.detail),
        '')),
    groupUniqArrayArray(if(
        e.provider != '' AND e.attempt > 0 AND (
            e.state IN ('sent', 'retrying', 'failed_over', 'rejected', 'failed', 'unknown')
            OR (e.state = 'bounced' AND e.latency_ms >= 0)),
        [e.attempt],
        []))
FROM delivery_events_raw AS e
WHERE e.message_id != toFixedString('', 16)
GROUP BY e.tenant, e.hour, e.notification_id, e.message_id
SETTINGS optimize_aggregation_in_order = 1, max_partitions_per_insert_block = 0;

INSERT INTO notification_states (tenant, hour, notification_id, template_id)
SELECT r.tenant, r.hour, r.notification_id, max(r.template_id)
FROM requests_raw AS r
GROUP BY r.tenant, r.hour, r.notification_id
SETTINGS optimize_aggregation_in_order = 1, max_partitions_per_insert_block = 0;

INSERT INTO account_states (provider, channel, reports, taken_at, last_error)
SELECT
    e.provider,
    e.channel,
    groupUniqArrayArray(if(
        e.state IN ('delivered', 'undelivered', 'opened', 'clicked', 'complained', 'unsubscribed', 'read'),
        [toString(e.state)], [])),
    max(if(e.state = 'sent', e.occurred_at, toDateTime64(0, 3, 'UTC'))),
    max(if(
        e.state IN ('retrying', 'failed_over', 'unknown', 'failed'),
        concat(reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id, e.code),
        ''))
FROM delivery_events_raw AS e
WHERE e.provider != ''
GROUP BY e.provider, e.channel;

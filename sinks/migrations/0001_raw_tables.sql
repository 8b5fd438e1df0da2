-- What the sink inserts: one row per record, any number of times. A row's key is the record's identity, so a duplicate, a
-- replay or a re-cut batch collapses; `version` is a strict total order over rows that differ under one key (equal
-- versions would leave the last inserted one: an order of arrival, not of facts).
--
-- Ids are FixedString(16), most significant byte first: they sort by time, which ClickHouse's UUID does not.
-- accepted_at, hour and the partition are pure functions of the notification's id, so all rows of one notification meet
-- in one partition. Months outside 2020 to 2039 share partition 0: a made-up id must not make thousands of parts.
-- '' and 0 stand for "none" here; the views show NULL where that matters.
-- by_id lets a query on a view find a UUID without its tenant and hour (ten times as slow as with them, not a thousand).

CREATE TABLE IF NOT EXISTS requests_raw
(
    tenant LowCardinality(String),
    hour DateTime('UTC') DEFAULT toStartOfHour(accepted_at),
    notification_id FixedString(16),
    accepted_at DateTime64(3, 'UTC'),
    lane LowCardinality(String),
    category LowCardinality(String),
    template_id LowCardinality(String),
    template_version Int32,
    strategy LowCardinality(String),
    delivery LowCardinality(String),
    tags Array(String),
    source String,
    correlation_id String,
    user_id String,
    keyed Bool COMMENT 'an idempotency key was given; the key itself is not stored',
    expires_at DateTime64(3, 'UTC'),
    send_at DateTime64(3, 'UTC'),
    dry_run Bool,
    channels Array(LowCardinality(String)),
    generation Int32,
    INDEX by_id toUUID(UUIDNumToString(notification_id)) TYPE bloom_filter(0.01) GRANULARITY 1,
    -- A scheduled request comes back without send_at: the first form, with the time, wins.
    version UInt128 DEFAULT bitOr(
        bitShiftLeft(toUInt128(toUnixTimestamp64Milli(send_at)), 64),
        cityHash64(
            accepted_at, lane, category, template_id, template_version, strategy, delivery, tags, source, correlation_id,
            user_id, keyed, expires_at, dry_run, channels, generation))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY if(accepted_at >= '2020-01-01' AND accepted_at < '2040-01-01', toYYYYMM(accepted_at), 0)
ORDER BY (tenant, hour, notification_id);

CREATE TABLE IF NOT EXISTS delivery_events_raw
(
    tenant LowCardinality(String),
    hour DateTime('UTC') DEFAULT toStartOfHour(accepted_at),
    notification_id FixedString(16),
    message_id FixedString(16) COMMENT 'zeros: the fact is about the notification as a whole',
    event_id FixedString(16),
    accepted_at DateTime64(3, 'UTC'),
    channel LowCardinality(String),
    lane LowCardinality(String),
    state LowCardinality(String),
    rank Int8 COMMENT 'of schemas/reasons.yaml; -1: an event that is no state',
    reason LowCardinality(String),
    detail String,
    attempt Int32,
    provider LowCardinality(String),
    provider_message_id String,
    possible_duplicate Bool,
    template_id LowCardinality(String),
    template_version Int32,
    preference_version Int64,
    occurred_at DateTime64(3, 'UTC'),
    latency_ms Int32 COMMENT '-1: not measured',
    correlation_id String,
    source_topic LowCardinality(String),
    source_partition Int32,
    source_offset Int64,
    INDEX by_id toUUID(UUIDNumToString(notification_id)) TYPE bloom_filter(0.01) GRANULARITY 1,
    -- One fact stated twice (a stage that died between stating and committing): the flagged, then the later form wins.
    version UInt128 DEFAULT bitOr(
        bitShiftLeft(toUInt128(toUnixTimestamp64Milli(occurred_at)) + possible_duplicate * 140737488355328, 64),
        cityHash64(
            channel, lane, state, rank, reason, detail, attempt, provider, provider_message_id, template_id,
            template_version, preference_version, latency_ms, correlation_id, source_topic, source_partition,
            source_offset))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY if(accepted_at >= '2020-01-01' AND accepted_at < '2040-01-01', toYYYYMM(accepted_at), 0)
ORDER BY (tenant, hour, notification_id, message_id, event_id);

-- A receipt names no notification, so nothing about it is a function of one's id: one partition.
CREATE TABLE IF NOT EXISTS receipts_raw
(
    event_id FixedString(16),
    provider LowCardinality(String),
    provider_message_id String,
    message_id FixedString(16) COMMENT 'zeros: not known to the receiver',
    state LowCardinality(String),
    reason LowCardinality(String),
    code LowCardinality(String),
    occurred_at DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    version UInt128 DEFAULT bitOr(
        bitShiftLeft(toUInt128(toUnixTimestamp64Milli(received_at)), 64),
        cityHash64(message_id, state, reason, code, occurred_at))
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (provider, provider_message_id, event_id);

-- Records given up, whole: their bytes may hold addresses, so they go when the topic's own copies go.
CREATE TABLE IF NOT EXISTS dead_letters_raw
(
    dead_letter_id FixedString(16),
    topic LowCardinality(String),
    partition Int32,
    offset Int64,
    key String CODEC(ZSTD(1)),
    value String CODEC(ZSTD(1)),
    stage LowCardinality(String),
    reason LowCardinality(String),
    error_class LowCardinality(String),
    detail String,
    attempts Int32,
    tenant LowCardinality(String),
    notification_id FixedString(16),
    message_id FixedString(16),
    occurred_at DateTime64(3, 'UTC'),
    version UInt128 DEFAULT bitOr(
        bitShiftLeft(toUInt128(toUnixTimestamp64Milli(occurred_at)), 64),
        cityHash64(key, value, reason, error_class, detail, attempts, tenant, notification_id, message_id))
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (topic, partition, offset, dead_letter_id)
TTL toDateTime(occurred_at) + INTERVAL 30 DAY;

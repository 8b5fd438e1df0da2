-- What explaining needs beside the facts: generations, prices, and views over them.

-- A request that is sent again comes under the same id. The first generation is the acceptance and stays, whatever came last;
-- the others are kept beside it. Bits 64 to 111 are taken by send_at, which goes on deciding within a generation.
ALTER TABLE requests_raw MODIFY COLUMN version UInt128 DEFAULT bitOr(
    bitShiftLeft(toUInt128(127 - least(greatest(generation, 0), 127)), 112),
    bitOr(
        bitShiftLeft(toUInt128(toUnixTimestamp64Milli(send_at)), 64),
        cityHash64(
            accepted_at, lane, category, template_id, template_version, strategy, delivery, tags, source, correlation_id,
            user_id, keyed, expires_at, dry_run, channels, generation)));

CREATE TABLE IF NOT EXISTS request_generations
(
    tenant LowCardinality(String),
    hour DateTime('UTC'),
    notification_id FixedString(16),
    generation Int32,
    source String,
    correlation_id String,
    version UInt64 DEFAULT cityHash64(source, correlation_id)
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY if(hour >= '2020-01-01' AND hour < '2040-01-01', toYYYYMM(hour), 0)
ORDER BY (tenant, hour, notification_id, generation);

CREATE MATERIALIZED VIEW IF NOT EXISTS request_generations_from_requests TO request_generations AS
SELECT
    r.tenant AS tenant, r.hour AS hour, r.notification_id AS notification_id, r.generation AS generation,
    r.source AS source, r.correlation_id AS correlation_id
FROM requests_raw AS r
WHERE r.generation > 0;

-- Looked through by notification, sorted by something else.
ALTER TABLE dead_letters_raw ADD INDEX IF NOT EXISTS by_notification notification_id TYPE bloom_filter(0.01) GRANULARITY 1;

-- The sink writes what its settings say of every provider account at its start; the latest start counts.
CREATE TABLE IF NOT EXISTS provider_prices
(
    provider LowCardinality(String),
    channel LowCardinality(String),
    price_per_message Nullable(Decimal(18, 6)) COMMENT 'NULL: not configured',
    currency LowCardinality(String),
    updated_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY provider;

-- Classes of errors: what a fact says of itself, and codes of the senders' tables that mean "too fast".
CREATE OR REPLACE VIEW v_provider_scorecard AS
SELECT
    s.* EXCEPT (provider_name),
    p.price_per_message AS price_per_message,
    p.currency AS currency,
    s.sent * p.price_per_message AS cost,
    toFloat64(s.sent * p.price_per_message) / nullIf(s.delivered, 0) AS cost_per_delivered
FROM
(
    SELECT
        e.provider AS provider,
        e.channel AS channel,
        toStartOfHour(e.occurred_at) AS hour,
        countIf(
            e.state IN ('sent', 'retrying', 'rejected', 'failed', 'unknown')
            OR (e.state = 'bounced' AND e.latency_ms >= 0)) AS attempts,
        countIf(e.state = 'sent') AS sent,
        countIf(e.state = 'retrying') AS retried,
        countIf(e.state IN ('rejected', 'failed')) AS refused,
        countIf(e.state = 'unknown') AS in_doubt,
        countIf(e.state = 'delivered') AS delivered,
        countIf(e.state = 'undelivered') AS undelivered,
        countIf(e.state = 'bounced') AS bounced,
        countIf(e.state = 'complained') AS complained,
        countIf(e.possible_duplicate) AS possible_duplicates,
        round(sent / nullIf(attempts, 0), 4) AS sent_share,
        quantilesExactIf(0.5, 0.95, 0.99)(e.latency_ms, e.latency_ms >= 0) AS latency_ms_p50_p95_p99,
        if(countIf(e.latency_ms >= 0) = 0, NULL, latency_ms_p50_p95_p99[1]) AS latency_ms_p50,
        if(countIf(e.latency_ms >= 0) = 0, NULL, latency_ms_p50_p95_p99[2]) AS latency_ms_p95,
        countIf(e.state = 'failed_over') AS failed_over,
        sumMapIf(map(e.error, toUInt64(1)), e.error != '') AS errors,
        errors['throttled'] AS throttled,
        toString(e.provider) AS provider_name
    FROM
    (
        SELECT
            f.provider AS provider,
            f.channel AS channel,
            f.state AS state,
            f.occurred_at AS occurred_at,
            f.latency_ms AS latency_ms,
            f.possible_duplicate AS possible_duplicate,
            multiIf(
                f.state = 'bounced', 'recipient',
                f.state = 'rejected', 'message',
                f.state = 'unknown' OR startsWith(f.detail, 'in doubt'), 'in doubt',
                f.state = 'failed' AND f.reason = 'provider_account', 'account',
                f.state NOT IN ('retrying', 'failed_over', 'failed'), '',
                match(
                    f.detail,
                    concat(
                        '^(429|14107|20429|21611|30001|QUOTA_EXCEEDED|TooManyRequests|TooManyProviderTokenUpdates|454|',
                        '\\d{3} 4\\.7)\\b'))
                    AND NOT match(f.detail, ' at AUTH'), 'throttled',
                'transient') AS error
        FROM delivery_events_raw AS f FINAL
        WHERE f.provider != ''
    ) AS e
    GROUP BY e.provider, e.channel, toStartOfHour(e.occurred_at)
) AS s
LEFT JOIN
(
    SELECT toString(c.provider) AS provider_name, c.price_per_message AS price_per_message, c.currency AS currency
    FROM provider_prices AS c FINAL
) AS p ON p.provider_name = s.provider_name
SETTINGS do_not_merge_across_partitions_select_final = 1, join_use_nulls = 1;

-- What share of the messages that were meant to go out had been taken by the provider, and had arrived, within so many seconds
-- of acceptance (of send_at where one was given). One still on its way counts as not there.
CREATE OR REPLACE VIEW v_slo AS
SELECT
    t.tenant AS tenant,
    t.hour AS hour,
    t.channel AS channel,
    t.lane AS lane,
    count() AS messages,
    countIf(NOT t.settled) AS in_flight,
    countIf(t.sent_ms <= 1000) AS sent_1s,
    countIf(t.sent_ms <= 5000) AS sent_5s,
    countIf(t.sent_ms <= 30000) AS sent_30s,
    countIf(t.sent_ms <= 300000) AS sent_5m,
    countIf(t.sent_ms <= 3600000) AS sent_1h,
    countIf(t.delivered_ms <= 5000) AS delivered_5s,
    countIf(t.delivered_ms <= 30000) AS delivered_30s,
    countIf(t.delivered_ms <= 300000) AS delivered_5m,
    countIf(t.delivered_ms <= 3600000) AS delivered_1h,
    round(sent_5s / messages, 4) AS sent_share_5s,
    round(sent_30s / messages, 4) AS sent_share_30s,
    round(sent_5m / messages, 4) AS sent_share_5m,
    round(delivered_30s / messages, 4) AS delivered_share_30s,
    round(delivered_5m / messages, 4) AS delivered_share_5m
FROM
(
    SELECT
        m.tenant AS tenant,
        m.hour AS hour,
        m.channel AS channel,
        m.lane AS lane,
        m.settled AS settled,
        greatest(m.accepted_at, s.send_at) AS due_at,
        dateDiff('millisecond', due_at, m.sent_at) AS sent_ms,
        dateDiff('millisecond', due_at, m.delivered_at) AS delivered_ms
    FROM message_latest AS m
    LEFT JOIN
    (
        SELECT n.tenant AS tenant, n.notification_id AS notification_id, max(n.send_at) AS send_at
        FROM notification_states AS n
        WHERE n.send_at > 0
        GROUP BY n.tenant, n.notification_id
    ) AS s ON s.tenant = m.tenant AND s.notification_id = m.notification_id
    WHERE m.state NOT IN ('skipped', 'suppressed', 'cancelled', 'simulated')
) AS t
GROUP BY t.tenant, t.hour, t.channel, t.lane;

-- One row per message, and per notification that has none, with the reason in words.
CREATE OR REPLACE VIEW v_why AS
SELECT
    toUUID(UUIDNumToString(f.notification_id)) AS notification_id,
    if(f.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(f.message_id))) AS message_id,
    f.tenant AS tenant,
    f.channel AS channel,
    f.state AS state,
    f.reason AS reason,
    concat(
        transform(
            f.state,
            ['accepted', 'scheduled', 'held', 'routed', 'sending', 'unknown', 'dead_lettered', 'simulated', 'skipped',
             'suppressed', 'expired', 'cancelled', 'rejected', 'failed', 'sent', 'undelivered', 'delivered', 'bounced'],
            ['Accepted, waits for the router', 'Waits for its send_at', 'Waits for quiet hours or a digest',
             'Routed, waits for a sender', 'Being sent', 'Nobody knows whether it was sent', 'Given up by us',
             'Dry run', 'Not sent', 'Not sent', 'Not sent', 'Not sent', 'Cannot be sent', 'The provider did not take it',
             'The provider took it', 'The carrier gave up', 'The provider says it arrived',
             'Refused by the receiving side'],
            f.state),
        transform(
            f.reason,
            ['', 'in_doubt', 'undecodable', 'internal_error', 'dry_run', 'opted_out', 'no_address', 'capped',
             'quiet_hours_drop', 'suppressed_address', 'past_expiry', 'by_caller', 'unknown_template',
             'unknown_recipient', 'missing_variable', 'template_error', 'invalid_address', 'provider_rejected',
             'retries_exhausted', 'provider_account', 'carrier', 'hard_bounce', 'soft_bounce', 'invalid_number',
             'invalid_token'],
            ['', ': the answer was lost and it may go out at most once', ': the record is not what its topic holds',
             ': an error of ours', ': it was asked for as a dry run', ': the recipient has opted out', ': there is no address for this channel',
             ': the recipient has had enough for now', ': it would have arrived in quiet hours',
             ': the address is on the suppression list', ': it came past its expiry', ': the caller cancelled it',
             ': the template or its version does not exist', ': the recipient is unknown',
             ': a variable of the template is missing', ': the template could not be rendered',
             ': the address is malformed', ': the provider refuses such a message',
             ': every attempt failed', ': our account there is at fault', ': it could not be delivered', ': the address does not exist',
             ': the mailbox cannot take it now', ': the number does not exist', ': the device token is no longer valid'],
            concat(': ', f.reason)),
        if(f.detail = '', '', concat(' (', f.detail, ')')),
        if(f.attempts > 1, concat(', after ', toString(f.attempts), ' attempts'), ''),
        if(f.possible_duplicate, '; it may have arrived more than once', '')) AS why,
    f.provider AS provider,
    f.attempts AS attempts,
    f.accepted_at AS accepted_at,
    f.last_event_at AS last_event_at,
    f.hour AS hour
FROM
(
    SELECT
        m.notification_id AS notification_id, m.message_id AS message_id, m.tenant AS tenant, m.channel AS channel,
        m.state AS state, m.reason AS reason, m.detail AS detail, m.provider AS provider, m.attempts AS attempts,
        m.possible_duplicate AS possible_duplicate, m.accepted_at AS accepted_at, m.last_event_at AS last_event_at,
        m.hour AS hour
    FROM message_latest AS m
    UNION ALL
    SELECT
        n.notification_id AS notification_id, toFixedString('', 16) AS message_id, n.tenant AS tenant, '' AS channel,
        n.state AS state, n.reason AS reason, n.detail AS detail, '' AS provider, 0 AS attempts,
        n.possible_duplicate AS possible_duplicate, n.accepted_at AS accepted_at, n.last_event_at AS last_event_at,
        n.hour AS hour
    FROM notification_latest AS n
    WHERE n.messages = 0
) AS f;

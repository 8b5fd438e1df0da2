-- What the views of hours answer, kept for every hour that does not change any more, so that a question about a week does not
-- sum up a week. Never incremented: sums are taken from the states as a whole (queries/hour_sums.sql) and count only as long as
-- the states of their hour are those they were taken from. The other hours are summed up when asked, so an answer is always
-- what the views named ..._live give. A question is answered from one state of the tables (enable_shared_storage_snapshot_in_query,
-- the default since ClickHouse 25.12): otherwise an hour that changes at that moment might be counted twice, or not at all.

-- How often the states of an hour were written to, duplicates too. The number stands in the same part as what was written, and
-- grows with every insert: whoever reads one value twice has seen the same states in between. A materialized view that does
-- not name the column leaves it at 1. It is no answer to anything else.
ALTER TABLE message_states ADD COLUMN IF NOT EXISTS touches SimpleAggregateFunction(sum, UInt64) DEFAULT 1;
ALTER TABLE notification_states ADD COLUMN IF NOT EXISTS touches SimpleAggregateFunction(sum, UInt64) DEFAULT 1;

-- Summed up by hour within each part, so that asking for all hours reads no states.
ALTER TABLE message_states MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild';
ALTER TABLE notification_states MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild';
ALTER TABLE message_states ADD PROJECTION IF NOT EXISTS touched (SELECT tenant, hour, sum(touches) GROUP BY tenant, hour);
ALTER TABLE notification_states ADD PROJECTION IF NOT EXISTS touched (SELECT tenant, hour, sum(touches) GROUP BY tenant, hour);
ALTER TABLE message_states MATERIALIZE PROJECTION touched;
ALTER TABLE notification_states MATERIALIZE PROJECTION touched;

-- One row per hour with all its groups in arrays: a row is stored whole or not at all, and no group outlives its hour's row.
CREATE TABLE IF NOT EXISTS hour_sums
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
        channel String, lane String, template_id String, messages UInt64, routed UInt64, sent UInt64, delivered UInt64,
        opened UInt64, clicked UInt64, complained UInt64, unsubscribed UInt64, read UInt64, failed UInt64,
        not_wanted UInt64, in_flight UInt64)),
    latency Array(Tuple(
        channel String, lane String, sent UInt64, sent_ms_p50_p95_p99 Array(Int64), delivered UInt64,
        delivered_ms_p50_p95_p99 Array(Int64))),
    slo Array(Tuple(
        channel String, lane String, messages UInt64, in_flight UInt64, sent_1s UInt64, sent_5s UInt64, sent_30s UInt64,
        sent_5m UInt64, sent_1h UInt64, delivered_5s UInt64, delivered_30s UInt64, delivered_5m UInt64,
        delivered_1h UInt64, sent_share_5s Float64, sent_share_30s Float64, sent_share_5m Float64,
        delivered_share_30s Float64, delivered_share_5m Float64))
)
ENGINE = ReplacingMergeTree(summed_at)
PARTITION BY if(hour >= '2020-01-01' AND hour < '2040-01-01', toYYYYMM(hour), 0)
ORDER BY (tenant, hour);

-- The hours whose sums are missing or of other states than there are now (0 touches: none are left).
CREATE OR REPLACE VIEW hours_changed AS
SELECT t.tenant AS tenant, t.hour AS hour, sum(t.touches) AS touches
FROM
(
    SELECT m.tenant AS tenant, m.hour AS hour, sum(m.touches) AS touches, toUInt64(0) AS summed
    FROM message_states AS m
    GROUP BY m.tenant, m.hour
    UNION ALL
    SELECT n.tenant AS tenant, n.hour AS hour, sum(n.touches) AS touches, toUInt64(0) AS summed
    FROM notification_states AS n
    GROUP BY n.tenant, n.hour
    UNION ALL
    SELECT h.tenant AS tenant, h.hour AS hour, toUInt64(0) AS touches, h.touches AS summed
    FROM hour_sums AS h FINAL
) AS t
GROUP BY t.tenant, t.hour
HAVING sum(t.touches) != sum(t.summed);

-- The definitions as they were, under other names.

CREATE OR REPLACE VIEW v_accounting_live AS
SELECT
    n.tenant AS tenant,
    n.hour AS hour,
    countIf(n.accepted) AS accepted,
    countIf(n.accepted AND n.state = 'unknown') AS unknown,
    countIf(n.accepted AND n.state = 'dead_lettered') AS dead_lettered,
    countIf(n.accepted AND n.state = 'simulated') AS simulated,
    countIf(n.accepted AND n.state = 'skipped') AS skipped,
    countIf(n.accepted AND n.state = 'suppressed') AS suppressed,
    countIf(n.accepted AND n.state = 'expired') AS expired,
    countIf(n.accepted AND n.state = 'cancelled') AS cancelled,
    countIf(n.accepted AND n.state = 'rejected') AS rejected,
    countIf(n.accepted AND n.state = 'failed') AS failed,
    countIf(n.accepted AND n.state = 'sent') AS sent,
    countIf(n.accepted AND n.state = 'undelivered') AS undelivered,
    countIf(n.accepted AND n.state = 'delivered') AS delivered,
    countIf(n.accepted AND n.state = 'bounced') AS bounced,
    countIf(n.accepted AND NOT n.settled) AS in_flight,
    countIf(n.accepted AND NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15))
        + countIf(NOT n.accepted)
        + sum(n.conflicts) AS residual
FROM notification_latest AS n
GROUP BY n.tenant, n.hour;

CREATE OR REPLACE VIEW v_residual_live AS
SELECT
    n.tenant AS tenant,
    n.hour AS hour,
    toUUID(UUIDNumToString(n.notification_id)) AS notification_id,
    multiIf(
        NOT n.accepted, 'a status without a request',
        n.conflicts > 0, 'conflicting outcomes of one attempt',
        'in flight for longer than it should be') AS finding,
    n.state AS state,
    n.due_at AS due_at,
    n.last_event_at AS last_event_at
FROM notification_latest AS n
WHERE NOT n.accepted OR n.conflicts > 0 OR (NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15));

CREATE OR REPLACE VIEW v_failures_live AS
SELECT
    f.tenant AS tenant,
    f.hour AS hour,
    f.channel AS channel,
    f.provider AS provider,
    f.state AS state,
    f.reason AS reason,
    count() AS failures,
    max(f.last_event_at) AS last_at,
    argMax(f.detail, (f.last_event_at, f.notification_id, f.message_id)) AS example_detail,
    toUUID(UUIDNumToString(argMax(f.notification_id, (f.last_event_at, f.notification_id, f.message_id))))
        AS example_notification_id
FROM
(
    SELECT
        m.tenant AS tenant, m.hour AS hour, m.channel AS channel, m.provider AS provider, m.state AS state,
        m.reason AS reason, m.detail AS detail, m.last_event_at AS last_event_at, m.notification_id AS notification_id,
        m.message_id AS message_id
    FROM message_latest AS m
    WHERE m.state IN ('unknown', 'dead_lettered', 'rejected', 'failed', 'undelivered', 'bounced')
    UNION ALL
    SELECT
        n.tenant AS tenant, n.hour AS hour, '' AS channel, '' AS provider, n.state AS state, n.reason AS reason,
        n.detail AS detail, n.last_event_at AS last_event_at, n.notification_id AS notification_id,
        toFixedString('', 16) AS message_id
    FROM notification_latest AS n
    WHERE n.messages = 0 AND n.state IN ('dead_lettered', 'rejected')
) AS f
GROUP BY f.tenant, f.hour, f.channel, f.provider, f.state, f.reason;

CREATE OR REPLACE VIEW v_funnel_live AS
SELECT
    m.tenant AS tenant,
    m.hour AS hour,
    m.channel AS channel,
    m.lane AS lane,
    m.template_id AS template_id,
    count() AS messages,
    countIf(bitTest(m.seen, 4)) AS routed,
    countIf(bitTestAny(m.seen, 15, 16, 17)) AS sent,
    countIf(bitTest(m.seen, 17)) AS delivered,
    countIf(bitTest(m.seen, 21)) AS opened,
    countIf(bitTest(m.seen, 22)) AS clicked,
    countIf(bitTest(m.seen, 23)) AS complained,
    countIf(bitTest(m.seen, 24)) AS unsubscribed,
    countIf(bitTest(m.seen, 25)) AS read,
    countIf(m.state IN ('undelivered', 'bounced', 'rejected', 'failed', 'dead_lettered')) AS failed,
    countIf(m.state IN ('skipped', 'suppressed', 'expired', 'cancelled')) AS not_wanted,
    countIf(NOT m.settled) AS in_flight
FROM message_latest AS m
GROUP BY m.tenant, m.hour, m.channel, m.lane, m.template_id;

CREATE OR REPLACE VIEW v_latency_live AS
SELECT
    m.tenant AS tenant,
    m.hour AS hour,
    m.channel AS channel,
    m.lane AS lane,
    countIf(m.sent_at IS NOT NULL) AS sent,
    quantilesExactIf(0.5, 0.95, 0.99)(
        dateDiff('millisecond', greatest(m.accepted_at, s.send_at), assumeNotNull(m.sent_at)), m.sent_at IS NOT NULL)
        AS sent_ms_p50_p95_p99,
    countIf(m.delivered_at IS NOT NULL) AS delivered,
    quantilesExactIf(0.5, 0.95, 0.99)(
        dateDiff('millisecond', greatest(m.accepted_at, s.send_at), assumeNotNull(m.delivered_at)),
        m.delivered_at IS NOT NULL) AS delivered_ms_p50_p95_p99
FROM message_latest AS m
-- Few notifications are scheduled: the joined side is small.
LEFT JOIN
(
    SELECT n.tenant AS tenant, n.notification_id AS notification_id, max(n.send_at) AS send_at
    FROM notification_states AS n
    WHERE n.send_at > 0
    GROUP BY n.tenant, n.notification_id
) AS s ON s.tenant = m.tenant AND s.notification_id = m.notification_id
GROUP BY m.tenant, m.hour, m.channel, m.lane;

CREATE OR REPLACE VIEW v_slo_live AS
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

-- The answers: kept sums where they hold, the definition elsewhere.
CREATE OR REPLACE VIEW v_accounting AS
SELECT *
FROM v_accounting_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, h.accepted AS accepted, h.unknown AS unknown,
    h.dead_lettered AS dead_lettered, h.simulated AS simulated, h.skipped AS skipped, h.suppressed AS suppressed,
    h.expired AS expired, h.cancelled AS cancelled, h.rejected AS rejected, h.failed AS failed, h.sent AS sent,
    h.undelivered AS undelivered, h.delivered AS delivered, h.bounced AS bounced, h.in_flight AS in_flight,
    h.findings + arrayCount(at -> now64(3, 'UTC') > at, h.overdue_at) AS residual
FROM hour_sums AS h FINAL
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- Findings are not kept: there should be none. What is kept tells which hours need no look.
CREATE OR REPLACE VIEW v_residual AS
SELECT *
FROM v_residual_live AS l
WHERE (l.tenant, l.hour) IN
    (
        SELECT c.tenant AS tenant, c.hour AS hour FROM hours_changed AS c
        UNION ALL
        SELECT h.tenant AS tenant, h.hour AS hour
        FROM hour_sums AS h FINAL
        WHERE h.findings > 0 OR arrayExists(at -> now64(3, 'UTC') > at, h.overdue_at)
    );

CREATE OR REPLACE VIEW v_failures AS
SELECT *
FROM v_failures_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.provider AS provider, g.state AS state,
    g.reason AS reason, g.failures AS failures, g.last_at AS last_at, g.example_detail AS example_detail,
    g.example_notification_id AS example_notification_id
FROM hour_sums AS h FINAL
ARRAY JOIN h.failures AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW v_funnel AS
SELECT *
FROM v_funnel_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.template_id AS template_id,
    g.messages AS messages, g.routed AS routed, g.sent AS sent, g.delivered AS delivered, g.opened AS opened,
    g.clicked AS clicked, g.complained AS complained, g.unsubscribed AS unsubscribed, g.read AS read,
    g.failed AS failed, g.not_wanted AS not_wanted, g.in_flight AS in_flight
FROM hour_sums AS h FINAL
ARRAY JOIN h.funnel AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW v_latency AS
SELECT *
FROM v_latency_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.sent AS sent,
    g.sent_ms_p50_p95_p99 AS sent_ms_p50_p95_p99, g.delivered AS delivered,
    g.delivered_ms_p50_p95_p99 AS delivered_ms_p50_p95_p99
FROM hour_sums AS h FINAL
ARRAY JOIN h.latency AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW v_slo AS
SELECT *
FROM v_slo_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.messages AS messages,
    g.in_flight AS in_flight, g.sent_1s AS sent_1s, g.sent_5s AS sent_5s, g.sent_30s AS sent_30s,
    g.sent_5m AS sent_5m, g.sent_1h AS sent_1h, g.delivered_5s AS delivered_5s, g.delivered_30s AS delivered_30s,
    g.delivered_5m AS delivered_5m, g.delivered_1h AS delivered_1h, g.sent_share_5s AS sent_share_5s,
    g.sent_share_30s AS sent_share_30s, g.sent_share_5m AS sent_share_5m,
    g.delivered_share_30s AS delivered_share_30s, g.delivered_share_5m AS delivered_share_5m
FROM hour_sums AS h FINAL
ARRAY JOIN h.slo AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

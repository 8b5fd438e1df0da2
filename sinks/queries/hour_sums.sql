-- Sums some hours up. `touches` must have been read before this is sent: what is written in between is summed up or not, and either
-- way the hour then has other touches, so that the row does not count.
-- Parameters: tenants, hours (s since 1970), touches (three lists of one length).
INSERT INTO hour_sums
    (
        tenant, hour, touches, accepted, unknown, dead_lettered, simulated, skipped, suppressed, expired, cancelled, rejected,
        failed, sent, undelivered, delivered, bounced, in_flight, findings, overdue_at, failures, funnel, latency, slo
    )
WITH wanted AS
    (
        SELECT each.1 AS tenant, toDateTime(each.2, 'UTC') AS hour, each.3 AS touches
        FROM
        (
            SELECT arrayJoin(
                arrayZip({tenants:Array(String)}, {hours:Array(UInt32)}, {touches:Array(UInt64)})) AS each
        )
    )
SELECT
    w.tenant, w.hour, w.touches, a.accepted, a.unknown, a.dead_lettered, a.simulated, a.skipped, a.suppressed, a.expired,
    a.cancelled, a.rejected, a.failed, a.sent, a.undelivered, a.delivered, a.bounced, a.in_flight, a.findings,
    a.overdue_at, f.groups, u.groups, l.groups, s.groups
FROM wanted AS w
LEFT JOIN
(
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
        countIf(NOT n.accepted) + sum(n.conflicts) AS findings,
        groupArrayIf(addMinutes(n.due_at, 15), n.accepted AND NOT n.settled) AS overdue_at
    FROM notification_latest AS n
    WHERE (n.tenant, n.hour) IN (SELECT tenant, hour FROM wanted)
    GROUP BY n.tenant, n.hour
) AS a ON a.tenant = w.tenant AND a.hour = w.hour
LEFT JOIN
(
    SELECT v.tenant AS tenant, v.hour AS hour,
        groupArray((
            v.channel, v.provider, v.state, v.reason, v.failures, v.last_at, v.example_detail,
            v.example_notification_id)) AS groups
    FROM v_failures_live AS v
    WHERE (v.tenant, v.hour) IN (SELECT tenant, hour FROM wanted)
    GROUP BY v.tenant, v.hour
) AS f ON f.tenant = w.tenant AND f.hour = w.hour
LEFT JOIN
(
    SELECT v.tenant AS tenant, v.hour AS hour,
        groupArray((
            v.channel, v.lane, v.template_id, v.requests, v.alone, v.messages, v.routed, v.sent, v.delivered, v.opened,
            v.clicked, v.complained, v.unsubscribed, v.read, v.succeeded, v.unknown, v.simulated, v.failed,
            v.not_wanted, v.in_flight)) AS groups
    FROM v_funnel_counts AS v
    WHERE (v.tenant, v.hour) IN (SELECT tenant, hour FROM wanted)
    GROUP BY v.tenant, v.hour
) AS u ON u.tenant = w.tenant AND u.hour = w.hour
LEFT JOIN
(
    SELECT v.tenant AS tenant, v.hour AS hour,
        groupArray((
            v.channel, v.lane, v.sent, v.sent_ms_p50_p95_p99, v.delivered, v.delivered_ms_p50_p95_p99)) AS groups
    FROM v_latency_counts AS v
    WHERE (v.tenant, v.hour) IN (SELECT tenant, hour FROM wanted)
    GROUP BY v.tenant, v.hour
) AS l ON l.tenant = w.tenant AND l.hour = w.hour
LEFT JOIN
(
    SELECT v.tenant AS tenant, v.hour AS hour,
        groupArray((
            v.channel, v.lane, v.messages, v.in_flight, v.sent_1s, v.sent_5s, v.sent_30s, v.sent_5m, v.sent_1h,
            v.delivered_5s, v.delivered_30s, v.delivered_5m, v.delivered_1h)) AS groups
    FROM v_slo_counts AS v
    WHERE (v.tenant, v.hour) IN (SELECT tenant, hour FROM wanted)
    GROUP BY v.tenant, v.hour
) AS s ON s.tenant = w.tenant AND s.hour = w.hour
SETTINGS join_use_nulls = 0

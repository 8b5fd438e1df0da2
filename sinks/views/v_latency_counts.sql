-- From acceptance, or from send_at where one was given, in milliseconds; summed up when asked. [0, 0, 0] where there is none.
CREATE OR REPLACE VIEW v_latency_counts AS
SELECT
    m.tenant AS tenant,
    m.hour AS hour,
    CAST(m.channel, 'String') AS channel,
    CAST(m.lane, 'String') AS lane,
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

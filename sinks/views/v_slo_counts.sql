-- What share of the messages that were meant to go out had been taken by the provider, and had arrived, within so many seconds
-- of acceptance (of send_at where one was given). One in flight counts as not there. Summed up when asked.
CREATE OR REPLACE VIEW v_slo_counts AS
SELECT
    t.tenant AS tenant,
    t.hour AS hour,
    CAST(t.channel, 'String') AS channel,
    CAST(t.lane, 'String') AS lane,
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
    countIf(t.delivered_ms <= 3600000) AS delivered_1h
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

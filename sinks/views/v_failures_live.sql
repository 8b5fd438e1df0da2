-- What went wrong, by cause, with one notification to look at (its v_why has the words); summed up when asked.
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

-- How far requests and messages came, by tenant, hour, channel, lane and template; summed up when asked. Channel '' has the
-- requests, and what became of those that have no message; the other channels have the messages.
-- `seen` has bit n for the n-th word of the list in message_states_from_events: routed 4, sent 15, undelivered 16, ...
CREATE OR REPLACE VIEW v_funnel_counts AS
SELECT
    m.tenant AS tenant,
    m.hour AS hour,
    CAST(m.channel, 'String') AS channel,
    CAST(m.lane, 'String') AS lane,
    CAST(m.template_id, 'String') AS template_id,
    toUInt64(0) AS requests,
    toUInt64(0) AS alone,
    count() AS messages,
    countIf(bitTest(m.seen, 4)) AS routed,
    countIf(bitTestAny(m.seen, 15, 16, 17)) AS sent,
    countIf(bitTest(m.seen, 17)) AS delivered,
    countIf(bitTest(m.seen, 21)) AS opened,
    countIf(bitTest(m.seen, 22)) AS clicked,
    countIf(bitTest(m.seen, 23)) AS complained,
    countIf(bitTest(m.seen, 24)) AS unsubscribed,
    countIf(bitTest(m.seen, 25)) AS read,
    countIf(m.state IN ('sent', 'delivered')) AS succeeded,
    countIf(m.state = 'unknown') AS unknown,
    countIf(m.state = 'simulated') AS simulated,
    countIf(m.state IN ('undelivered', 'bounced', 'rejected', 'failed', 'dead_lettered')) AS failed,
    countIf(m.state IN ('skipped', 'suppressed', 'expired', 'cancelled')) AS not_wanted,
    countIf(NOT m.settled) AS in_flight
FROM message_latest AS m
GROUP BY m.tenant, m.hour, m.channel, m.lane, m.template_id
UNION ALL
SELECT
    n.tenant AS tenant,
    n.hour AS hour,
    '' AS channel,
    CAST(n.lane, 'String') AS lane,
    CAST(n.template_id, 'String') AS template_id,
    count() AS requests,
    countIf(n.messages = 0) AS alone,
    toUInt64(0) AS messages,
    toUInt64(0) AS routed,
    toUInt64(0) AS sent,
    toUInt64(0) AS delivered,
    toUInt64(0) AS opened,
    toUInt64(0) AS clicked,
    toUInt64(0) AS complained,
    toUInt64(0) AS unsubscribed,
    toUInt64(0) AS read,
    countIf(n.messages = 0 AND n.state IN ('sent', 'delivered')) AS succeeded,
    countIf(n.messages = 0 AND n.state = 'unknown') AS unknown,
    countIf(n.messages = 0 AND n.state = 'simulated') AS simulated,
    countIf(n.messages = 0 AND n.state IN ('undelivered', 'bounced', 'rejected', 'failed', 'dead_lettered')) AS failed,
    countIf(n.messages = 0 AND n.state IN ('skipped', 'suppressed', 'expired', 'cancelled')) AS not_wanted,
    countIf(n.messages = 0 AND NOT n.settled) AS in_flight
FROM notification_latest AS n
WHERE n.accepted
GROUP BY n.tenant, n.hour, n.lane, n.template_id;

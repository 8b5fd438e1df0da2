-- How far messages came, by tenant, hour, channel, lane and template; summed up when asked.
-- `seen` has bit n for the n-th word of the list in message_states_from_events: routed 4, sent 15, undelivered 16, ...
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

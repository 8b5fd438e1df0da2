-- Messages that may have been sent, accepted since an hour, in the order of their ids: what their last `unknown` says, and where the
-- record of that attempt is. Parameters: since (s since 1970), provider ('' for all), after (32 hex digits of a message's id, or ''), limit.
SELECT
    lower(hex(m.message_id)) AS message_id,
    lower(hex(m.notification_id)) AS notification_id,
    m.tenant AS tenant,
    m.channel AS channel,
    m.lane AS lane,
    m.recipient AS recipient,
    e.provider AS provider,
    e.attempt AS attempt,
    e.source_topic AS source_topic,
    e.source_partition AS source_partition,
    e.source_offset AS source_offset
FROM message_latest AS m
INNER JOIN
(
    SELECT
        u.message_id AS message_id,
        argMax(toString(u.provider), (u.attempt, u.event_id)) AS provider,
        argMax(u.attempt, (u.attempt, u.event_id)) AS attempt,
        argMax(toString(u.source_topic), (u.attempt, u.event_id)) AS source_topic,
        argMax(u.source_partition, (u.attempt, u.event_id)) AS source_partition,
        argMax(u.source_offset, (u.attempt, u.event_id)) AS source_offset
    FROM delivery_events_raw AS u
    WHERE u.state = 'unknown' AND u.hour >= toDateTime({since:UInt32}, 'UTC')
    GROUP BY u.message_id
) AS e ON e.message_id = m.message_id
WHERE m.state = 'unknown'
    AND m.hour >= toDateTime({since:UInt32}, 'UTC')
    AND ({provider:String} = '' OR e.provider = {provider:String})
    AND ({after:String} = '' OR m.message_id > toFixedString(unhex({after:String}), 16))
ORDER BY m.message_id
LIMIT {limit:UInt32}

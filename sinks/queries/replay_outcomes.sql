-- What became of what a replay published, by outcome; messages, or notifications that have none. `twice` counts the messages that
-- somebody had before and has once more: the same message sent again, or of a resend another one on its channel.
-- Parameters: replay (32 hex digits), published, started (ms since 1970), resend.
WITH items AS
(
    SELECT
        i.tenant AS tenant,
        toStartOfHour(fromUnixTimestamp64Milli(
            least(toInt64(reinterpretAsUInt64(reverse(substring(i.notification_id, 1, 6)))), 4102444799999), 'UTC')) AS hour,
        i.notification_id AS notification_id, i.message_id AS message_id, i.channels AS channels
    FROM replay_items AS i FINAL
    WHERE i.replay_id = toFixedString(unhex({replay:String}), 16) AND i.seq < {published:UInt64}
        AND i.notification_id != toFixedString('', 16)
),
subjects AS
(
    SELECT
        e.notification_id AS notification_id,
        e.message_id AS message_id,
        max(e.channel) AS channel,
        countIf(e.state = 'sent' AND e.occurred_at < fromUnixTimestamp64Milli({started:Int64}, 'UTC')) AS sent_before,
        countIf(e.state = 'sent' AND e.occurred_at >= fromUnixTimestamp64Milli({started:Int64}, 'UTC')) AS sent_since,
        countIf(
            e.state IN ('failed', 'rejected', 'dead_lettered', 'expired', 'suppressed', 'skipped', 'cancelled')
            AND e.occurred_at >= fromUnixTimestamp64Milli({started:Int64}, 'UTC')) AS unsent_since,
        countIf(e.state = 'unknown' AND e.occurred_at >= fromUnixTimestamp64Milli({started:Int64}, 'UTC')) AS doubts_since,
        min(e.occurred_at) < fromUnixTimestamp64Milli({started:Int64}, 'UTC') AS old
    FROM delivery_events_raw AS e FINAL
    WHERE (e.tenant, e.hour, e.notification_id) IN (SELECT tenant, hour, notification_id FROM items)
    GROUP BY e.notification_id, e.message_id
),
chosen AS
(
    SELECT s.*
    FROM subjects AS s
    INNER JOIN
    (
        SELECT notification_id, groupUniqArray(message_id) AS messages, groupUniqArrayArray(channels) AS channels
        FROM items GROUP BY notification_id
    ) AS c ON c.notification_id = s.notification_id
    LEFT JOIN
    (
        SELECT notification_id, countIf(message_id != toFixedString('', 16) AND (NOT {resend:Bool} OR NOT old)) AS messages
        FROM subjects GROUP BY notification_id
    ) AS n ON n.notification_id = s.notification_id
    WHERE if(
        s.message_id = toFixedString('', 16),
        has(c.messages, toFixedString('', 16)) AND n.messages = 0,
        (NOT {resend:Bool} OR NOT s.old)
            AND (has(c.messages, s.message_id)
                OR has(c.messages, toFixedString('', 16)) AND (empty(c.channels) OR has(c.channels, s.channel))))
)
SELECT
    multiIf(
        sent_since > 0, 'sent',
        doubts_since > 0, 'unknown',
        sent_before > 0, 'sent_before',
        unsent_since > 0, 'failed_again',
        'on_its_way') AS outcome,
    count() AS messages,
    if(
        {resend:Bool},
        (
            SELECT sum(least(before, since))
            FROM
            (
                SELECT countIf(sent_before > 0) AS before, countIf(sent_since > 0) AS since
                FROM subjects WHERE message_id != toFixedString('', 16) GROUP BY notification_id, channel
            )
        ),
        (SELECT countIf(sent_before > 0 AND sent_since > 0) FROM chosen)) AS twice
FROM chosen
GROUP BY outcome
ORDER BY messages DESC

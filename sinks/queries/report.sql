-- What became of everything accepted from a time on: messages by channel, state and reason; channel '' are notifications
-- without messages. Parameters: tenant, since (ms since 1970).
SELECT
    channel,
    state,
    reason,
    count() AS messages,
    countIf(possible_duplicate) AS possible_duplicates,
    sum(attempts) AS attempts
FROM
(
    SELECT m.channel AS channel, m.state AS state, m.reason AS reason, m.possible_duplicate AS possible_duplicate,
        m.attempts AS attempts
    FROM message_latest AS m
    WHERE m.tenant = {tenant:String}
        AND m.hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
        AND m.accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
    UNION ALL
    SELECT '' AS channel, n.state AS state, n.reason AS reason, n.possible_duplicate AS possible_duplicate, 0 AS attempts
    FROM notification_latest AS n
    WHERE n.tenant = {tenant:String}
        AND n.hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
        AND n.accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
        AND n.messages = 0
)
GROUP BY channel, state, reason
ORDER BY channel, messages DESC, state, reason

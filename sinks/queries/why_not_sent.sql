-- Why messages did not go out, by cause, since a time. Parameters: tenant, since (ms since 1970).
SELECT w.channel AS channel, w.state AS state, w.reason AS reason, count() AS messages, any(w.why) AS example
FROM v_why AS w
WHERE w.tenant = {tenant:String}
    AND w.hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
    AND w.accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
    AND w.state NOT IN ('sent', 'delivered', 'accepted', 'scheduled', 'held', 'routed', 'sending')
GROUP BY w.channel, w.state, w.reason
ORDER BY messages DESC, channel, state, reason

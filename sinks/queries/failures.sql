-- What failed, the most frequent first. Parameters: tenant, since and until (s since 1970, whole hours; until is the last hour), limit.
SELECT
    f.channel AS channel, f.provider AS provider, f.state AS state, f.reason AS reason, sum(f.failures) AS failures,
    toUnixTimestamp64Milli(max(f.last_at)) AS last_at, argMax(f.example_detail, f.last_at) AS example_detail,
    toString(argMax(f.example_notification_id, f.last_at)) AS example_notification_id
FROM v_failures AS f
WHERE f.tenant = {tenant:String}
    AND f.hour >= toDateTime({since:UInt32}, 'UTC')
    AND f.hour <= toDateTime({until:UInt32}, 'UTC')
GROUP BY f.channel, f.provider, f.state, f.reason
ORDER BY failures DESC, channel, provider, state, reason
LIMIT {limit:UInt32}

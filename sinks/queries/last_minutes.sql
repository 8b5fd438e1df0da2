-- What happened in the last {minutes} minutes, by channel and account. Parameters: minutes.
SELECT v.channel AS channel, v.provider AS account,
    sum(v.requests) AS requests, sum(v.routed) AS routed, sum(v.attempts) AS attempts, sum(v.sent) AS sent,
    sum(v.retried) AS retried, sum(v.refused) AS refused, sum(v.unknown) AS unknown,
    max(v.latency_ms_p95) AS latency_ms_p95,
    argMaxIf(v.last_error, v.minute, v.last_error != '') AS last_error
FROM v_minutes AS v
WHERE v.minute > now('UTC') - toIntervalMinute({minutes:UInt32})
GROUP BY channel, account
ORDER BY channel, account

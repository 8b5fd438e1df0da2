-- What became of everything that was meant for one user, the newest first, in words. Parameters: tenant, user_id, since (ms since
-- 1970), limit.
SELECT w.notification_id AS notification_id, w.accepted_at AS accepted_at, w.channel AS channel, w.state AS state,
    w.reason AS reason, w.why AS why
FROM v_why AS w
WHERE w.tenant = {tenant:String}
    AND w.hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
    AND w.accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
    AND w.notification_id IN
    (
        SELECT r.notification_id
        FROM requests AS r
        WHERE r.tenant = {tenant:String}
            AND r.hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
            AND r.user_id = {user_id:String}
    )
ORDER BY w.accepted_at DESC, w.channel
LIMIT {limit:UInt32}

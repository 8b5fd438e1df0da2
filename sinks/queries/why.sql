-- Why one notification came to what it came to, in words. Parameters: tenant, hour (s since 1970), id (a UUID).
SELECT if(w.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(w.message_id))) AS message_id, w.channel AS channel,
    w.state AS state, w.reason AS reason, w.why AS why, w.provider AS provider, w.attempts AS attempts,
    w.last_event_at AS last_event_at
FROM why_latest AS w
WHERE w.tenant = {tenant:String}
    AND w.hour = toDateTime({hour:UInt32}, 'UTC')
    AND w.notification_id = UUIDStringToNum(toString({id:UUID}))
ORDER BY w.channel, w.message_id
SETTINGS max_threads = 1

-- What makes the residual of a stretch of acceptance. Parameters: tenant ('' for all), since and until (s since 1970, whole hours),
-- limit.
SELECT r.tenant AS tenant, r.hour AS hour, toString(r.notification_id) AS notification_id, r.finding AS finding,
    r.state AS state, r.due_at AS due_at, r.last_event_at AS last_event_at
FROM v_residual AS r
WHERE ({tenant:String} = '' OR r.tenant = {tenant:String})
    AND r.hour >= toDateTime({since:UInt32}, 'UTC')
    AND r.hour <= toDateTime({until:UInt32}, 'UTC')
ORDER BY r.hour, r.tenant, r.notification_id
LIMIT {limit:UInt32}

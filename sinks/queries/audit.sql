-- The hours of a stretch of acceptance that had any notification, with what became of them.
-- Parameters: tenant ('' for all), since and until (s since 1970, whole hours; until is the last hour).
SELECT a.*
FROM v_accounting AS a
WHERE ({tenant:String} = '' OR a.tenant = {tenant:String})
    AND a.hour >= toDateTime({since:UInt32}, 'UTC')
    AND a.hour <= toDateTime({until:UInt32}, 'UTC')
ORDER BY a.hour, a.tenant

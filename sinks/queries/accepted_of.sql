-- Which of some notifications are accepted and here. Parameters: tenant, hours (s since 1970, those of the ids), ids (32 hex digits each).
SELECT DISTINCT lower(hex(r.notification_id)) AS id
FROM requests_raw AS r
WHERE r.tenant = {tenant:String}
    AND r.hour IN (SELECT toDateTime(arrayJoin({hours:Array(UInt32)}), 'UTC'))
    AND r.notification_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16))
SETTINGS max_threads = 1

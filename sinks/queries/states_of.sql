-- Where some notifications stand. Parameters: tenant, hours (s since 1970, those of the ids), ids (32 hex digits each).
SELECT lower(hex(n.notification_id)) AS id, n.state AS state, n.reason AS reason
FROM notification_latest AS n
WHERE n.tenant = {tenant:String}
    AND n.hour IN (SELECT toDateTime(arrayJoin({hours:Array(UInt32)}), 'UTC'))
    AND n.notification_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16))

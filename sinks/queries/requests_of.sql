-- The requests of some notifications as they were accepted. Parameters: tenant, hours (s since 1970, those of the ids), ids (32 hex
-- digits each).
SELECT
    lower(hex(r.notification_id)) AS id,
    r.lane AS lane, r.category AS category, r.template_id AS template_id, nullIf(r.template_version, 0) AS template_version,
    r.tags AS tags, r.correlation_id AS correlation_id, r.user_id AS user_id, toUnixTimestamp64Milli(r.send_at) AS send_at
FROM requests_raw AS r FINAL
WHERE r.tenant = {tenant:String}
    AND r.hour IN (SELECT toDateTime(arrayJoin({hours:Array(UInt32)}), 'UTC'))
    AND r.notification_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16))
SETTINGS do_not_merge_across_partitions_select_final = 1

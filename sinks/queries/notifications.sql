-- A page of a tenant's notifications, the newest first. '' asks for any user, tag, template or correlation id, before '' is the
-- start of the list. Parameters: tenant, since and until (s since 1970, whole hours), before (32 hex digits or ''), user_id, tag,
-- template_id, correlation_id, from_at and to_at (ms since 1970), limit.
SELECT
    lower(hex(r.notification_id)) AS id,
    toUnixTimestamp64Milli(r.accepted_at) AS accepted_at,
    toUnixTimestamp(r.hour) AS hour,
    r.lane AS lane,
    r.category AS category,
    r.template_id AS template_id,
    r.user_id AS user_id,
    r.tags AS tags,
    nullIf(r.template_version, 0) AS template_version,
    r.correlation_id AS correlation_id
FROM requests_raw AS r FINAL
WHERE r.tenant = {tenant:String}
    AND r.hour >= toDateTime({since:UInt32}, 'UTC')
    AND r.hour <= toDateTime({until:UInt32}, 'UTC')
    AND ({before:String} = '' OR r.notification_id < toFixedString(unhex({before:String}), 16))
    AND ({user_id:String} = '' OR r.user_id = {user_id:String})
    AND ({tag:String} = '' OR has(r.tags, {tag:String}))
    AND ({template_id:String} = '' OR r.template_id = {template_id:String})
    AND ({correlation_id:String} = '' OR r.correlation_id = {correlation_id:String})
    AND r.accepted_at >= fromUnixTimestamp64Milli({from_at:Int64}, 'UTC')
    AND r.accepted_at <= fromUnixTimestamp64Milli({to_at:Int64}, 'UTC')
ORDER BY r.notification_id DESC
LIMIT {limit:UInt32}
SETTINGS do_not_merge_across_partitions_select_final = 1

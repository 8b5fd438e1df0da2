-- One notification's request as it was accepted. Parameters: tenant, hour (s since 1970), id (32 hex digits).
SELECT
    r.lane AS lane, r.category AS category, r.template_id AS template_id, nullIf(r.template_version, 0) AS template_version,
    r.strategy AS strategy, r.delivery AS delivery, r.tags AS tags, r.source AS source, r.correlation_id AS correlation_id,
    r.user_id AS user_id, r.keyed AS keyed, r.dry_run AS dry_run, r.channels AS channels, r.generation AS generation,
    toUnixTimestamp64Milli(r.send_at) AS send_at, toUnixTimestamp64Milli(r.expires_at) AS expires_at
FROM requests_raw AS r FINAL
WHERE r.tenant = {tenant:String}
    AND r.hour = toDateTime({hour:UInt32}, 'UTC')
    AND r.notification_id = toFixedString(unhex({id:String}), 16)
SETTINGS do_not_merge_across_partitions_select_final = 1

-- One notification's request; no row: not accepted, or not yet here. Parameters: tenant, hour (s since 1970), id (32 hex digits).
-- All its rows lie together: the key is looked at first, then the other columns are read of those rows alone.
SELECT
    toUnixTimestamp64Milli(r.accepted_at) AS accepted_at,
    r.lane AS lane,
    toUnixTimestamp64Milli(r.send_at) AS send_at,
    toUnixTimestamp64Milli(r.expires_at) AS expires_at
FROM requests_raw AS r FINAL
WHERE r.tenant = {tenant:String}
    AND r.hour = toDateTime({hour:UInt32}, 'UTC')
    AND r.notification_id = toFixedString(unhex({id:String}), 16)
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1, max_threads = 1

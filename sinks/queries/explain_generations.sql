-- How often a notification was sent again. Parameters: tenant, hour (s since 1970), id (32 hex digits).
SELECT g.generation AS generation, g.source AS source, g.correlation_id AS correlation_id
FROM request_generations AS g FINAL
WHERE g.tenant = {tenant:String}
    AND g.hour = toDateTime({hour:UInt32}, 'UTC')
    AND g.notification_id = toFixedString(unhex({id:String}), 16)
ORDER BY g.generation
SETTINGS do_not_merge_across_partitions_select_final = 1

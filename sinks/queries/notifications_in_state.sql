-- As notifications.sql, of those that stand in one state; a state is summed up from the facts, so it costs a look at every
-- notification between since and until. Parameters: those of notifications.sql, and state.
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
    AND r.notification_id IN
    (
        SELECT n.notification_id
        FROM notification_latest AS n
        WHERE n.tenant = {tenant:String}
            AND n.hour >= toDateTime({since:UInt32}, 'UTC')
            AND n.hour <= toDateTime({until:UInt32}, 'UTC')
            AND n.state = {state:String}
    )
ORDER BY r.notification_id DESC
LIMIT {limit:UInt32}
SETTINGS do_not_merge_across_partitions_select_final = 1

-- The facts of some notifications, each in the order of time. Parameters: tenant, hours (s since 1970, those of the ids), ids (32 hex
-- digits each).
SELECT
    lower(hex(e.notification_id)) AS id,
    UUIDNumToString(e.event_id) AS event_id,
    if(e.message_id = toFixedString('', 16), '', UUIDNumToString(e.message_id)) AS message_id,
    e.channel AS channel,
    e.lane AS lane,
    e.state AS state,
    e.rank AS rank,
    e.reason AS reason,
    e.detail AS detail,
    e.attempt AS attempt,
    e.provider AS provider,
    e.provider_message_id AS provider_message_id,
    e.possible_duplicate AS possible_duplicate,
    e.template_id AS template_id,
    nullIf(e.template_version, 0) AS template_version,
    nullIf(e.preference_version, 0) AS preference_version,
    toUnixTimestamp64Milli(e.occurred_at) AS occurred_at,
    toUnixTimestamp64Milli(e.due_at) AS due_at,
    nullIf(e.latency_ms, -1) AS latency_ms,
    e.correlation_id AS correlation_id
FROM delivery_events_raw AS e FINAL
WHERE e.tenant = {tenant:String}
    AND e.hour IN (SELECT toDateTime(arrayJoin({hours:Array(UInt32)}), 'UTC'))
    AND e.notification_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16))
ORDER BY e.notification_id, e.occurred_at, e.rank, e.event_id
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1, max_threads = 1

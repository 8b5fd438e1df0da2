-- One notification's facts in the order of time. Parameters: tenant, hour (s since 1970), id (32 hex digits).
-- All its rows lie together: the key is looked at first, then the other columns are read of those rows alone.
SELECT
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
    AND e.hour = toDateTime({hour:UInt32}, 'UTC')
    AND e.notification_id = toFixedString(unhex({id:String}), 16)
ORDER BY e.occurred_at, e.rank, e.event_id
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1, max_threads = 1

-- One row per status event, ids as UUID; message_id is NULL where the event is about the notification as a whole.
-- do_not_merge_across_partitions_select_final is right because the partition is a function of the id.
CREATE OR REPLACE VIEW delivery_events AS
SELECT
    toUUID(UUIDNumToString(e.event_id)) AS event_id,
    toUUID(UUIDNumToString(e.notification_id)) AS notification_id,
    if(e.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(e.message_id))) AS message_id,
    e.tenant AS tenant,
    e.channel AS channel,
    e.lane AS lane,
    e.state AS state,
    e.reason AS reason,
    e.provider AS provider,
    e.provider_message_id AS provider_message_id,
    e.attempt AS attempt,
    e.possible_duplicate AS possible_duplicate,
    e.template_id AS template_id,
    nullIf(e.template_version, 0) AS template_version,
    e.accepted_at AS accepted_at,
    e.occurred_at AS occurred_at,
    nullIf(e.latency_ms, -1) AS latency_ms,
    e.correlation_id AS correlation_id,
    e.hour AS hour,
    e.rank AS rank,
    e.detail AS detail,
    nullIf(e.preference_version, 0) AS preference_version,
    e.source_topic AS source_topic,
    e.source_partition AS source_partition,
    e.source_offset AS source_offset,
    if(e.message_id = toFixedString('', 16), NULL, nullIf(e.template_version, 0)) AS rendered_template_version,
    e.recipient AS recipient,
    e.category AS category,
    e.locale AS locale,
    e.domain AS domain,
    e.code AS code,
    nullIf(e.due_at, toDateTime64(0, 3, 'UTC')) AS due_at,
    nullIf(e.stored_at, toDateTime64(0, 3, 'UTC')) AS stored_at
FROM delivery_events_raw AS e FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- Dead letters with their bytes. Parameters: ids (32 hex digits each), topics (of the records).
SELECT
    lower(hex(d.dead_letter_id)) AS id, d.topic AS topic, d.partition AS partition, d.offset AS offset, d.stage AS stage,
    d.reason AS reason, d.error_class AS error_class, d.detail AS detail, d.attempts AS attempts, d.tenant AS tenant,
    if(d.notification_id = toFixedString('', 16), NULL, toString(toUUID(UUIDNumToString(d.notification_id))))
        AS notification_id,
    if(d.message_id = toFixedString('', 16), NULL, toString(toUUID(UUIDNumToString(d.message_id)))) AS message_id,
    toUnixTimestamp64Milli(d.occurred_at) AS occurred_at, d.key AS key, d.value AS value,
    s.letter_state AS letter_state
FROM dead_letters_raw AS d FINAL
INNER JOIN dead_letter_states AS s ON s.dead_letter_id = d.dead_letter_id
WHERE (empty({topics:Array(String)}) OR d.topic IN {topics:Array(String)})
    AND d.dead_letter_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16))

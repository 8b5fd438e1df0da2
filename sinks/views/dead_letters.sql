-- One row per dead letter, ids as UUID; key and value are its bytes, letter_state is what became of it since.
CREATE OR REPLACE VIEW dead_letters AS
SELECT
    toUUID(UUIDNumToString(d.dead_letter_id)) AS dead_letter_id,
    d.topic AS topic,
    d.partition AS partition,
    d.offset AS offset,
    d.stage AS stage,
    d.reason AS reason,
    d.error_class AS error_class,
    d.detail AS detail,
    d.attempts AS attempts,
    d.tenant AS tenant,
    if(d.notification_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(d.notification_id))) AS notification_id,
    if(d.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(d.message_id))) AS message_id,
    d.occurred_at AS occurred_at,
    d.key AS key,
    d.value AS value,
    nullIf(d.stored_at, toDateTime64(0, 3, 'UTC')) AS stored_at,
    s.letter_state AS letter_state
FROM dead_letters_raw AS d FINAL
INNER JOIN dead_letter_states AS s ON s.dead_letter_id = d.dead_letter_id;

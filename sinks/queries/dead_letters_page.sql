-- Dead letters of a stretch of time in the order of their table, a page at a time. `selected` is replaced by the operator's
-- condition. Parameters: since and until (ms since 1970), after_topic, after_partition, after_offset, after_id (where the last
-- page ended; '', -1, -1, '' at first), limit.
SELECT *
FROM
(
    SELECT *, true AS selected
    FROM
    (
        SELECT
            hex(d.dead_letter_id) AS raw_id, toUUID(UUIDNumToString(d.dead_letter_id)) AS dead_letter_id, d.topic AS topic,
            d.partition AS partition, d.offset AS offset, d.stage AS stage, d.reason AS reason,
            d.error_class AS error_class, d.detail AS detail, d.attempts AS attempts, d.tenant AS tenant,
            if(d.notification_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(d.notification_id)))
                AS notification_id,
            if(d.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(d.message_id))) AS message_id,
            d.occurred_at AS occurred_at, d.key AS key, d.value AS value, s.letter_state AS letter_state
        FROM dead_letters_raw AS d FINAL
        INNER JOIN dead_letter_states AS s ON s.dead_letter_id = d.dead_letter_id
        WHERE d.occurred_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
            AND d.occurred_at < fromUnixTimestamp64Milli({until:Int64}, 'UTC')
            AND (d.topic, d.partition, d.offset, hex(d.dead_letter_id))
                > ({after_topic:String}, {after_partition:Int32}, {after_offset:Int64}, {after_id:String})
    )
)
WHERE selected
ORDER BY topic, partition, offset, raw_id
LIMIT {limit:UInt32}

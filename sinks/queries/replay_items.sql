-- What a replay chose, from a place on. Parameters: replay (32 hex digits), first, limit.
SELECT i.seq AS seq, i.topic AS topic, i.partition AS partition, i.offset AS offset, i.tenant AS tenant,
    lower(hex(i.notification_id)) AS notification_id, lower(hex(i.message_id)) AS message_id,
    lower(hex(i.letter_id)) AS letter_id, i.channels AS channels, i.generation AS generation, i.attempt AS attempt,
    i.possible_duplicate AS possible_duplicate
FROM replay_items AS i FINAL
WHERE i.replay_id = toFixedString(unhex({replay:String}), 16) AND i.seq >= {first:UInt64}
ORDER BY i.seq
LIMIT {limit:UInt32}

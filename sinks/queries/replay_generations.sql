-- The highest generation that each notification of an hour is known to have had, where that is not the first.
-- Parameters: hour (s since 1970).
SELECT lower(hex(g.id)) AS id, max(g.generation) AS generation
FROM
(
    SELECT r.notification_id AS id, r.generation AS generation
    FROM request_generations AS r
    WHERE r.hour = toDateTime({hour:UInt32}, 'UTC') AND r.generation > 0
    UNION ALL
    SELECT i.notification_id AS id, i.generation AS generation
    FROM replay_items AS i
    WHERE i.generation > 0
        AND i.notification_id >= toFixedString(unhex(leftPad(hex(toUInt64({hour:UInt32}) * 1000), 12, '0')), 16)
        AND i.notification_id < toFixedString(unhex(leftPad(hex(toUInt64({hour:UInt32}) * 1000 + 3600000), 12, '0')), 16)
) AS g
GROUP BY g.id

-- One row per notification that has no message, ids as stored: what notification_latest says of it, without summing up messages.
-- Planning that was most of what a question about one notification cost.
CREATE OR REPLACE VIEW notifications_alone AS
SELECT
    tenant,
    hour,
    notification_id,
    fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(notification_id, 1, 6)))), 4102444799999), 'UTC') AS accepted_at,
    ascii(fact) - 1 AS known_rank,
    splitByChar('\0', substring(fact, 26)) AS words,
    if(known_rank < 0, 'accepted', words[1]) AS state,
    if(known_rank < 0, '', words[2]) AS reason,
    if(known_rank < 0, '', words[3]) AS detail,
    possible_duplicate,
    lane,
    send_at,
    last_event_at
FROM
(
    SELECT
        f.tenant AS tenant,
        f.hour AS hour,
        f.notification_id AS notification_id,
        max(f.latest) AS fact,
        toUInt8(max(f.possible_duplicate)) AS possible_duplicate,
        max(f.lane) AS lane,
        toDateTime64(max(f.send_at), 3, 'UTC') AS send_at,
        toDateTime64(max(f.last_event_at), 3, 'UTC') AS last_event_at
    FROM
    (
        SELECT
            n.tenant AS tenant, n.hour AS hour, n.notification_id AS notification_id,
            n.latest AS latest, toString(n.lane) AS lane, n.possible_duplicate AS possible_duplicate, n.last_event_at AS last_event_at, n.send_at AS send_at, 0 AS message
        FROM notification_states AS n
        UNION ALL
        SELECT
            m.tenant AS tenant, m.hour AS hour, m.notification_id AS notification_id,
            '' AS latest, '' AS lane, 0 AS possible_duplicate,
            toDateTime64(0, 3, 'UTC') AS last_event_at, toDateTime64(0, 3, 'UTC') AS send_at, 1 AS message
        FROM message_states AS m
    ) AS f
    GROUP BY f.tenant, f.hour, f.notification_id
    HAVING max(f.message) = 0
);

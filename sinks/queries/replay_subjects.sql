-- What became of the messages of an hour, and of its notifications without messages (message_id ''). `selected` is replaced by
-- the operator's condition over these columns. Parameters: hour (s since 1970), tenants ([] any), ids (32 hex digits, [] any).
SELECT
    lower(hex(s.raw_id)) AS id, s.message AS message, s.channel AS channel, s.state AS state, s.reason AS reason,
    s.attempts AS attempts, s.template_version AS template_version, s.possible_duplicate AS possible_duplicate,
    s.provider AS provider, ifNull(s.selected, false) AS selected
FROM
(
    SELECT *, true AS selected
    FROM
    (
        SELECT
            m.notification_id AS raw_id,
            UUIDNumToString(m.message_id) AS message,
            toUUID(UUIDNumToString(m.notification_id)) AS notification_id,
            toNullable(toUUID(UUIDNumToString(m.message_id))) AS message_id,
            m.tenant AS tenant, m.channel AS channel, m.lane AS lane, m.state AS state, m.reason AS reason,
            m.detail AS detail, m.provider AS provider, m.template_id AS template_id,
            nullIf(m.template_version, 0) AS template_version, m.attempts AS attempts,
            toBool(m.possible_duplicate) AS possible_duplicate, m.accepted_at AS accepted_at,
            m.settled_at AS settled_at, m.last_event_at AS last_event_at
        FROM message_latest AS m
        WHERE m.hour = toDateTime({hour:UInt32}, 'UTC')
            AND (empty({tenants:Array(String)}) OR m.tenant IN {tenants:Array(String)})
            AND (
                empty({ids:Array(String)})
                OR m.notification_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16)))
        UNION ALL
        SELECT
            n.notification_id AS raw_id,
            '' AS message,
            toUUID(UUIDNumToString(n.notification_id)) AS notification_id,
            CAST(NULL AS Nullable(UUID)) AS message_id,
            n.tenant AS tenant, '' AS channel, n.lane AS lane, n.state AS state, n.reason AS reason, n.detail AS detail,
            '' AS provider, r.template_id AS template_id, nullIf(r.template_version, 0) AS template_version, 0 AS attempts,
            toBool(n.possible_duplicate) AS possible_duplicate, n.accepted_at AS accepted_at,
            n.settled_at AS settled_at, n.last_event_at AS last_event_at
        FROM notification_latest AS n
        LEFT JOIN
        (
            SELECT q.tenant, q.notification_id, q.template_id, q.template_version
            FROM requests_raw AS q FINAL
            WHERE q.hour = toDateTime({hour:UInt32}, 'UTC')
                AND (empty({tenants:Array(String)}) OR q.tenant IN {tenants:Array(String)})
        ) AS r ON r.tenant = n.tenant AND r.notification_id = n.notification_id
        WHERE n.hour = toDateTime({hour:UInt32}, 'UTC') AND n.messages = 0
            AND (empty({tenants:Array(String)}) OR n.tenant IN {tenants:Array(String)})
            AND (
                empty({ids:Array(String)})
                OR n.notification_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16)))
    )
) AS s

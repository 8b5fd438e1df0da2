-- How many of these requests are stored, and how many there are since an hour. Parameters: tenants, hours (s since 1970), ids
-- (32 hex digits each), since (s since 1970).
SELECT
    (
        SELECT uniqExact(r.notification_id)
        FROM requests_raw AS r
        WHERE r.tenant IN {tenants:Array(String)}
            AND r.hour IN (SELECT toDateTime(arrayJoin({hours:Array(UInt32)}), 'UTC'))
            AND r.notification_id IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16))
    ) AS there,
    (SELECT uniqExact(q.notification_id) FROM requests_raw AS q WHERE q.hour >= toDateTime({since:UInt32}, 'UTC')) AS rows

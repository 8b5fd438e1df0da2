-- The hours whose sums are missing or of other states than there are now (0 touches: none are left). The others have sums in
-- hour_sums that hold. Asking reads no states, but the projections of their tables (migrations/0007).
CREATE OR REPLACE VIEW hours_changed AS
SELECT t.tenant AS tenant, t.hour AS hour, sum(t.touches) AS touches
FROM
(
    SELECT m.tenant AS tenant, m.hour AS hour, sum(m.touches) AS touches, toUInt64(0) AS summed
    FROM message_states AS m
    GROUP BY m.tenant, m.hour
    UNION ALL
    SELECT n.tenant AS tenant, n.hour AS hour, sum(n.touches) AS touches, toUInt64(0) AS summed
    FROM notification_states AS n
    GROUP BY n.tenant, n.hour
    UNION ALL
    SELECT h.tenant AS tenant, h.hour AS hour, toUInt64(0) AS touches, h.touches AS summed
    FROM hour_sums AS h FINAL
) AS t
GROUP BY t.tenant, t.hour
HAVING sum(t.touches) != sum(t.summed);

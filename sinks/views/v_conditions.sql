-- What is down now: one row per account or stage, with the worst that a process says of it. A down that was not repeated for
-- 90 s (runtime/conditions.py) is over, or nobody is left to say it.
CREATE OR REPLACE VIEW v_conditions AS
SELECT
    c.subject AS subject,
    c.name AS name,
    max(c.channel) AS channel,
    argMax(c.detail, c.stated_at) AS detail,
    min(nullIf(c.since, toDateTime64(0, 3, 'UTC'))) AS since,
    min(nullIf(c.next_at, toDateTime64(0, 3, 'UTC'))) AS next_at,
    max(c.stated_at) AS stated_at,
    count() AS processes
FROM conditions_raw AS c FINAL
WHERE c.condition = 'down' AND c.stated_at > now64(3, 'UTC') - INTERVAL 90 SECOND
GROUP BY c.subject, c.name;

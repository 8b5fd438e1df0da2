-- The hours whose kept sums are missing or no longer hold, the newest first. Parameters: limit.
SELECT c.tenant AS tenant, toUnixTimestamp(c.hour) AS hour, c.touches AS touches
FROM hours_changed AS c
ORDER BY c.hour DESC, c.tenant
LIMIT {limit:UInt32}

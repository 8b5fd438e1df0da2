-- The closing line: accepted = settled + in flight, residual. By the exact time, where v_accounting goes by the hour.
-- Parameters: tenant, since (ms since 1970).
SELECT
    countIf(n.accepted) AS accepted,
    countIf(n.accepted AND n.settled) AS settled,
    countIf(n.accepted AND NOT n.settled) AS in_flight,
    countIf(n.accepted AND NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15))
        + countIf(NOT n.accepted)
        + sum(n.conflicts) AS residual
FROM notification_latest AS n
WHERE n.tenant = {tenant:String}
    AND n.hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
    AND n.accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')

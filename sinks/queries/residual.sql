-- What does not add up among what was accepted in the last two days, as heliograph_accounting_residual tells it. Their sum is
-- the residual of v_accounting. No parameters.
SELECT
    countIf(n.accepted AND NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15)) AS overdue,
    countIf(NOT n.accepted) AS orphan,
    sum(n.conflicts) AS conflict
FROM notification_latest AS n
WHERE n.hour >= toStartOfHour(now('UTC')) - INTERVAL 2 DAY

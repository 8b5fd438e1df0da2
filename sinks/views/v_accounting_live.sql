-- One row per tenant and hour of acceptance, summed up when asked: a column per settled state of schemas/reasons.yaml.
CREATE OR REPLACE VIEW v_accounting_live AS
SELECT
    n.tenant AS tenant,
    n.hour AS hour,
    countIf(n.accepted) AS accepted,
    countIf(n.accepted AND n.state = 'unknown') AS unknown,
    countIf(n.accepted AND n.state = 'dead_lettered') AS dead_lettered,
    countIf(n.accepted AND n.state = 'simulated') AS simulated,
    countIf(n.accepted AND n.state = 'skipped') AS skipped,
    countIf(n.accepted AND n.state = 'suppressed') AS suppressed,
    countIf(n.accepted AND n.state = 'expired') AS expired,
    countIf(n.accepted AND n.state = 'cancelled') AS cancelled,
    countIf(n.accepted AND n.state = 'rejected') AS rejected,
    countIf(n.accepted AND n.state = 'failed') AS failed,
    countIf(n.accepted AND n.state = 'sent') AS sent,
    countIf(n.accepted AND n.state = 'undelivered') AS undelivered,
    countIf(n.accepted AND n.state = 'delivered') AS delivered,
    countIf(n.accepted AND n.state = 'bounced') AS bounced,
    countIf(n.accepted AND NOT n.settled) AS in_flight,
    countIf(n.accepted AND NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15))
        + countIf(NOT n.accepted)
        + sum(n.conflicts) AS residual
FROM notification_latest AS n
GROUP BY n.tenant, n.hour;

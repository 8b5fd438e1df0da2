-- v_accounting_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_accounting AS
SELECT *
FROM v_accounting_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, h.accepted AS accepted, h.unknown AS unknown,
    h.dead_lettered AS dead_lettered, h.simulated AS simulated, h.skipped AS skipped, h.suppressed AS suppressed,
    h.expired AS expired, h.cancelled AS cancelled, h.rejected AS rejected, h.failed AS failed, h.sent AS sent,
    h.undelivered AS undelivered, h.delivered AS delivered, h.bounced AS bounced, h.in_flight AS in_flight,
    h.findings + arrayCount(at -> now64(3, 'UTC') > at, h.overdue_at) AS residual
FROM hour_sums AS h FINAL
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- v_latency_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_latency AS
SELECT *
FROM v_latency_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.sent AS sent,
    g.sent_ms_p50_p95_p99 AS sent_ms_p50_p95_p99, g.delivered AS delivered,
    g.delivered_ms_p50_p95_p99 AS delivered_ms_p50_p95_p99
FROM hour_sums AS h FINAL
ARRAY JOIN h.latency AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

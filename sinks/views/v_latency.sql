-- v_latency_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_latency AS
SELECT
    t.tenant AS tenant,
    t.hour AS hour,
    t.channel AS channel,
    t.lane AS lane,
    t.sent AS sent,
    if(t.sent = 0, [], t.sent_ms_p50_p95_p99) AS sent_ms_p50_p95_p99,
    if(t.sent = 0, NULL, t.sent_ms_p50_p95_p99[1]) AS sent_ms_p50,
    if(t.sent = 0, NULL, t.sent_ms_p50_p95_p99[2]) AS sent_ms_p95,
    if(t.sent = 0, NULL, t.sent_ms_p50_p95_p99[3]) AS sent_ms_p99,
    if(has(p.reports, 'delivered') OR t.delivered > 0, t.delivered, NULL) AS delivered,
    if(t.delivered = 0, [], t.delivered_ms_p50_p95_p99) AS delivered_ms_p50_p95_p99,
    if(t.delivered = 0, NULL, t.delivered_ms_p50_p95_p99[1]) AS delivered_ms_p50,
    if(t.delivered = 0, NULL, t.delivered_ms_p50_p95_p99[2]) AS delivered_ms_p95,
    if(t.delivered = 0, NULL, t.delivered_ms_p50_p95_p99[3]) AS delivered_ms_p99,
    arraySort(p.reports) AS reports
FROM (
    SELECT *
    FROM v_latency_counts AS l
    WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
    UNION ALL
    SELECT
        h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.sent AS sent,
        g.sent_ms_p50_p95_p99 AS sent_ms_p50_p95_p99, g.delivered AS delivered, g.delivered_ms_p50_p95_p99 AS
        delivered_ms_p50_p95_p99
    FROM hour_sums AS h FINAL
    ARRAY JOIN h.latency AS g
    WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
    SETTINGS do_not_merge_across_partitions_select_final = 1
) AS t
LEFT JOIN channel_reports AS p ON p.channel = t.channel;

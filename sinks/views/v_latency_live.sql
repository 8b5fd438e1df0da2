-- v_latency_counts with a column per quantile; NULL and empty where nothing is measured.
CREATE OR REPLACE VIEW v_latency_live AS
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
FROM v_latency_counts AS t
LEFT JOIN channel_reports AS p ON p.channel = t.channel;

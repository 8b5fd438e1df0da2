-- v_slo_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_slo AS
SELECT
    t.tenant AS tenant,
    t.hour AS hour,
    t.channel AS channel,
    t.lane AS lane,
    t.messages AS messages,
    t.in_flight AS in_flight,
    t.sent_1s AS sent_1s,
    t.sent_5s AS sent_5s,
    t.sent_30s AS sent_30s,
    t.sent_5m AS sent_5m,
    t.sent_1h AS sent_1h,
    if(has(p.reports, 'delivered') OR t.delivered_5s > 0, t.delivered_5s, NULL) AS delivered_5s,
    if(has(p.reports, 'delivered') OR t.delivered_30s > 0, t.delivered_30s, NULL) AS delivered_30s,
    if(has(p.reports, 'delivered') OR t.delivered_5m > 0, t.delivered_5m, NULL) AS delivered_5m,
    if(has(p.reports, 'delivered') OR t.delivered_1h > 0, t.delivered_1h, NULL) AS delivered_1h,
    round(sent_5s / t.messages, 4) AS sent_share_5s,
    round(sent_30s / t.messages, 4) AS sent_share_30s,
    round(sent_5m / t.messages, 4) AS sent_share_5m,
    round(delivered_30s / t.messages, 4) AS delivered_share_30s,
    round(delivered_5m / t.messages, 4) AS delivered_share_5m,
    arraySort(p.reports) AS reports
FROM (
    SELECT *
    FROM v_slo_counts AS l
    WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
    UNION ALL
    SELECT
        h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.messages AS messages,
        g.in_flight AS in_flight, g.sent_1s AS sent_1s, g.sent_5s AS sent_5s, g.sent_30s AS sent_30s, g.sent_5m
        AS sent_5m, g.sent_1h AS sent_1h, g.delivered_5s AS delivered_5s, g.delivered_30s AS delivered_30s,
        g.delivered_5m AS delivered_5m, g.delivered_1h AS delivered_1h
    FROM hour_sums AS h FINAL
    ARRAY JOIN h.slo AS g
    WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
    SETTINGS do_not_merge_across_partitions_select_final = 1
) AS t
LEFT JOIN channel_reports AS p ON p.channel = t.channel;

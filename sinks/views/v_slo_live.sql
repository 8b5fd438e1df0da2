-- v_slo_counts with shares; NULL where no account of the channel reports deliveries.
CREATE OR REPLACE VIEW v_slo_live AS
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
FROM v_slo_counts AS t
LEFT JOIN channel_reports AS p ON p.channel = t.channel;

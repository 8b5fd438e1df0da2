-- v_slo_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_slo AS
SELECT *
FROM v_slo_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.messages AS messages,
    g.in_flight AS in_flight, g.sent_1s AS sent_1s, g.sent_5s AS sent_5s, g.sent_30s AS sent_30s,
    g.sent_5m AS sent_5m, g.sent_1h AS sent_1h, g.delivered_5s AS delivered_5s, g.delivered_30s AS delivered_30s,
    g.delivered_5m AS delivered_5m, g.delivered_1h AS delivered_1h, g.sent_share_5s AS sent_share_5s,
    g.sent_share_30s AS sent_share_30s, g.sent_share_5m AS sent_share_5m,
    g.delivered_share_30s AS delivered_share_30s, g.delivered_share_5m AS delivered_share_5m
FROM hour_sums AS h FINAL
ARRAY JOIN h.slo AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

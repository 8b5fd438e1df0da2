-- v_funnel_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_funnel AS
SELECT
    t.tenant AS tenant,
    t.hour AS hour,
    t.channel AS channel,
    t.lane AS lane,
    t.template_id AS template_id,
    t.requests AS requests,
    t.alone AS alone,
    t.messages AS messages,
    t.routed AS routed,
    t.sent AS sent,
    if(has(p.reports, 'delivered') OR t.delivered > 0, t.delivered, NULL) AS delivered,
    if(has(p.reports, 'opened') OR t.opened > 0, t.opened, NULL) AS opened,
    if(has(p.reports, 'clicked') OR t.clicked > 0, t.clicked, NULL) AS clicked,
    if(has(p.reports, 'complained') OR t.complained > 0, t.complained, NULL) AS complained,
    if(has(p.reports, 'unsubscribed') OR t.unsubscribed > 0, t.unsubscribed, NULL) AS unsubscribed,
    if(has(p.reports, 'read') OR t.read > 0, t.read, NULL) AS read,
    t.succeeded AS succeeded,
    t.unknown AS unknown,
    t.simulated AS simulated,
    t.failed AS failed,
    t.not_wanted AS not_wanted,
    t.in_flight AS in_flight,
    arraySort(p.reports) AS reports
FROM (
    SELECT *
    FROM v_funnel_counts AS l
    WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
    UNION ALL
    SELECT
        h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.template_id AS template_id,
        g.requests AS requests, g.alone AS alone, g.messages AS messages, g.routed AS routed, g.sent AS sent,
        g.delivered AS delivered, g.opened AS opened, g.clicked AS clicked, g.complained AS complained,
        g.unsubscribed AS unsubscribed, g.read AS read, g.succeeded AS succeeded, g.unknown AS unknown,
        g.simulated AS simulated, g.failed AS failed, g.not_wanted AS not_wanted, g.in_flight AS in_flight
    FROM hour_sums AS h FINAL
    ARRAY JOIN h.funnel AS g
    WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
    SETTINGS do_not_merge_across_partitions_select_final = 1
) AS t
LEFT JOIN channel_reports AS p ON p.channel = t.channel;

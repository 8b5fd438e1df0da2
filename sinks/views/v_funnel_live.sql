-- v_funnel_counts; what no account of the channel reports is NULL.
CREATE OR REPLACE VIEW v_funnel_live AS
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
FROM v_funnel_counts AS t
LEFT JOIN channel_reports AS p ON p.channel = t.channel;

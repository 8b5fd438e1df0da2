-- v_funnel_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_funnel AS
SELECT *
FROM v_funnel_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.lane AS lane, g.template_id AS template_id,
    g.messages AS messages, g.routed AS routed, g.sent AS sent, g.delivered AS delivered, g.opened AS opened,
    g.clicked AS clicked, g.complained AS complained, g.unsubscribed AS unsubscribed, g.read AS read,
    g.failed AS failed, g.not_wanted AS not_wanted, g.in_flight AS in_flight
FROM hour_sums AS h FINAL
ARRAY JOIN h.funnel AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- v_failures_live, with kept sums where they hold.
CREATE OR REPLACE VIEW v_failures AS
SELECT *
FROM v_failures_live AS l
WHERE (l.tenant, l.hour) IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
UNION ALL
SELECT
    h.tenant AS tenant, h.hour AS hour, g.channel AS channel, g.provider AS provider, g.state AS state,
    g.reason AS reason, g.failures AS failures, g.last_at AS last_at, g.example_detail AS example_detail,
    g.example_notification_id AS example_notification_id
FROM hour_sums AS h FINAL
ARRAY JOIN h.failures AS g
WHERE (h.tenant, h.hour) NOT IN (SELECT c.tenant, c.hour FROM hours_changed AS c)
SETTINGS do_not_merge_across_partitions_select_final = 1;

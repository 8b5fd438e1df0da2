-- One row per minute of the event, tenant, channel and account: what happens now, whenever it was accepted. Channel '' has the requests
-- and what is about notifications as a whole; account '' what is decided without one.
CREATE OR REPLACE VIEW v_minutes AS
SELECT
    toStartOfMinute(t.at) AS minute,
    t.tenant AS tenant,
    t.channel AS channel,
    t.provider AS provider,
    countIf(t.requested) AS requests,
    countIf(t.state = 'routed') AS routed,
    countIf(t.asked) AS attempts,
    countIf(t.state = 'sent') AS sent,
    countIf(t.state = 'retrying') AS retried,
    countIf(t.state = 'failed_over') AS failed_over,
    countIf(t.state = 'delivered') AS delivered,
    countIf(t.state = 'undelivered') AS undelivered,
    countIf(t.state = 'bounced') AS bounced,
    countIf(t.state IN ('rejected', 'failed')) AS refused,
    countIf(t.state = 'unknown') AS unknown,
    countIf(t.state = 'dead_lettered') AS dead_lettered,
    countIf(t.state IN ('skipped', 'suppressed', 'expired', 'cancelled')) AS not_wanted,
    count() AS facts,
    if(countIf(t.latency_ms >= 0) = 0, NULL, quantileExactIf(0.95)(t.latency_ms, t.latency_ms >= 0)) AS latency_ms_p95,
    argMaxIf(if(t.code = '', t.detail, t.code), t.at, t.erred) AS last_error
FROM
(
    SELECT
        e.tenant AS tenant, e.occurred_at AS at, toString(e.channel) AS channel, toString(e.provider) AS provider,
        toString(e.state) AS state, e.latency_ms AS latency_ms, toString(e.code) AS code, e.detail AS detail,
        e.provider != '' AND (
            e.state IN ('sent', 'retrying', 'failed_over', 'rejected', 'failed', 'unknown')
            OR (e.state = 'bounced' AND e.latency_ms >= 0)) AS asked,
        e.state IN ('retrying', 'failed_over', 'unknown', 'failed', 'rejected', 'bounced', 'undelivered', 'dead_lettered')
            AS erred, 0 AS requested
    FROM delivery_events_raw AS e FINAL
    -- What a report repeats of our own `sent` is no second request: it has neither a record as its source nor a latency.
    WHERE NOT (e.state = 'sent' AND e.source_topic = '' AND e.latency_ms < 0)
    UNION ALL
    SELECT
        r.tenant AS tenant, r.accepted_at AS at, '' AS channel, '' AS provider, '' AS state, -1 AS latency_ms, '' AS code,
        '' AS detail, 0 AS asked, 0 AS erred, 1 AS requested
    FROM requests_raw AS r FINAL
) AS t
GROUP BY minute, t.tenant, t.channel, t.provider
SETTINGS do_not_merge_across_partitions_select_final = 1;

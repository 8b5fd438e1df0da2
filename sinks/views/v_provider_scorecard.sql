-- One row per provider account, channel and hour of the event. Requests: attempts = sent + retried + failed_over + refused +
-- unknown + bounced_at_once. What is about messages (duplicates, what is known to be taken beside the answers) stands in the
-- hour of the first doubt, so that it can be summed up. What the account has never reported is NULL.
-- Classes of errors: what an event says of itself, and codes of the vendors' tables that mean "too fast".
CREATE OR REPLACE VIEW v_provider_scorecard AS
SELECT
    s.provider AS provider,
    s.channel AS channel,
    s.hour AS hour,
    s.attempts AS attempts,
    s.sent AS sent,
    s.retried AS retried,
    s.failed_over AS failed_over,
    s.refused AS refused,
    s.unknown AS unknown,
    s.bounced_at_once AS bounced_at_once,
    errors['in_doubt'] AS in_doubt,
    errors['throttled'] AS throttled,
    s.errors AS errors,
    round(s.sent / nullIf(s.attempts, 0), 4) AS sent_share,
    if(has(a.reports, 'delivered') OR s.delivered > 0, s.delivered, NULL) AS delivered,
    if(has(a.reports, 'undelivered') OR s.undelivered > 0, s.undelivered, NULL) AS undelivered,
    s.bounced AS bounced,
    if(has(a.reports, 'complained') OR s.complained > 0, s.complained, NULL) AS complained,
    ifNull(d.flagged, 0) AS possible_duplicates,
    if(empty(a.reports), NULL, ifNull(d.confirmed, 0)) AS confirmed_duplicates,
    if(empty(a.reports), NULL, s.sent + ifNull(d.unanswered, 0)) AS accepted,
    s.latency_ms_p50_p95_p99 AS latency_ms_p50_p95_p99,
    s.latency_ms_p50 AS latency_ms_p50,
    s.latency_ms_p95 AS latency_ms_p95,
    s.latency_ms_p99 AS latency_ms_p99,
    p.price_per_message AS price_per_message,
    p.currency AS currency,
    s.sent * p.price_per_message AS cost,
    accepted * p.price_per_message AS cost_accepted,
    toFloat64(s.sent * p.price_per_message) / nullIf(delivered, 0) AS cost_per_delivered,
    arraySort(a.reports) AS reports
FROM
(
    SELECT
        toString(e.provider) AS provider,
        toString(e.channel) AS channel,
        toStartOfHour(e.occurred_at) AS hour,
        countIf(
            e.state IN ('sent', 'retrying', 'failed_over', 'rejected', 'failed', 'unknown')
            OR (e.state = 'bounced' AND e.latency_ms >= 0)) AS attempts,
        countIf(e.state = 'sent') AS sent,
        countIf(e.state = 'retrying') AS retried,
        countIf(e.state = 'failed_over') AS failed_over,
        countIf(e.state IN ('rejected', 'failed')) AS refused,
        countIf(e.state = 'unknown') AS unknown,
        countIf(e.state = 'bounced' AND e.latency_ms >= 0) AS bounced_at_once,
        countIf(e.state = 'delivered') AS delivered,
        countIf(e.state = 'undelivered') AS undelivered,
        countIf(e.state = 'bounced') AS bounced,
        countIf(e.state = 'complained') AS complained,
        quantilesExactIf(0.5, 0.95, 0.99)(e.latency_ms, e.latency_ms >= 0) AS quantiles_ms,
        if(countIf(e.latency_ms >= 0) = 0, [], quantiles_ms) AS latency_ms_p50_p95_p99,
        if(countIf(e.latency_ms >= 0) = 0, NULL, quantiles_ms[1]) AS latency_ms_p50,
        if(countIf(e.latency_ms >= 0) = 0, NULL, quantiles_ms[2]) AS latency_ms_p95,
        if(countIf(e.latency_ms >= 0) = 0, NULL, quantiles_ms[3]) AS latency_ms_p99,
        sumMapIf(map(e.error, toUInt64(1)), e.error != '') AS errors
    FROM
    (
        SELECT
            f.provider AS provider,
            f.channel AS channel,
            f.state AS state,
            f.occurred_at AS occurred_at,
            f.latency_ms AS latency_ms,
            f.possible_duplicate AS possible_duplicate,
            multiIf(
                f.state = 'bounced', 'recipient',
                f.state = 'rejected', 'message',
                f.state = 'unknown' OR f.reason = 'in_doubt', 'in_doubt',
                f.state = 'failed' AND f.reason = 'provider_account', 'account',
                f.state NOT IN ('retrying', 'failed_over', 'failed'), '',
                f.reason = 'throttled', 'throttled',
                'transient') AS error
        FROM delivery_events_raw AS f FINAL
        -- What a report repeats of our own `sent` is no second request: it has neither a record as its source nor a latency.
        WHERE f.provider != '' AND NOT (f.state = 'sent' AND f.source_topic = '' AND f.latency_ms < 0)
    ) AS e
    GROUP BY e.provider, e.channel, toStartOfHour(e.occurred_at)
) AS s
LEFT JOIN
(
    SELECT
        m.provider AS provider,
        m.channel AS channel,
        toStartOfHour(m.doubted_at) AS hour,
        countIf(m.flagged) AS flagged,
        countIf(m.vendor_ids > 1) AS confirmed,
        sum(m.vendor_ids - m.answered_ids) AS unanswered
    FROM doubted_messages AS m
    GROUP BY m.provider, m.channel, hour
) AS d ON d.provider = s.provider AND d.channel = s.channel AND d.hour = s.hour
LEFT JOIN
(
    SELECT toString(c.provider) AS provider, c.price_per_message AS price_per_message, c.currency AS currency
    FROM provider_prices AS c FINAL
) AS p ON p.provider = s.provider
LEFT JOIN
(
    SELECT toString(k.provider) AS provider, toString(k.channel) AS channel, groupUniqArrayArray(k.reports) AS reports
    FROM account_states AS k
    GROUP BY k.provider, k.channel
) AS a ON a.provider = s.provider AND a.channel = s.channel
SETTINGS do_not_merge_across_partitions_select_final = 1, join_use_nulls = 1;

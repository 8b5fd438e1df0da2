-- One row per provider account, channel and hour of the event.
-- Classes of errors: what an event says of itself, and codes of the vendors' tables that mean "too fast".
CREATE OR REPLACE VIEW v_provider_scorecard AS
SELECT
    s.* EXCEPT (provider_name),
    p.price_per_message AS price_per_message,
    p.currency AS currency,
    s.sent * p.price_per_message AS cost,
    toFloat64(s.sent * p.price_per_message) / nullIf(s.delivered, 0) AS cost_per_delivered
FROM
(
    SELECT
        e.provider AS provider,
        e.channel AS channel,
        toStartOfHour(e.occurred_at) AS hour,
        countIf(
            e.state IN ('sent', 'retrying', 'rejected', 'failed', 'unknown')
            OR (e.state = 'bounced' AND e.latency_ms >= 0)) AS attempts,
        countIf(e.state = 'sent') AS sent,
        countIf(e.state = 'retrying') AS retried,
        countIf(e.state IN ('rejected', 'failed')) AS refused,
        countIf(e.state = 'unknown') AS in_doubt,
        countIf(e.state = 'delivered') AS delivered,
        countIf(e.state = 'undelivered') AS undelivered,
        countIf(e.state = 'bounced') AS bounced,
        countIf(e.state = 'complained') AS complained,
        countIf(e.possible_duplicate) AS possible_duplicates,
        round(sent / nullIf(attempts, 0), 4) AS sent_share,
        quantilesExactIf(0.5, 0.95, 0.99)(e.latency_ms, e.latency_ms >= 0) AS latency_ms_p50_p95_p99,
        if(countIf(e.latency_ms >= 0) = 0, NULL, latency_ms_p50_p95_p99[1]) AS latency_ms_p50,
        if(countIf(e.latency_ms >= 0) = 0, NULL, latency_ms_p50_p95_p99[2]) AS latency_ms_p95,
        countIf(e.state = 'failed_over') AS failed_over,
        sumMapIf(map(e.error, toUInt64(1)), e.error != '') AS errors,
        errors['throttled'] AS throttled,
        toString(e.provider) AS provider_name
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
                f.state = 'unknown' OR startsWith(f.detail, 'in doubt'), 'in doubt',
                f.state = 'failed' AND f.reason = 'provider_account', 'account',
                f.state NOT IN ('retrying', 'failed_over', 'failed'), '',
                match(
                    f.detail,
                    concat(
                        '^(429|14107|20429|21611|30001|QUOTA_EXCEEDED|TooManyRequests|TooManyProviderTokenUpdates|454|',
                        '\\d{3} 4\\.7)\\b'))
                    AND NOT match(f.detail, ' at AUTH'), 'throttled',
                'transient') AS error
        FROM delivery_events_raw AS f FINAL
        WHERE f.provider != ''
    ) AS e
    GROUP BY e.provider, e.channel, toStartOfHour(e.occurred_at)
) AS s
LEFT JOIN
(
    SELECT toString(c.provider) AS provider_name, c.price_per_message AS price_per_message, c.currency AS currency
    FROM provider_prices AS c FINAL
) AS p ON p.provider_name = s.provider_name
SETTINGS do_not_merge_across_partitions_select_final = 1, join_use_nulls = 1;

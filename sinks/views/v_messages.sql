-- One wide row per message: the request's tags and times, what was rendered, where it went, what it came to. Both sides of the first
-- join are read in the order of their sort key, so that the first rows come at once, and a filter on the key or on accepted_at
-- skips on both. Hash is for what merging cannot do: a filter on the request alone makes a semi-join of it.
CREATE OR REPLACE VIEW v_messages AS
SELECT
    toUUID(UUIDNumToString(m.message_id)) AS message_id,
    toUUID(UUIDNumToString(m.notification_id)) AS notification_id,
    m.tenant AS tenant,
    -- As the indexes of both tables have it.
    fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(m.notification_id, 1, 6)))), 4102444799999), 'UTC') AS accepted_at,
    m.hour AS hour,
    m.lane AS lane,
    m.channel AS channel,
    m.recipient AS recipient,
    m.user_id AS user_id,
    m.tags AS tags,
    m.source AS source,
    m.correlation_id AS correlation_id,
    nullIf(m.send_at, toDateTime64(0, 3, 'UTC')) AS send_at,
    nullIf(m.expires_at, toDateTime64(0, 3, 'UTC')) AS expires_at,
    greatest(m.accepted_at, m.send_at) AS due_at,
    if(m.category != '', m.category, m.requested_category) AS category,
    m.requested_category AS requested_category,
    m.template_id AS template_id,
    nullIf(m.template_version, 0) AS template_version,
    nullIf(m.requested_template_version, 0) AS requested_template_version,
    m.locale AS locale,
    m.domain AS domain,
    nullIf(m.preference_version, 0) AS preference_version,
    m.state AS state,
    m.reason AS reason,
    m.detail AS detail,
    toBool(m.settled) AS settled,
    m.provider AS provider,
    m.provider_message_id AS provider_message_id,
    m.failed_over_from AS failed_over_from,
    m.attempts AS attempts,
    toBool(m.possible_duplicate) AS possible_duplicate,
    m.sent_at AS sent_at,
    m.delivered_at AS delivered_at,
    m.settled_at AS settled_at,
    m.last_event_at AS last_event_at,
    dateDiff('millisecond', due_at, m.sent_at) AS sent_ms,
    dateDiff('millisecond', due_at, m.delivered_at) AS delivered_ms,
    if(empty(m.error_words[3]), m.error_words[4], m.error_words[3]) AS last_error,
    m.last_error_at AS last_error_at,
    bitTestAny(m.seen, 15, 16, 17) AS was_sent,
    if(has(a.reports, 'delivered') OR bitTest(m.seen, 17), bitTest(m.seen, 17), NULL) AS was_delivered,
    if(has(a.reports, 'opened') OR bitTest(m.seen, 21), bitTest(m.seen, 21), NULL) AS was_opened,
    if(has(a.reports, 'clicked') OR bitTest(m.seen, 22), bitTest(m.seen, 22), NULL) AS was_clicked,
    arrayFilter(
        word -> bitTest(m.seen, indexOf(
            ['accepted', 'scheduled', 'held', 'routed', 'sending', 'unknown', 'dead_lettered', 'simulated', 'skipped',
             'suppressed', 'expired', 'cancelled', 'rejected', 'failed', 'sent', 'undelivered', 'delivered', 'bounced',
             'retrying', 'failed_over', 'opened', 'clicked', 'complained', 'unsubscribed', 'read'], word)),
        ['opened', 'clicked', 'complained', 'unsubscribed', 'read']) AS engagement,
    p.price_per_message AS price,
    if(p.provider = '', NULL, p.currency) AS currency
FROM
(
    SELECT
        l.*, r.user_id AS user_id, r.tags AS tags, r.source AS source, r.correlation_id AS correlation_id,
        r.send_at AS send_at, r.expires_at AS expires_at, r.category AS requested_category,
        r.template_version AS requested_template_version
    FROM message_latest AS l
    LEFT ANY JOIN
    (
        SELECT
            q.tenant AS tenant, q.hour AS hour, q.notification_id AS notification_id, q.user_id AS user_id,
            q.tags AS tags, q.source AS source, q.correlation_id AS correlation_id, q.send_at AS send_at,
            q.expires_at AS expires_at, q.category AS category, q.template_version AS template_version
        FROM requests_raw AS q FINAL
    ) AS r ON r.tenant = l.tenant AND r.hour = l.hour AND r.notification_id = l.notification_id
    SETTINGS
        do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0,
        optimize_move_to_prewhere_if_final = 1, join_algorithm = 'full_sorting_merge,hash'
) AS m
LEFT JOIN
(
    SELECT toString(c.provider) AS provider, c.price_per_message AS price_per_message, toString(c.currency) AS currency
    FROM provider_prices AS c FINAL
) AS p ON p.provider = m.provider
LEFT JOIN
(
    SELECT toString(k.provider) AS provider, toString(k.channel) AS channel, groupUniqArrayArray(k.reports) AS reports
    FROM account_states AS k
    GROUP BY k.provider, k.channel
) AS a ON a.provider = m.provider AND a.channel = m.channel;

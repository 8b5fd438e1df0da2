-- One wide row per message: the request's tags and times, what was rendered, where it went, what it came to. Both sides of the first
-- join are read in the order of their sort key, and a filter on the key or on accepted_at skips on both.
CREATE OR REPLACE VIEW v_messages AS
SELECT
    toUUID(UUIDNumToString(m.message_id)) AS message_id,
    toUUID(UUIDNumToString(m.notification_id)) AS notification_id,
    m.tenant AS tenant,
    m.accepted_at AS accepted_at,
    m.hour AS hour,
    m.lane AS lane,
    m.channel AS channel,
    m.recipient AS recipient,
    r.user_id AS user_id,
    r.tags AS tags,
    r.source AS source,
    r.correlation_id AS correlation_id,
    nullIf(r.send_at, toDateTime64(0, 3, 'UTC')) AS send_at,
    nullIf(r.expires_at, toDateTime64(0, 3, 'UTC')) AS expires_at,
    greatest(m.accepted_at, r.send_at) AS due_at,
    if(m.category != '', m.category, r.category) AS category,
    r.category AS requested_category,
    m.template_id AS template_id,
    nullIf(m.template_version, 0) AS template_version,
    nullIf(r.template_version, 0) AS requested_template_version,
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
FROM message_latest AS m
LEFT JOIN
(
    SELECT
        q.tenant AS tenant, q.hour AS hour, q.notification_id AS notification_id,
        q.accepted_at AS accepted_at, q.user_id AS user_id, q.tags AS tags,
        q.source AS source, q.correlation_id AS correlation_id, q.send_at AS send_at, q.expires_at AS expires_at,
        q.category AS category, q.template_version AS template_version
    FROM requests_raw AS q FINAL
    SETTINGS do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0
) AS r ON r.tenant = m.tenant AND r.hour = m.hour AND r.notification_id = m.notification_id
    AND r.accepted_at = m.accepted_at
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

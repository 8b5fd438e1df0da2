-- Questions people ask. What each column means is in docs/analytics.md. A filter on tenant and hour reaches the sort key.

CREATE OR REPLACE VIEW v_accounting AS
SELECT
    n.tenant AS tenant,
    n.hour AS hour,
    countIf(n.accepted) AS accepted,
    countIf(n.accepted AND n.state = 'unknown') AS unknown,
    countIf(n.accepted AND n.state = 'dead_lettered') AS dead_lettered,
    countIf(n.accepted AND n.state = 'simulated') AS simulated,
    countIf(n.accepted AND n.state = 'skipped') AS skipped,
    countIf(n.accepted AND n.state = 'suppressed') AS suppressed,
    countIf(n.accepted AND n.state = 'expired') AS expired,
    countIf(n.accepted AND n.state = 'cancelled') AS cancelled,
    countIf(n.accepted AND n.state = 'rejected') AS rejected,
    countIf(n.accepted AND n.state = 'failed') AS failed,
    countIf(n.accepted AND n.state = 'sent') AS sent,
    countIf(n.accepted AND n.state = 'undelivered') AS undelivered,
    countIf(n.accepted AND n.state = 'delivered') AS delivered,
    countIf(n.accepted AND n.state = 'bounced') AS bounced,
    countIf(n.accepted AND NOT n.settled) AS in_flight,
    countIf(n.accepted AND NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15))
        + countIf(NOT n.accepted)
        + sum(n.conflicts) AS residual
FROM notification_latest AS n
GROUP BY n.tenant, n.hour;

-- What makes a residual, one row per finding.
CREATE OR REPLACE VIEW v_residual AS
SELECT
    n.tenant AS tenant,
    n.hour AS hour,
    toUUID(UUIDNumToString(n.notification_id)) AS notification_id,
    multiIf(
        NOT n.accepted, 'a status without a request',
        n.conflicts > 0, 'conflicting outcomes of one attempt',
        'in flight for longer than it should be') AS finding,
    n.state AS state,
    n.due_at AS due_at,
    n.last_event_at AS last_event_at
FROM notification_latest AS n
WHERE NOT n.accepted OR n.conflicts > 0 OR (NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15));

-- `seen` has bit n for the n-th word of the list in message_states_from_events: routed 4, sent 15, undelivered 16, ...
CREATE OR REPLACE VIEW v_funnel AS
SELECT
    m.tenant AS tenant,
    m.hour AS hour,
    m.channel AS channel,
    m.lane AS lane,
    m.template_id AS template_id,
    count() AS messages,
    countIf(bitTest(m.seen, 4)) AS routed,
    countIf(bitTestAny(m.seen, 15, 16, 17)) AS sent,
    countIf(bitTest(m.seen, 17)) AS delivered,
    countIf(bitTest(m.seen, 21)) AS opened,
    countIf(bitTest(m.seen, 22)) AS clicked,
    countIf(bitTest(m.seen, 23)) AS complained,
    countIf(bitTest(m.seen, 24)) AS unsubscribed,
    countIf(bitTest(m.seen, 25)) AS read,
    countIf(m.state IN ('undelivered', 'bounced', 'rejected', 'failed', 'dead_lettered')) AS failed,
    countIf(m.state IN ('skipped', 'suppressed', 'expired', 'cancelled')) AS not_wanted,
    countIf(NOT m.settled) AS in_flight
FROM message_latest AS m
GROUP BY m.tenant, m.hour, m.channel, m.lane, m.template_id;

CREATE OR REPLACE VIEW v_provider_scorecard AS
SELECT
    e.provider AS provider,
    e.channel AS channel,
    toStartOfHour(e.occurred_at) AS hour,
    countIf(e.state IN ('sent', 'retrying', 'rejected', 'failed', 'unknown') OR (e.state = 'bounced' AND e.latency_ms >= 0))
        AS attempts,
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
    quantilesExactIf(0.5, 0.95, 0.99)(e.latency_ms, e.latency_ms >= 0) AS latency_ms_p50_p95_p99
FROM delivery_events_raw AS e FINAL
WHERE e.provider != ''
GROUP BY e.provider, e.channel, toStartOfHour(e.occurred_at)
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- From acceptance, or from send_at where one was given, in milliseconds.
CREATE OR REPLACE VIEW v_latency AS
SELECT
    m.tenant AS tenant,
    m.hour AS hour,
    m.channel AS channel,
    m.lane AS lane,
    countIf(m.sent_at IS NOT NULL) AS sent,
    quantilesExactIf(0.5, 0.95, 0.99)(
        dateDiff('millisecond', greatest(m.accepted_at, s.send_at), assumeNotNull(m.sent_at)), m.sent_at IS NOT NULL)
        AS sent_ms_p50_p95_p99,
    countIf(m.delivered_at IS NOT NULL) AS delivered,
    quantilesExactIf(0.5, 0.95, 0.99)(
        dateDiff('millisecond', greatest(m.accepted_at, s.send_at), assumeNotNull(m.delivered_at)),
        m.delivered_at IS NOT NULL) AS delivered_ms_p50_p95_p99
FROM message_latest AS m
-- Few notifications are scheduled: the joined side is small.
LEFT JOIN
(
    SELECT n.tenant AS tenant, n.notification_id AS notification_id, max(n.send_at) AS send_at
    FROM notification_states AS n
    WHERE n.send_at > 0
    GROUP BY n.tenant, n.notification_id
) AS s ON s.tenant = m.tenant AND s.notification_id = m.notification_id
GROUP BY m.tenant, m.hour, m.channel, m.lane;

-- One row per message, and per notification that has none, with the reason in words.
CREATE OR REPLACE VIEW v_why AS
SELECT
    toUUID(UUIDNumToString(f.notification_id)) AS notification_id,
    if(f.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(f.message_id))) AS message_id,
    f.tenant AS tenant,
    f.channel AS channel,
    f.state AS state,
    f.reason AS reason,
    concat(
        transform(
            f.state,
            ['accepted', 'scheduled', 'held', 'routed', 'sending', 'unknown', 'dead_lettered', 'simulated', 'skipped',
             'suppressed', 'expired', 'cancelled', 'rejected', 'failed', 'sent', 'undelivered', 'delivered', 'bounced'],
            ['Accepted, waits for the router', 'Waits for its send_at', 'Waits for quiet hours or a digest',
             'Routed, waits for a sender', 'Being sent', 'Nobody knows whether it was sent', 'Given up by us',
             'Dry run', 'Not sent', 'Not sent', 'Not sent', 'Not sent', 'Cannot be sent', 'The provider did not take it',
             'The provider took it', 'The carrier gave up', 'The provider says it arrived',
             'Refused by the receiving side'],
            f.state),
        transform(
            f.reason,
            ['', 'in_doubt', 'undecodable', 'internal_error', 'dry_run', 'opted_out', 'no_address', 'capped',
             'quiet_hours_drop', 'suppressed_address', 'past_expiry', 'by_caller', 'unknown_template',
             'unknown_recipient', 'missing_variable', 'template_error', 'invalid_address', 'provider_rejected',
             'retries_exhausted', 'provider_account', 'carrier', 'hard_bounce', 'soft_bounce', 'invalid_number',
             'invalid_token'],
            ['', ': the answer was lost and it may go out at most once', ': the record is not what its topic holds',
             ': an error of ours', '', ': the recipient has opted out', ': there is no address for this channel',
             ': the recipient has had enough for now', ': it would have arrived in quiet hours',
             ': the address is on the suppression list', ': it came past its expiry', ': the caller cancelled it',
             ': the template or its version does not exist', ': the recipient is unknown',
             ': a variable of the template is missing', ': the template could not be rendered',
             ': the address is malformed', ': the provider refuses such a message',
             ': every attempt failed', ': our account there is at fault', '', ': the address does not exist',
             ': the mailbox cannot take it now', ': the number does not exist', ': the device token is no longer valid'],
            concat(': ', f.reason)),
        if(f.detail = '', '', concat(' (', f.detail, ')')),
        if(f.attempts > 1, concat(', after ', toString(f.attempts), ' attempts'), ''),
        if(f.possible_duplicate, '; it may have arrived more than once', '')) AS why,
    f.provider AS provider,
    f.attempts AS attempts,
    f.accepted_at AS accepted_at,
    f.last_event_at AS last_event_at,
    f.hour AS hour
FROM
(
    SELECT
        m.notification_id AS notification_id, m.message_id AS message_id, m.tenant AS tenant, m.channel AS channel,
        m.state AS state, m.reason AS reason, m.detail AS detail, m.provider AS provider, m.attempts AS attempts,
        m.possible_duplicate AS possible_duplicate, m.accepted_at AS accepted_at, m.last_event_at AS last_event_at,
        m.hour AS hour
    FROM message_latest AS m
    UNION ALL
    SELECT
        n.notification_id AS notification_id, toFixedString('', 16) AS message_id, n.tenant AS tenant, '' AS channel,
        n.state AS state, n.reason AS reason, n.detail AS detail, '' AS provider, 0 AS attempts,
        n.possible_duplicate AS possible_duplicate, n.accepted_at AS accepted_at, n.last_event_at AS last_event_at,
        n.hour AS hour
    FROM notification_latest AS n
    WHERE n.messages = 0
) AS f;

-- What went wrong, by cause, with one notification to look at (its v_why has the words).
CREATE OR REPLACE VIEW v_failures AS
SELECT
    f.tenant AS tenant,
    f.hour AS hour,
    f.channel AS channel,
    f.provider AS provider,
    f.state AS state,
    f.reason AS reason,
    count() AS failures,
    max(f.last_event_at) AS last_at,
    argMax(f.detail, (f.last_event_at, f.notification_id, f.message_id)) AS example_detail,
    toUUID(UUIDNumToString(argMax(f.notification_id, (f.last_event_at, f.notification_id, f.message_id))))
        AS example_notification_id
FROM
(
    SELECT
        m.tenant AS tenant, m.hour AS hour, m.channel AS channel, m.provider AS provider, m.state AS state,
        m.reason AS reason, m.detail AS detail, m.last_event_at AS last_event_at, m.notification_id AS notification_id,
        m.message_id AS message_id
    FROM message_latest AS m
    WHERE m.state IN ('unknown', 'dead_lettered', 'rejected', 'failed', 'undelivered', 'bounced')
    UNION ALL
    SELECT
        n.tenant AS tenant, n.hour AS hour, '' AS channel, '' AS provider, n.state AS state, n.reason AS reason,
        n.detail AS detail, n.last_event_at AS last_event_at, n.notification_id AS notification_id,
        toFixedString('', 16) AS message_id
    FROM notification_latest AS n
    WHERE n.messages = 0 AND n.state IN ('dead_lettered', 'rejected')
) AS f
GROUP BY f.tenant, f.hour, f.channel, f.provider, f.state, f.reason;

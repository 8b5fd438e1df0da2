-- What feeds the states no longer sums up what is inserted together: the tables do that themselves, with every insert
-- (optimize_on_insert) and every merge. To group the rows of an insert first was a quarter of what it cost the engine.
-- A row of the states is a fact or more, as before; `touches` counts facts instead of the messages of an insert.

ALTER TABLE message_states_from_events MODIFY QUERY
SELECT
    e.tenant AS tenant,
    e.hour AS hour,
    e.notification_id AS notification_id,
    e.message_id AS message_id,
    e.accepted_at AS accepted_at,
    e.channel AS channel,
    e.lane AS lane,
    e.template_id AS template_id,
    e.template_version AS template_version,
    concat(
        char(e.rank + 1), reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
        e.state, '\0', e.reason, '\0', e.detail) AS latest,
    concat(
        char((e.provider != '') + (e.provider_message_id != '')),
        char(e.rank + 1), reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
        e.provider, '\0', e.provider_message_id) AS via,
    e.attempt AS attempts,
    toUInt8(e.possible_duplicate) AS possible_duplicate,
    -- The first proof that it was sent: a report may be the only one.
    if(e.state IN ('sent', 'delivered', 'undelivered'), e.occurred_at, NULL) AS sent_at,
    if(e.state = 'delivered', e.occurred_at, NULL) AS delivered_at,
    if(e.state = 'retrying', e.occurred_at, toDateTime64(0, 3, 'UTC')) AS retrying_at,
    e.occurred_at AS last_event_at,
    bitShiftLeft(
        toUInt32(1),
        indexOf(
            ['accepted', 'scheduled', 'held', 'routed', 'sending', 'unknown', 'dead_lettered', 'simulated', 'skipped',
             'suppressed', 'expired', 'cancelled', 'rejected', 'failed', 'sent', 'undelivered', 'delivered', 'bounced',
             'retrying', 'failed_over', 'opened', 'clicked', 'complained', 'unsubscribed', 'read'],
            e.state)) AS seen,
    if(
        e.attempt > 0 AND e.state IN
            ('sent', 'undelivered', 'delivered', 'failed', 'rejected', 'simulated', 'skipped', 'suppressed', 'expired',
             'cancelled'),
        [16 * toInt64(e.attempt) + transform(
            e.state,
            ['failed', 'rejected', 'simulated', 'skipped', 'suppressed', 'expired', 'cancelled'],
            [2, 3, 4, 5, 6, 7, 8],
            1)],
        []) AS outcomes,
    -- A report knows the address alone.
    if(e.source_topic = '' AND e.provider != '', '', e.recipient) AS recipient,
    e.category AS category,
    e.locale AS locale,
    e.domain AS domain,
    e.preference_version AS preference_version,
    if(
        e.state = 'failed_over',
        concat(reverse(reinterpretAsFixedString(e.attempt)), e.provider),
        '') AS failed_over,
    if(
        e.state IN ('retrying', 'failed_over', 'unknown', 'failed', 'rejected', 'bounced', 'undelivered'),
        concat(
            reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
            reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.due_at))),
            e.state, '\0', e.provider, '\0', e.code, '\0', e.detail),
        '') AS last_error,
    if(
        e.provider != '' AND e.attempt > 0 AND (
            e.state IN ('sent', 'retrying', 'failed_over', 'rejected', 'failed', 'unknown')
            OR (e.state = 'bounced' AND e.latency_ms >= 0)),
        [e.attempt],
        []) AS requested
FROM delivery_events_raw AS e
WHERE e.message_id != toFixedString('', 16);

ALTER TABLE notification_states_from_requests MODIFY QUERY
SELECT
    r.tenant AS tenant,
    r.hour AS hour,
    r.notification_id AS notification_id,
    r.accepted_at AS accepted_at,
    toUInt8(1) AS accepted,
    r.lane AS lane,
    r.expires_at AS expires_at,
    r.send_at AS send_at,
    r.accepted_at AS last_event_at,
    r.template_id AS template_id
FROM requests_raw AS r;

ALTER TABLE notification_states_from_events MODIFY QUERY
SELECT
    e.tenant AS tenant,
    e.hour AS hour,
    e.notification_id AS notification_id,
    e.accepted_at AS accepted_at,
    e.lane AS lane,
    concat(
        char(e.rank + 1), reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(e.occurred_at))), e.event_id,
        e.state, '\0', e.reason, '\0', e.detail) AS latest,
    toUInt8(e.possible_duplicate) AS possible_duplicate,
    e.occurred_at AS last_event_at,
    e.template_id AS template_id,
    e.recipient AS recipient
FROM delivery_events_raw AS e
WHERE e.message_id = toFixedString('', 16);

-- The same of accounts, without an array and a text for each fact that is neither a report nor an error.
ALTER TABLE account_states_from_events MODIFY QUERY
SELECT
    e.provider AS provider,
    e.channel AS channel,
    groupUniqArrayIf(
        toString(e.state),
        e.state IN ('delivered', 'undelivered', 'opened', 'clicked', 'complained', 'unsubscribed', 'read')) AS reports,
    maxIf(e.occurred_at, e.state = 'sent') AS taken_at,
    maxIf(
        (e.occurred_at, e.event_id, e.code), e.state IN ('retrying', 'failed_over', 'unknown', 'failed')) AS latest_error,
    if(
        latest_error.1 = toDateTime64(0, 3, 'UTC'),
        '',
        concat(
            reverse(reinterpretAsFixedString(toUnixTimestamp64Milli(latest_error.1))), latest_error.2, latest_error.3))
        AS last_error
FROM delivery_events_raw AS e
WHERE e.provider != ''
GROUP BY e.provider, e.channel;

-- The raw tables and states as people read them: one row per id, ids as UUID.
-- do_not_merge_across_partitions_select_final is right because the partition is a function of the id.

CREATE OR REPLACE VIEW requests AS
SELECT
    toUUID(UUIDNumToString(r.notification_id)) AS notification_id,
    r.tenant AS tenant,
    r.accepted_at AS accepted_at,
    r.lane AS lane,
    r.category AS category,
    r.template_id AS template_id,
    r.strategy AS strategy,
    r.delivery AS delivery,
    r.tags AS tags,
    r.source AS source,
    r.correlation_id AS correlation_id,
    r.hour AS hour,
    nullIf(r.template_version, 0) AS template_version,
    r.user_id AS user_id,
    r.keyed AS keyed,
    nullIf(r.expires_at, toDateTime64(0, 3, 'UTC')) AS expires_at,
    nullIf(r.send_at, toDateTime64(0, 3, 'UTC')) AS send_at,
    r.dry_run AS dry_run,
    r.channels AS channels,
    r.generation AS generation
FROM requests_raw AS r FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW delivery_events AS
SELECT
    toUUID(UUIDNumToString(e.event_id)) AS event_id,
    toUUID(UUIDNumToString(e.notification_id)) AS notification_id,
    if(e.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(e.message_id))) AS message_id,
    e.tenant AS tenant,
    e.channel AS channel,
    e.lane AS lane,
    e.state AS state,
    e.reason AS reason,
    e.provider AS provider,
    e.provider_message_id AS provider_message_id,
    e.attempt AS attempt,
    e.possible_duplicate AS possible_duplicate,
    e.template_id AS template_id,
    nullIf(e.template_version, 0) AS template_version,
    e.accepted_at AS accepted_at,
    e.occurred_at AS occurred_at,
    nullIf(e.latency_ms, -1) AS latency_ms,
    e.correlation_id AS correlation_id,
    e.hour AS hour,
    e.rank AS rank,
    e.detail AS detail,
    nullIf(e.preference_version, 0) AS preference_version,
    e.source_topic AS source_topic,
    e.source_partition AS source_partition,
    e.source_offset AS source_offset
FROM delivery_events_raw AS e FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW receipts AS
SELECT
    toUUID(UUIDNumToString(r.event_id)) AS event_id,
    r.provider AS provider,
    r.provider_message_id AS provider_message_id,
    if(r.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(r.message_id))) AS message_id,
    r.state AS state,
    r.reason AS reason,
    r.code AS code,
    r.occurred_at AS occurred_at,
    r.received_at AS received_at
FROM receipts_raw AS r FINAL;

CREATE OR REPLACE VIEW dead_letters AS
SELECT
    toUUID(UUIDNumToString(d.dead_letter_id)) AS dead_letter_id,
    d.topic AS topic,
    d.partition AS partition,
    d.offset AS offset,
    d.stage AS stage,
    d.reason AS reason,
    d.error_class AS error_class,
    d.detail AS detail,
    d.attempts AS attempts,
    d.tenant AS tenant,
    if(d.notification_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(d.notification_id))) AS notification_id,
    if(d.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(d.message_id))) AS message_id,
    d.occurred_at AS occurred_at,
    d.key AS key,
    d.value AS value
FROM dead_letters_raw AS d FINAL;

-- One row per message, ids as stored, for other views and for queries that need the sort order.
CREATE OR REPLACE VIEW message_latest AS
SELECT
    tenant,
    hour,
    notification_id,
    message_id,
    accepted_at,
    channel,
    lane,
    template_id,
    template_version,
    -- A message exists only once it is routed: with nothing but retries or opens known so far, that is its state.
    ascii(fact) - 1 AS known_rank,
    splitByChar('\0', substring(fact, 26)) AS words,
    if(known_rank < 0, 'routed', words[1]) AS state,
    if(known_rank < 0, 3, known_rank) AS rank,
    if(known_rank < 0, '', words[2]) AS reason,
    if(known_rank < 0, '', words[3]) AS detail,
    rank >= 10 AS settled,
    if(settled, fromUnixTimestamp64Milli(reinterpretAsInt64(reverse(substring(fact, 2, 8))), 'UTC'), NULL) AS settled_at,
    splitByChar('\0', substring(account, 27)) AS names,
    names[1] AS provider,
    names[2] AS provider_message_id,
    attempts,
    possible_duplicate,
    sent_at,
    delivered_at,
    -- Known to wait: a retry comes within 66 minutes (an hour's Retry-After and its jitter), what is held within a day.
    multiIf(settled, 0, retrying_at > 0 AND retrying_at = last_event_at, 3960, state = 'held', 86400, 0) AS waits_s,
    last_event_at,
    seen,
    -- Two outcomes of one attempt exclude each other, unless the message is flagged: then the flag is the explanation.
    NOT possible_duplicate
        AND length(outcomes) > length(arrayDistinct(arrayMap(outcome -> intDiv(outcome, 16), outcomes))) AS conflicting
FROM
(
    SELECT
        m.tenant AS tenant,
        m.hour AS hour,
        m.notification_id AS notification_id,
        m.message_id AS message_id,
        max(m.accepted_at) AS accepted_at,
        max(m.channel) AS channel,
        max(m.lane) AS lane,
        max(m.template_id) AS template_id,
        max(m.template_version) AS template_version,
        max(m.latest) AS fact,
        max(m.via) AS account,
        max(m.attempts) AS attempts,
        max(m.possible_duplicate) AS possible_duplicate,
        min(m.sent_at) AS sent_at,
        min(m.delivered_at) AS delivered_at,
        max(m.retrying_at) AS retrying_at,
        max(m.last_event_at) AS last_event_at,
        groupBitOr(m.seen) AS seen,
        groupUniqArrayArray(m.outcomes) AS outcomes
    FROM message_states AS m
    GROUP BY m.tenant, m.hour, m.notification_id, m.message_id
);

-- One row per notification, ids as stored. While a message is unsettled its state is the least advanced of those; then the
-- best that a message has; facts about the notification as a whole count when there are no messages.
CREATE OR REPLACE VIEW notification_latest AS
SELECT
    tenant,
    hour,
    notification_id,
    accepted_at,
    accepted,
    lane,
    messages,
    unsettled,
    multiIf(
        messages = 0, if(whole_state = '', 'accepted', whole_state),
        unsettled > 0, least_advanced,
        best) AS state,
    multiIf(messages = 0, whole_rank, unsettled > 0, least_rank, best_rank) AS rank,
    rank >= 10 AS settled,
    multiIf(messages = 0, whole_reason, least_reason = greatest_reason, least_reason, '') AS reason,
    if(messages = 0, whole_detail, '') AS detail,
    if(settled, if(messages = 0, whole_settled_at, messages_settled_at), NULL) AS settled_at,
    if(least_channel = greatest_channel, least_channel, '') AS channel,
    if(least_provider = greatest_provider, least_provider, '') AS provider,
    attempts,
    possible_duplicate,
    conflicts,
    expires_at,
    send_at,
    last_event_at,
    -- When it should have come further. expires_at shortens that, but for what is known to wait for a timer.
    multiIf(
        waits_s > 0 OR send_at > last_event_at, greatest(send_at, addSeconds(last_event_at, waits_s)),
        expires_at > 0, least(expires_at, last_event_at),
        last_event_at) AS due_at
FROM
(
    SELECT
        f.tenant AS tenant,
        f.hour AS hour,
        f.notification_id AS notification_id,
        max(f.accepted_at) AS accepted_at,
        max(f.accepted) AS accepted,
        max(f.lane) AS lane,
        countIf(f.message) AS messages,
        countIf(f.message AND f.rank < 10) AS unsettled,
        argMinIf(f.state, f.rank, f.message AND f.rank < 10) AS least_advanced,
        minIf(f.rank, f.message AND f.rank < 10) AS least_rank,
        argMinIf(f.state, f.place, f.message AND f.rank >= 10) AS best,
        argMinIf(f.rank, f.place, f.message AND f.rank >= 10) AS best_rank,
        minIf(f.reason, f.message) AS least_reason,
        maxIf(f.reason, f.message) AS greatest_reason,
        minIf(f.channel, f.message) AS least_channel,
        maxIf(f.channel, f.message) AS greatest_channel,
        minIf(f.provider, f.message) AS least_provider,
        maxIf(f.provider, f.message) AS greatest_provider,
        maxIf(f.state, NOT f.message) AS whole_state,
        maxIf(f.rank, NOT f.message) AS whole_rank,
        maxIf(f.reason, NOT f.message) AS whole_reason,
        maxIf(f.detail, NOT f.message) AS whole_detail,
        maxIf(f.settled_at, NOT f.message) AS whole_settled_at,
        maxIf(f.settled_at, f.message) AS messages_settled_at,
        sum(f.attempts) AS attempts,
        max(f.possible_duplicate) AS possible_duplicate,
        countIf(f.conflicting) AS conflicts,
        max(f.expires_at) AS expires_at,
        max(f.send_at) AS send_at,
        max(f.waits_s) AS waits_s,
        max(f.last_event_at) AS last_event_at
    FROM
    (
        SELECT
            m.tenant AS tenant,
            m.hour AS hour,
            m.notification_id AS notification_id,
            1 AS message,
            m.accepted_at AS accepted_at,
            0 AS accepted,
            m.lane AS lane,
            m.state AS state,
            m.rank AS rank,
            indexOf(
                ['delivered', 'sent', 'simulated', 'unknown', 'undelivered', 'bounced', 'failed', 'rejected',
                 'suppressed', 'skipped', 'expired', 'cancelled', 'dead_lettered'],
                m.state) AS place,
            m.reason AS reason,
            m.detail AS detail,
            m.channel AS channel,
            m.provider AS provider,
            m.settled_at AS settled_at,
            m.attempts AS attempts,
            m.possible_duplicate AS possible_duplicate,
            m.conflicting AS conflicting,
            toDateTime64(0, 3, 'UTC') AS expires_at,
            toDateTime64(0, 3, 'UTC') AS send_at,
            m.waits_s AS waits_s,
            m.last_event_at AS last_event_at
        FROM message_latest AS m
        UNION ALL
        SELECT
            w.tenant AS tenant,
            w.hour AS hour,
            w.notification_id AS notification_id,
            0 AS message,
            w.accepted_at AS accepted_at,
            w.accepted AS accepted,
            w.lane AS lane,
            if(w.known_rank < 0, '', w.words[1]) AS state,
            greatest(w.known_rank, 0) AS rank,
            0 AS place,
            if(w.known_rank < 0, '', w.words[2]) AS reason,
            if(w.known_rank < 0, '', w.words[3]) AS detail,
            '' AS channel,
            '' AS provider,
            if(
                w.known_rank >= 10,
                fromUnixTimestamp64Milli(reinterpretAsInt64(reverse(substring(w.fact, 2, 8))), 'UTC'),
                NULL) AS settled_at,
            0 AS attempts,
            w.possible_duplicate AS possible_duplicate,
            0 AS conflicting,
            w.expires_at AS expires_at,
            w.send_at AS send_at,
            0 AS waits_s,
            w.last_event_at AS last_event_at
        FROM
        (
            SELECT
                n.tenant AS tenant,
                n.hour AS hour,
                n.notification_id AS notification_id,
                max(n.accepted_at) AS accepted_at,
                max(n.accepted) AS accepted,
                max(n.lane) AS lane,
                max(n.latest) AS fact,
                ascii(fact) - 1 AS known_rank,
                splitByChar('\0', substring(fact, 26)) AS words,
                max(n.possible_duplicate) AS possible_duplicate,
                max(n.expires_at) AS expires_at,
                max(n.send_at) AS send_at,
                max(n.last_event_at) AS last_event_at
            FROM notification_states AS n
            GROUP BY n.tenant, n.hour, n.notification_id
        ) AS w
    ) AS f
    GROUP BY f.tenant, f.hour, f.notification_id
);

CREATE OR REPLACE VIEW message_state AS
SELECT
    toUUID(UUIDNumToString(m.message_id)) AS message_id,
    toUUID(UUIDNumToString(m.notification_id)) AS notification_id,
    m.tenant AS tenant,
    m.channel AS channel,
    m.lane AS lane,
    m.state AS state,
    m.reason AS reason,
    m.detail AS detail,
    m.provider AS provider,
    m.provider_message_id AS provider_message_id,
    m.attempts AS attempts,
    m.accepted_at AS accepted_at,
    m.settled_at AS settled_at,
    toBool(m.possible_duplicate) AS possible_duplicate,
    m.sent_at AS sent_at,
    m.delivered_at AS delivered_at,
    m.last_event_at AS last_event_at,
    m.template_id AS template_id,
    nullIf(m.template_version, 0) AS template_version,
    arrayFilter(
        word -> bitTest(m.seen, indexOf(
            ['accepted', 'scheduled', 'held', 'routed', 'sending', 'unknown', 'dead_lettered', 'simulated', 'skipped',
             'suppressed', 'expired', 'cancelled', 'rejected', 'failed', 'sent', 'undelivered', 'delivered', 'bounced',
             'retrying', 'failed_over', 'opened', 'clicked', 'complained', 'unsubscribed', 'read'], word)),
        ['opened', 'clicked', 'complained', 'unsubscribed', 'read']) AS engagement,
    toBool(m.conflicting) AS conflicting,
    m.hour AS hour
FROM message_latest AS m;

CREATE OR REPLACE VIEW notification_state AS
SELECT
    toUUID(UUIDNumToString(n.notification_id)) AS notification_id,
    n.tenant AS tenant,
    n.state AS state,
    n.reason AS reason,
    n.channel AS channel,
    n.provider AS provider,
    n.attempts AS attempts,
    n.accepted_at AS accepted_at,
    n.settled_at AS settled_at,
    toBool(n.possible_duplicate) AS possible_duplicate,
    n.lane AS lane,
    n.messages AS messages,
    toBool(n.accepted) AS accepted,
    n.last_event_at AS last_event_at,
    n.hour AS hour
FROM notification_latest AS n;

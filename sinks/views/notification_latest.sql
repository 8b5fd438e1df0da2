-- One row per notification, ids as stored. While a message is unsettled its state is the least advanced of those; then the
-- best that a message has; facts about the notification as a whole count when there are no messages.
CREATE OR REPLACE VIEW notification_latest AS
SELECT
    tenant,
    hour,
    notification_id,
    -- As the tables' indexes have it, so that a filter on it skips what is of other times.
    fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(notification_id, 1, 6)))), 4102444799999), 'UTC') AS accepted_at,
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
    template_id,
    recipient,
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
        toUInt8(max(f.accepted)) AS accepted,
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
        toUInt8(max(f.possible_duplicate)) AS possible_duplicate,
        countIf(f.conflicting) AS conflicts,
        max(f.expires_at) AS expires_at,
        max(f.send_at) AS send_at,
        max(f.waits_s) AS waits_s,
        toDateTime64(max(f.last_event_at), 3, 'UTC') AS last_event_at,
        max(f.template_id) AS template_id,
        toString(max(f.recipient)) AS recipient
    FROM
    (
        SELECT
            m.tenant AS tenant,
            m.hour AS hour,
            m.notification_id AS notification_id,
            1 AS message,
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
            m.last_event_at AS last_event_at,
            m.template_id AS template_id,
            m.recipient AS recipient
        FROM message_latest AS m
        UNION ALL
        SELECT
            w.tenant AS tenant,
            w.hour AS hour,
            w.notification_id AS notification_id,
            0 AS message,
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
            w.last_event_at AS last_event_at,
            w.template_id AS template_id,
            w.recipient AS recipient
        FROM
        (
            SELECT
                n.tenant AS tenant,
                n.hour AS hour,
                n.notification_id AS notification_id,
                toUInt8(n.accepted) AS accepted,
                CAST(n.lane, 'LowCardinality(String)') AS lane,
                n.latest AS fact,
                ascii(fact) - 1 AS known_rank,
                splitByChar('\0', substring(fact, 26)) AS words,
                toUInt8(n.possible_duplicate) AS possible_duplicate,
                toDateTime64(n.expires_at, 3, 'UTC') AS expires_at,
                toDateTime64(n.send_at, 3, 'UTC') AS send_at,
                toDateTime64(n.last_event_at, 3, 'UTC') AS last_event_at,
                CAST(n.template_id, 'LowCardinality(String)') AS template_id,
                toString(n.recipient) AS recipient
            FROM notification_states AS n FINAL
            SETTINGS do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0,
        optimize_move_to_prewhere_if_final = 1
        ) AS w
    ) AS f
    GROUP BY f.tenant, f.hour, f.notification_id
);

-- One row per message, ids as stored, for other views and for queries that need the sort order.
CREATE OR REPLACE VIEW message_latest AS
SELECT
    tenant,
    hour,
    notification_id,
    message_id,
    -- As the table's index has it, so that a filter on it skips what is of other times.
    fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(notification_id, 1, 6)))), 4102444799999), 'UTC') AS accepted_at,
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
    length(requested) AS attempts,
    if(empty(requested), 0, arrayMax(requested)) AS last_attempt,
    possible_duplicate,
    sent_at,
    delivered_at,
    -- Known to wait: a retry comes within 66 minutes (an hour's Retry-After and its jitter), what is held within a day.
    multiIf(settled, 0, retrying_at > 0 AND retrying_at = last_event_at, 3960, state = 'held', 86400, 0) AS waits_s,
    last_event_at,
    seen,
    recipient,
    category,
    locale,
    domain,
    preference_version,
    substring(failed_over, 5) AS failed_over_from,
    if(last_error = '', NULL, fromUnixTimestamp64Milli(reinterpretAsInt64(reverse(substring(last_error, 1, 8))), 'UTC'))
        AS last_error_at,
    fromUnixTimestamp64Milli(reinterpretAsInt64(reverse(substring(last_error, 25, 8))), 'UTC') AS goes_on_at,
    splitByChar('\0', substring(last_error, 33)) AS error_words,
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
        CAST(m.channel, 'LowCardinality(String)') AS channel,
        CAST(m.lane, 'LowCardinality(String)') AS lane,
        CAST(m.template_id, 'LowCardinality(String)') AS template_id,
        toInt32(m.template_version) AS template_version,
        m.latest AS fact,
        m.via AS account,
        toUInt8(m.possible_duplicate) AS possible_duplicate,
        toNullable(fromUnixTimestamp64Milli(toUnixTimestamp64Milli(m.sent_at), 'UTC')) AS sent_at,
        toNullable(fromUnixTimestamp64Milli(toUnixTimestamp64Milli(m.delivered_at), 'UTC')) AS delivered_at,
        toDateTime64(m.retrying_at, 3, 'UTC') AS retrying_at,
        toDateTime64(m.last_event_at, 3, 'UTC') AS last_event_at,
        toUInt32(m.seen) AS seen,
        m.outcomes AS outcomes,
        toString(m.recipient) AS recipient,
        CAST(m.category, 'LowCardinality(String)') AS category,
        CAST(m.locale, 'LowCardinality(String)') AS locale,
        CAST(m.domain, 'LowCardinality(String)') AS domain,
        toInt64(m.preference_version) AS preference_version,
        m.failed_over AS failed_over,
        m.last_error AS last_error,
        m.requested AS requested
    FROM message_states AS m FINAL
    SETTINGS do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0,
        optimize_move_to_prewhere_if_final = 1
);

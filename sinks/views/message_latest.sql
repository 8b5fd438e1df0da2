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

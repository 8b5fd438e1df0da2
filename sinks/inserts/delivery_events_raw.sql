-- DeliveryStatus → delivery_events_raw, as event_row of rows.py makes it; what that refuses, this refuses with its whole batch.
-- Constants: mark (hex), states and ranks (schemas/reasons.yaml), max_time (ms).
INSERT INTO delivery_events_raw
(
    tenant, notification_id, message_id, event_id, accepted_at, channel, lane, state, rank, reason, detail, attempt, provider,
    provider_message_id, possible_duplicate, template_id, template_version, preference_version, occurred_at, latency_ms,
    correlation_id, source_topic, source_partition, source_offset, recipient, category, locale, domain, code, due_at,
    stored_at
)
SELECT
    tenant,
    UUIDStringToNum(notification_id) AS notification,
    if(message_id IS NULL, toFixedString('', 16), UUIDStringToNum(assumeNotNull(message_id))) AS message,
    UUIDStringToNum(event_id) AS event,
    fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(notification, 1, 6)))), {max_time:Int64}), 'UTC'),
    channel,
    lane,
    state,
    transform(state, {states:Array(String)}, {ranks:Array(Int8)}, toInt8(-128)) AS rank_of_state,
    reason,
    detail,
    attempt,
    provider,
    provider_message_id,
    possible_duplicate,
    template_id,
    template_version,
    preference_version,
    fromUnixTimestamp64Milli(least(greatest(occurred_at, 0), {max_time:Int64}), 'UTC'),
    ifNull(latency_ms, -1),
    correlation_id,
    source.topic,
    if(source.topic = '', -1, source.partition),
    if(source.topic = '', -1, source.offset),
    recipient,
    category,
    locale,
    domain,
    code,
    fromUnixTimestamp64Milli(least(greatest(due_at, 0), {max_time:Int64}), 'UTC'),
    now64(3, 'UTC')
FROM input('
    event_id String, notification_id String, message_id Nullable(String), tenant String,
    channel String, lane String, state String, reason String,
    detail String, attempt Int32, provider String, provider_message_id String, possible_duplicate Bool,
    template_id String, template_version Int32, preference_version Int64, occurred_at Int64,
    latency_ms Nullable(Int32), source Tuple(topic String, partition Int32, offset Int64),
    correlation_id String, recipient String, category String, locale String, domain String, code String,
    due_at Int64,     mark FixedString(16), lane_of_topic String')
WHERE NOT throwIf(
    mark != unhex({mark:String})
    OR UUIDNumToString(notification) != notification_id
    OR substring(notification_id, 15, 1) != '7'
    OR substring(notification_id, 20, 1) NOT IN ('8', '9', 'a', 'b')
    OR UUIDNumToString(event) != event_id
    OR UUIDNumToString(message) != ifNull(message_id, '00000000-0000-0000-0000-000000000000')
    OR rank_of_state = -128
    OR NOT isValidUTF8(tenant) OR NOT isValidUTF8(channel) OR NOT isValidUTF8(lane) OR NOT isValidUTF8(reason)
    OR NOT isValidUTF8(provider) OR NOT isValidUTF8(template_id) OR NOT isValidUTF8(source.topic)
    OR NOT isValidUTF8(detail) OR NOT isValidUTF8(provider_message_id) OR NOT isValidUTF8(correlation_id)
    OR NOT isValidUTF8(recipient) OR NOT isValidUTF8(category) OR NOT isValidUTF8(locale) OR NOT isValidUTF8(domain)
    OR NOT isValidUTF8(code),
    'not exactly one DeliveryStatus each')
-- As the table and the states sort: once here, and neither has to.
ORDER BY tenant, notification, message, event
FORMAT Avro

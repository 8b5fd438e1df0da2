-- ProviderReceipt → receipts_raw, as receipt_row of rows.py makes it; what that refuses, this refuses with its whole batch.
-- Constants: mark (hex), max_time (ms).
INSERT INTO receipts_raw
(
    event_id, provider, provider_message_id, message_id, state, reason, code, occurred_at, received_at,
    stored_at
)
SELECT
    UUIDStringToNum(event_id) AS event,
    provider,
    provider_message_id,
    if(message_id IS NULL, toFixedString('', 16), UUIDStringToNum(assumeNotNull(message_id))) AS message,
    state,
    reason,
    code,
    fromUnixTimestamp64Milli(least(greatest(occurred_at, 0), {max_time:Int64}), 'UTC'),
    fromUnixTimestamp64Milli(least(greatest(received_at, 0), {max_time:Int64}), 'UTC'),
    now64(3, 'UTC')
FROM input('
    event_id String, provider String, provider_message_id String, message_id Nullable(String),
    state String, reason String, code String, occurred_at Int64,
    received_at Int64, channel String, tenants Array(String), recipient String,
    mark FixedString(16), lane_of_topic String')
WHERE NOT throwIf(
    mark != unhex({mark:String})
    OR UUIDNumToString(event) != event_id
    OR UUIDNumToString(message) != ifNull(message_id, '00000000-0000-0000-0000-000000000000')
    OR NOT isValidUTF8(provider) OR NOT isValidUTF8(state) OR NOT isValidUTF8(reason) OR NOT isValidUTF8(code)
    OR NOT isValidUTF8(provider_message_id) OR NOT isValidUTF8(channel) OR NOT isValidUTF8(recipient)
    OR NOT isValidUTF8(arrayStringConcat(tenants, ' ')),
    'not exactly one ProviderReceipt each')
FORMAT Avro

-- What providers reported later about some messages. A receipt names no tenant: it belongs to the message that has its
-- provider's id, unless it says itself that it is another's.
-- Parameters: providers and provider_message_ids (pairs), messages (32 hex digits each).
SELECT
    lower(hex(r.message_id)) AS message, r.provider AS provider, r.provider_message_id AS provider_message_id,
    r.state AS state, r.reason AS reason, r.code AS code, toUnixTimestamp64Milli(r.occurred_at) AS occurred_at,
    toUnixTimestamp64Milli(r.received_at) AS received_at
FROM receipts_raw AS r FINAL
WHERE (r.provider, r.provider_message_id) IN
    (
        SELECT arrayJoin(arrayZip({providers:Array(String)}, {provider_message_ids:Array(String)}))
    )
    AND (
        r.message_id = toFixedString('', 16)
        OR has({messages:Array(String)}, lower(hex(r.message_id))))
ORDER BY r.occurred_at, r.event_id

-- One row per provider receipt, ids as UUID.
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
    r.received_at AS received_at,
    nullIf(r.stored_at, toDateTime64(0, 3, 'UTC')) AS stored_at
FROM receipts_raw AS r FINAL;

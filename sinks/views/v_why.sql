-- One row per message, and per notification that has none, with the reason in words; ids as UUID.
CREATE OR REPLACE VIEW v_why AS
SELECT
    toUUID(UUIDNumToString(w.notification_id)) AS notification_id,
    if(w.message_id = toFixedString('', 16), NULL, toUUID(UUIDNumToString(w.message_id))) AS message_id,
    w.tenant AS tenant,
    w.channel AS channel,
    w.state AS state,
    w.reason AS reason,
    w.why AS why,
    w.waits_for AS waits_for,
    w.provider AS provider,
    w.attempts AS attempts,
    w.accepted_at AS accepted_at,
    w.last_event_at AS last_event_at,
    w.hour AS hour
FROM why_latest AS w;

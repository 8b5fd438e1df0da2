-- One row per message, ids as UUID; for people (message_latest has the ids as they are sorted).
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
    m.recipient AS recipient,
    m.category AS category,
    m.locale AS locale,
    m.domain AS domain,
    nullIf(m.preference_version, 0) AS preference_version,
    m.failed_over_from AS failed_over_from,
    m.hour AS hour
FROM message_latest AS m;

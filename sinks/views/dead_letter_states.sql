-- One row per dead letter, ids as stored: what became of it since. The first that holds:
--   dismissed     an operator set it aside, and it has not come back since
--   sent_since    its message, or its notification, was sent
--   failed_again  published again by a re-drive, and it came back, or its message ended unsent once more
--   redriven      published again, by a re-drive or with a replay of its request: on its way, or a later letter has the outcome
--   open          nothing was done about it
CREATE OR REPLACE VIEW dead_letter_states AS
SELECT
    d.dead_letter_id AS dead_letter_id,
    multiIf(
        k.dismissed_at >= d.occurred_at, 'dismissed',
        u.state IN ('sent', 'delivered', 'undelivered', 'bounced'), 'sent_since',
        k.redriven_at > toDateTime64(0, 3, 'UTC') AND d.occurred_at > k.redriven_at, 'failed_again',
        k.redriven_at >= d.occurred_at AND u.settled_at > k.redriven_at
            AND u.state IN ('failed', 'rejected', 'dead_lettered'), 'failed_again',
        k.redriven_at >= d.occurred_at OR d.later, 'redriven',
        'open') AS letter_state
FROM
(
    SELECT
        r.dead_letter_id AS dead_letter_id,
        r.occurred_at AS occurred_at,
        if(r.message_id = toFixedString('', 16), r.notification_id, r.message_id) AS about,
        if(about = toFixedString('', 16), r.dead_letter_id, about) AS subject,
        r.occurred_at < max(r.occurred_at) OVER (PARTITION BY subject) AS later
    FROM dead_letters_raw AS r FINAL
) AS d
LEFT JOIN
(
    SELECT
        i.letter_id AS letter_id,
        maxIf(i.planned_at, p.command = 'redrive' AND i.seq < p.published) AS redriven_at,
        maxIf(i.planned_at, p.command = 'dismiss') AS dismissed_at
    FROM replay_items AS i
    INNER JOIN (SELECT replay_id, command, published FROM replays_raw FINAL) AS p ON p.replay_id = i.replay_id
    WHERE i.letter_id != toFixedString('', 16)
    GROUP BY i.letter_id
) AS k ON k.letter_id = d.dead_letter_id
LEFT JOIN
(
    SELECT m.message_id AS subject, m.state AS state, ifNull(m.settled_at, toDateTime64(0, 3, 'UTC')) AS settled_at
    FROM message_latest AS m
    WHERE (m.tenant, m.hour, m.notification_id) IN (SELECT tenant, hour, notification_id FROM dead_letter_notifications)
    UNION ALL
    SELECT n.notification_id AS subject, n.state AS state, ifNull(n.settled_at, toDateTime64(0, 3, 'UTC')) AS settled_at
    FROM notification_latest AS n
    WHERE (n.tenant, n.hour, n.notification_id) IN (SELECT tenant, hour, notification_id FROM dead_letter_notifications)
) AS u ON u.subject = d.subject;

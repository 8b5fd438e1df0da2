-- One row per message that may have been taken more than once, ids as stored: the account and time of the first doubt, how
-- many of the vendor's ids are known of it (from receipts and answers), and how many of them were answers.
CREATE OR REPLACE VIEW doubted_messages AS
SELECT
    d.message_id AS message_id,
    any(d.channel) AS channel,
    argMinIf(d.provider, (d.at, d.event_id), d.flag > 0) AS provider,
    minIf(d.at, d.flag > 0) AS doubted_at,
    max(d.flag) = 2 AS flagged,
    uniqExactIf(d.vendor_id, d.vendor_id != '') AS vendor_ids,
    uniqExactIf(d.vendor_id, d.vendor_id != '' AND d.answered) AS answered_ids
FROM
(
    SELECT
        e.message_id AS message_id, toString(e.channel) AS channel, toString(e.provider) AS provider, e.occurred_at AS at,
        e.event_id AS event_id, if(e.possible_duplicate, 2, 1) AS flag, e.provider_message_id AS vendor_id,
        -- Not what a report repeats of it: that has neither a record as its source nor a latency.
        e.state = 'sent' AND NOT (e.source_topic = '' AND e.latency_ms < 0) AS answered
    FROM delivery_events_raw AS e
    WHERE (e.possible_duplicate OR e.state = 'unknown') AND e.provider != '' AND e.message_id != toFixedString('', 16)
    UNION ALL
    SELECT
        r.message_id AS message_id, '' AS channel, toString(r.provider) AS provider, r.received_at AS at,
        r.event_id AS event_id, 0 AS flag, r.provider_message_id AS vendor_id, 0 AS answered
    FROM receipts_raw AS r
    WHERE r.message_id IN
        (
            SELECT f.message_id FROM delivery_events_raw AS f
            WHERE (f.possible_duplicate OR f.state = 'unknown') AND f.provider != ''
        )
) AS d
GROUP BY d.message_id
HAVING max(d.flag) > 0;

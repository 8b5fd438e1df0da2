-- One row per message, and per notification that has none, with the reason in words; ids as stored. What waits says for what: its
-- retry, its time, what is down now (waits_for, in the words of `heliograph explain`), or how the accounts of its channel are.
CREATE OR REPLACE VIEW why_latest AS
SELECT
    f.notification_id AS notification_id,
    f.message_id AS message_id,
    f.tenant AS tenant,
    f.channel AS channel,
    f.state AS state,
    f.reason AS reason,
    (SELECT mapFromArrays(groupArray(c.place), groupArray(c.words)) FROM conditions_in_words AS c) AS down,
    multiIf(
        f.own_wait != '', f.own_wait,
        down[f.stage] != '', concat(f.state, ': ', f.stage_words, ' halted', down[f.stage]),
        down[f.lane_stage] != '', concat(f.state, ': ', f.stage_words, ' halted', down[f.lane_stage]),
        down[f.accounts] != '', concat(f.state, ': waits for ', down[f.accounts]),
        '') AS waits_for,
    concat(
        multiIf(f.waits != '', f.waits, waits_for != '', waits_for, transform(
            f.state,
            ['accepted', 'scheduled', 'held', 'routed', 'sending', 'unknown', 'dead_lettered', 'simulated', 'skipped',
             'suppressed', 'expired', 'cancelled', 'rejected', 'failed', 'sent', 'undelivered', 'delivered', 'bounced'],
            ['Accepted, waits for the router', 'Waits for its send_at', 'Waits for quiet hours or a digest',
             'Routed, waits for a sender', 'Being sent', 'Nobody knows whether it was sent', 'Given up by us',
             'Dry run', 'Not sent', 'Not sent', 'Not sent', 'Not sent', 'Cannot be sent', 'The provider did not take it',
             'The provider took it', 'The carrier gave up', 'The provider says it arrived',
             'Refused by the receiving side'],
            f.state)),
        transform(
            f.reason,
            ['', 'in_doubt', 'throttled', 'undecodable', 'internal_error', 'dry_run', 'opted_out', 'no_address', 'capped',
             'quiet_hours_drop', 'suppressed_address', 'past_expiry', 'by_caller', 'unknown_template',
             'unknown_recipient', 'missing_variable', 'template_error', 'invalid_address', 'provider_rejected',
             'retries_exhausted', 'provider_account', 'carrier', 'hard_bounce', 'soft_bounce', 'invalid_number',
             'invalid_token', 'gone'],
            ['', ': an answer was lost, so it may have arrived',
             ': the provider asked for fewer at a time', ': the record is not what its topic holds',
             ': an error of ours', ': it was asked for as a dry run', ': the recipient has opted out', ': there is no address for this channel',
             ': the recipient has had enough for now', ': it would have arrived in quiet hours',
             ': the address is on the suppression list', ': it came past its expiry', ': the caller cancelled it',
             ': the template or its version does not exist', ': the recipient is unknown',
             ': a variable of the template is missing', ': the template could not be rendered',
             ': the address is malformed', ': the provider refuses such a message',
             ': every attempt failed', ': our account there is at fault', ': it could not be delivered', ': the address does not exist',
             ': the mailbox cannot take it now', ': the number does not exist', ': the device token is no longer valid',
             ': the webhook does not exist any more'],
            concat(': ', f.reason)),
        if(f.detail = '', '', concat(' (', f.detail, ')')),
        if(f.attempts > 1, concat(', after ', toString(f.attempts), ' attempts'), ''),
        if(f.possible_duplicate, '; it may have arrived more than once', ''),
        if(f.state = 'routed' AND f.waits = '' AND waits_for = '', (
            SELECT mapFromArrays(groupArray(a.channel), groupArray(a.words)) FROM channel_accounts AS a)[f.channel], '')) AS why,
    f.provider AS provider,
    f.attempts AS attempts,
    f.accepted_at AS accepted_at,
    f.last_event_at AS last_event_at,
    f.hour AS hour
FROM
(
    SELECT
        m.notification_id AS notification_id, m.message_id AS message_id, m.tenant AS tenant, m.channel AS channel,
        m.state AS state, m.reason AS reason, m.detail AS detail, m.provider AS provider, m.attempts AS attempts,
        m.possible_duplicate AS possible_duplicate, m.accepted_at AS accepted_at, m.last_event_at AS last_event_at,
        m.hour AS hour,
        if(
            m.settled OR m.last_error_at IS NULL OR m.last_error_at != m.last_event_at, '',
            concat(
                transform(
                    m.error_words[1],
                    ['retrying', 'failed_over'],
                    ['Waits for a retry after ', 'Waits for another account after ']),
                if(m.error_words[3] = '', m.error_words[4], m.error_words[3]),
                if(m.error_words[2] = '', '', concat(' at ', m.error_words[2])),
                if(m.goes_on_at > 0, concat(', due at ', toString(toDateTime(m.goes_on_at)), ' UTC'), ''))) AS waits,
        if(
            NOT m.settled AND m.error_words[1] = 'retrying' AND m.last_error_at = m.last_event_at, concat(
                'retrying: attempt ', toString(m.last_attempt), ' got ', m.error_words[4], '; the next is made ',
                if(
                    m.goes_on_at > 0, concat('at ', replaceOne(toString(m.goes_on_at), ' ', 'T'), 'Z'),
                    'after a pause that grows with every retry')),
            '') AS own_wait,
        if(m.settled OR m.state = 'held', '', concat('sender ', m.channel)) AS stage,
        if(m.settled OR m.state = 'held', '', concat('sender ', m.channel, ' ', m.lane)) AS lane_stage,
        concat('a sender of ', m.channel) AS stage_words,
        if(m.settled OR m.state = 'held', '', concat('account ', m.channel)) AS accounts
    FROM message_latest AS m
    UNION ALL
    SELECT
        n.notification_id AS notification_id, toFixedString('', 16) AS message_id, n.tenant AS tenant, '' AS channel,
        n.state AS state, n.reason AS reason, n.detail AS detail, '' AS provider, 0 AS attempts,
        n.possible_duplicate AS possible_duplicate, n.accepted_at AS accepted_at, n.last_event_at AS last_event_at,
        n.hour AS hour,
        if(
            n.state = 'scheduled' AND n.send_at > 0,
            concat('Waits for its send_at, ', toString(toDateTime(n.send_at)), ' UTC'),
            '') AS waits,
        if(
            n.state = 'scheduled' AND n.send_at > 0,
            concat('scheduled: waits for its time, ', replaceOne(toString(n.send_at), ' ', 'T'), 'Z'),
            '') AS own_wait,
        if(n.state = 'accepted', concat('router ', n.lane), '') AS stage,
        '' AS lane_stage,
        concat('the router of lane ', n.lane) AS stage_words,
        '' AS accounts
    FROM notifications_alone AS n
) AS f;

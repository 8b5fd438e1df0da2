-- How the accounts of each channel are, in words: what a message that nobody took yet may be waiting for. Accounts that were asked
-- within a day; one that is down is told as its senders say it, with the time of the next probe.
CREATE OR REPLACE VIEW channel_accounts AS
SELECT
    a.channel AS channel,
    arrayStringConcat(arraySort(groupArray(concat(
        '; ', a.provider,
        multiIf(
            d.name != '', concat(
                ' does not work', if(isNull(d.since), '', concat(' since ', toString(toDateTime(d.since)), ' UTC')), ': ', d.detail,
                if(isNull(d.next_at), '', concat(', next probe at ', toString(toDateTime(d.next_at)), ' UTC'))),
            a.taken_at >= a.failed_at, concat(' took its last message at ', toString(toDateTime(a.taken_at)), ' UTC'),
            a.taken_at > 0, concat(' has taken nothing since ', toString(toDateTime(a.taken_at)), ' UTC'),
            ' has taken nothing yet'),
        if(
            d.name = '' AND a.failed_at > a.taken_at,
            concat(' (', a.code, if(a.code = '', 'failed', ''), ' at ', toString(toDateTime(a.failed_at)), ' UTC)'),
            ''))))) AS words
FROM
(
    SELECT
        toString(s.provider) AS provider,
        toString(s.channel) AS channel,
        toDateTime64(max(s.taken_at), 3, 'UTC') AS taken_at,
        max(s.last_error) AS packed,
        if(
            packed = '', toDateTime64(0, 3, 'UTC'),
            fromUnixTimestamp64Milli(reinterpretAsInt64(reverse(substring(packed, 1, 8))), 'UTC')) AS failed_at,
        substring(packed, 25) AS code
    FROM account_states AS s
    GROUP BY s.provider, s.channel
) AS a
LEFT JOIN (
    SELECT toString(v.name) AS name, toString(v.channel) AS channel, v.detail AS detail, v.since AS since, v.next_at AS next_at
    FROM v_conditions AS v
    WHERE v.subject = 'account'
) AS d ON d.name = a.provider AND d.channel = a.channel
WHERE greatest(a.taken_at, a.failed_at) > now64(3, 'UTC') - INTERVAL 1 DAY
GROUP BY a.channel;

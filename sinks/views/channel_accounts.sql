-- How the accounts of each channel are, in words: what a message that nobody took yet may be waiting for, where conditions_in_words
-- knows of none that is down. Accounts that were asked within a day.
CREATE OR REPLACE VIEW channel_accounts AS
SELECT
    a.channel AS channel,
    arrayStringConcat(arraySort(groupArray(concat(
        '; ', a.provider,
        multiIf(
            a.taken_at >= a.failed_at, concat(' took its last message at ', toString(toDateTime(a.taken_at)), ' UTC'),
            a.taken_at > 0, concat(' has taken nothing since ', toString(toDateTime(a.taken_at)), ' UTC'),
            ' has taken nothing yet'),
        if(
            a.failed_at > a.taken_at,
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
WHERE greatest(a.taken_at, a.failed_at) > now64(3, 'UTC') - INTERVAL 1 DAY
GROUP BY a.channel;

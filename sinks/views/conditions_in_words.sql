-- What is down now in words, a row per place: `router <lane>`, `sender <channel>` or `sender <channel> <lane>`, `account <channel>` (all
-- accounts of it that are down). The words are those of `heliograph explain`.
CREATE OR REPLACE VIEW conditions_in_words AS
SELECT
    concat(c.subject, ' ', if(c.subject = 'account', c.channel, c.name)) AS place,
    arrayStringConcat(
        arrayMap(each -> each.2, arraySlice(arraySort(groupArray((c.name, c.words))), 1, if(c.subject = 'account', 1000, 1))),
        '; ') AS words
FROM
(
    SELECT
        toString(v.subject) AS subject,
        v.name AS name,
        toString(v.channel) AS channel,
        if(v.since IS NULL, '', concat(' since ', replaceOne(toString(assumeNotNull(v.since)), ' ', 'T'), 'Z')) AS from_when,
        if(
            v.subject = 'account',
            concat(
                v.name, ': ', v.detail, from_when,
                if(
                    v.next_at IS NULL, '',
                    concat(', next probe at ', replaceOne(toString(assumeNotNull(v.next_at)), ' ', 'T'), 'Z'))),
            concat(from_when, ': ', v.detail)) AS words
    FROM v_conditions AS v
) AS c
GROUP BY c.subject, place;

-- What is down now. Parameters: none.
SELECT v.subject AS subject, v.name AS name, v.channel AS channel, v.detail AS detail,
    ifNull(toUnixTimestamp64Milli(v.since), 0) AS since, ifNull(toUnixTimestamp64Milli(v.next_at), 0) AS next_at
FROM v_conditions AS v
ORDER BY v.subject, v.name

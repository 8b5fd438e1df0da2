-- One row per opt-out and opt-in: what a profile refused at one of its versions, and not at the one before, and the reverse. Category ''
-- is the whole channel. preference_version of a fact is the profile's: the preferences of that moment are those of the greatest
-- version here that is not greater.
CREATE OR REPLACE VIEW preference_history AS
SELECT
    c.tenant AS tenant,
    c.user_id AS user_id,
    tupleElement(c.change, 1).category AS category,
    tupleElement(c.change, 1).channel AS channel,
    tupleElement(c.change, 2) = 1 AS opted_out,
    c.changed_at AS changed_at,
    c.profile_version AS profile_version,
    c.stored_at AS stored_at
FROM
(
    SELECT
        v.tenant AS tenant,
        v.user_id AS user_id,
        v.changed_at AS changed_at,
        v.profile_version AS profile_version,
        nullIf(v.stored_at, toDateTime64(0, 3, 'UTC')) AS stored_at,
        lagInFrame(v.opted_out) OVER (
            PARTITION BY v.tenant, v.user_id ORDER BY v.profile_version
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS before,
        arrayJoin(arrayConcat(
            arrayMap(pair -> (pair, 1), arrayFilter(pair -> NOT has(before, pair), v.opted_out)),
            arrayMap(pair -> (pair, 0), arrayFilter(pair -> NOT has(v.opted_out, pair), before)))) AS change
    FROM preferences_raw AS v FINAL
) AS c;

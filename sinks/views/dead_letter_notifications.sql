-- The notifications that dead letters are about, as the keys of the tables of states have them.
CREATE OR REPLACE VIEW dead_letter_notifications AS
SELECT DISTINCT
    r.tenant AS tenant,
    toStartOfHour(fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(r.notification_id, 1, 6)))), 4102444800000), 'UTC')) AS hour,
    r.notification_id AS notification_id
FROM dead_letters_raw AS r
WHERE r.notification_id != toFixedString('', 16);

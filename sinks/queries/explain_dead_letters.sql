-- One notification's records that were given up, without their bytes. Parameters: tenant, id (32 hex digits).
SELECT
    lower(hex(d.message_id)) AS message, d.topic AS topic, d.partition AS partition, d.offset AS offset, d.stage AS stage,
    d.reason AS reason, d.error_class AS error_class, d.detail AS detail, d.attempts AS attempts,
    toUnixTimestamp64Milli(d.occurred_at) AS occurred_at
FROM dead_letters_raw AS d FINAL
WHERE d.tenant = {tenant:String} AND d.notification_id = toFixedString(unhex({id:String}), 16)
ORDER BY d.occurred_at, d.dead_letter_id

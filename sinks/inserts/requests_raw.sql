-- NotificationRequest → requests_raw, as request_row of rows.py makes it; what that refuses, this refuses with its whole batch.
-- Constants: mark (hex), max_time (ms).
INSERT INTO requests_raw
(
    tenant, notification_id, accepted_at, lane, category, template_id, template_version, strategy, delivery, tags, source,
    correlation_id, user_id, keyed, expires_at, send_at, dry_run, channels, generation, stored_at
)
SELECT
    tenant,
    UUIDStringToNum(notification_id) AS notification,
    fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(notification, 1, 6)))), {max_time:Int64}), 'UTC'),
    lane_of_topic,
    category,
    template_id,
    template_version,
    strategy,
    delivery,
    tags,
    source,
    correlation_id,
    user_id,
    idempotency_key IS NOT NULL,
    fromUnixTimestamp64Milli(least(greatest(expires_at, 0), {max_time:Int64}), 'UTC'),
    fromUnixTimestamp64Milli(least(greatest(send_at, 0), {max_time:Int64}), 'UTC'),
    dry_run,
    channels,
    generation,
    now64(3, 'UTC')
FROM input('
    notification_id String, tenant String, idempotency_key Nullable(String), user_id String,
    addresses Array(Tuple(channel String, value String, platform String)), template_id String,
    template_version Int32, category String, lane String, channels Array(String),
    strategy String, locale String, send_at Int64, expires_at Int64, delivery String,
    tags Array(String), metadata Map(String, String), generation Int32, replay String, dry_run Bool, correlation_id String,
    source String, mark FixedString(16), lane_of_topic String')
WHERE NOT throwIf(
    mark != unhex({mark:String})
    OR UUIDNumToString(notification) != notification_id
    OR substring(notification_id, 15, 1) != '7'
    OR substring(notification_id, 20, 1) NOT IN ('8', '9', 'a', 'b')
    OR NOT isValidUTF8(tenant) OR NOT isValidUTF8(template_id) OR NOT isValidUTF8(category) OR NOT isValidUTF8(lane)
    OR NOT isValidUTF8(strategy) OR NOT isValidUTF8(delivery) OR NOT isValidUTF8(source) OR NOT isValidUTF8(locale)
    OR NOT isValidUTF8(correlation_id) OR NOT isValidUTF8(user_id) OR NOT isValidUTF8(replay)
    OR NOT isValidUTF8(ifNull(idempotency_key, ''))
    OR NOT isValidUTF8(arrayStringConcat(channels, ' ')) OR NOT isValidUTF8(arrayStringConcat(tags, ' '))
    OR NOT isValidUTF8(arrayStringConcat(mapKeys(metadata), ' '))
    OR NOT isValidUTF8(arrayStringConcat(mapValues(metadata), ' '))
    OR NOT isValidUTF8(arrayStringConcat(
        arrayMap(address -> concat(address.channel, ' ', address.value, ' ', address.platform), addresses), ' ')),
    'not exactly one NotificationRequest each')
-- As the table and the states sort: once here, and neither has to.
ORDER BY tenant, notification
FORMAT Avro

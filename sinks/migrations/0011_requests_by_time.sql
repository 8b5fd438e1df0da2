-- The views' accepted_at is an expression of the id, so that a filter on it skips in both tables of a join.
ALTER TABLE requests_raw ADD INDEX IF NOT EXISTS by_id_time
    fromUnixTimestamp64Milli(least(toInt64(reinterpretAsUInt64(reverse(substring(notification_id, 1, 6)))), 4102444799999), 'UTC')
    TYPE minmax GRANULARITY 1;
ALTER TABLE requests_raw MATERIALIZE INDEX by_id_time;

-- What keeps messages from going on, as each process that sees it said last; a down that is not repeated for 90 s is over.
CREATE TABLE IF NOT EXISTS conditions_raw
(
    subject LowCardinality(String) COMMENT 'account, router or sender',
    name String COMMENT 'the account, or the lane or channel of the stage',
    channel LowCardinality(String),
    process String,
    condition LowCardinality(String) COMMENT 'down or up',
    detail String,
    since DateTime64(3, 'UTC'),
    next_at DateTime64(3, 'UTC') COMMENT 'tried again then; 0: not known',
    stated_at DateTime64(3, 'UTC'),
    stored_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(stated_at)
ORDER BY (subject, name, process)
TTL toDateTime(stated_at) + INTERVAL 7 DAY;

-- As every table of the sink has it: when the row was inserted.
ALTER TABLE replays_raw ADD COLUMN IF NOT EXISTS stored_at DateTime64(3, 'UTC');
ALTER TABLE replay_items ADD COLUMN IF NOT EXISTS stored_at DateTime64(3, 'UTC');

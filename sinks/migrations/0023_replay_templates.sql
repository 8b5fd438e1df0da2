-- The version that a replay rendered with, of the requests of that template, whatever version they name.
ALTER TABLE replays_raw ADD COLUMN IF NOT EXISTS template String COMMENT 'ID:VERSION; empty: the version that the request names, or the published one' AFTER filter;

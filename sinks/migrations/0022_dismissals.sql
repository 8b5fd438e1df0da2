-- Why an operator asked for it: a dismissal of dead letters is recorded as a replay is, with the letters as its items.
ALTER TABLE replays_raw ADD COLUMN IF NOT EXISTS note String COMMENT 'why, in the operator''s words' AFTER error;

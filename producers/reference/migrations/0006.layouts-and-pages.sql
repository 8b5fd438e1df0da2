-- A version keeps what was written beside what it became with its layout and includes in place. Null: the same.
-- depends: 0005.resends

ALTER TABLE template_versions ADD COLUMN written json;

CREATE INDEX suppressions_by_time ON suppressions (tenant, created_at DESC, suppression_id DESC);

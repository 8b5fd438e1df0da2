-- Users, preferences, templates and suppressions: the system of record. The tenant is the first column of every key.
-- Documents are json, not jsonb: templates come back byte for byte, and json takes every character that JSON can say.

CREATE TABLE users (
    tenant text NOT NULL,
    user_id text NOT NULL,
    name text,
    email text,
    phone text,
    locale text,
    time_zone text,
    devices json NOT NULL DEFAULT '[]',
    -- raised by one with every change of the user or the preferences; the row's lock orders the changes
    version bigint NOT NULL DEFAULT 1,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    PRIMARY KEY (tenant, user_id)
);

CREATE TABLE preferences (
    tenant text NOT NULL,
    user_id text NOT NULL,
    channels json NOT NULL DEFAULT '{}',
    categories json NOT NULL DEFAULT '{}',
    updated_at bigint NOT NULL,
    PRIMARY KEY (tenant, user_id),
    FOREIGN KEY (tenant, user_id) REFERENCES users ON DELETE CASCADE
);

CREATE TABLE templates (
    tenant text NOT NULL,
    template_id text NOT NULL,
    latest_version integer NOT NULL,
    published_version integer,
    updated_at bigint NOT NULL,
    PRIMARY KEY (tenant, template_id)
);

CREATE TABLE template_versions (
    tenant text NOT NULL,
    template_id text NOT NULL,
    version integer NOT NULL,
    category text NOT NULL,
    channels json NOT NULL,
    locales json NOT NULL,
    variables text[] NOT NULL,
    created_at bigint NOT NULL,
    PRIMARY KEY (tenant, template_id, version),
    FOREIGN KEY (tenant, template_id) REFERENCES templates ON DELETE CASCADE
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN RAISE EXCEPTION ''a template version never changes''; END';

CREATE TRIGGER template_versions_never_change BEFORE UPDATE ON template_versions
FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE TABLE suppressions (
    tenant text NOT NULL,
    channel text NOT NULL,
    address_hash text NOT NULL,
    suppression_id uuid NOT NULL,
    address text NOT NULL,
    reason text NOT NULL,
    expires_at bigint,
    created_at bigint NOT NULL,
    PRIMARY KEY (tenant, channel, address_hash)
);

CREATE UNIQUE INDEX suppressions_by_id ON suppressions (tenant, suppression_id);

-- API keys by their public part; the secret is kept as HMAC-SHA-256 only.
-- depends: 0001.reference-data

CREATE TABLE api_keys (
    tenant text NOT NULL,
    key_id text NOT NULL UNIQUE,
    name text NOT NULL,
    secret_hash bytea NOT NULL,
    created_at bigint NOT NULL,
    revoked_at bigint,
    PRIMARY KEY (tenant, key_id)
);

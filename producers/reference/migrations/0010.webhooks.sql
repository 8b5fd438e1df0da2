-- Where customers want to hear of facts. The secrets are sealed under a key of the settings (runtime/sealing.py).
-- depends: 0009.replay-leases

CREATE TABLE webhooks (
    tenant text NOT NULL,
    webhook_id uuid NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    states text[] NOT NULL,
    channels text[] NOT NULL,
    categories text[] NOT NULL,
    enabled boolean NOT NULL,
    secret bytea NOT NULL,
    previous_secret bytea,
    previous_until bigint,
    -- raised by each replay, which sends again what was published since
    replays bigint NOT NULL DEFAULT 0,
    since bigint NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    PRIMARY KEY (tenant, webhook_id)
);

-- A suppression that came out of a bounce may know the fingerprint alone, and says where it comes from. That a person lifted
-- one is remembered, so that an older bounce that is read again does not bring it back.
-- depends: 0007.device-times

ALTER TABLE suppressions ALTER COLUMN address DROP NOT NULL;
ALTER TABLE suppressions ADD COLUMN source text;

CREATE TABLE lifted_suppressions (
    tenant text NOT NULL,
    channel text NOT NULL,
    address_hash text NOT NULL,
    lifted_at bigint NOT NULL,
    PRIMARY KEY (tenant, channel, address_hash)
);

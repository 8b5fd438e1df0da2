-- Since when a device is registered, by the fingerprint of its token: a provider that says "dead since" before it means an
-- earlier installation. A token that stays in the list keeps its time; one from before this column has none.
-- depends: 0006.layouts-and-pages

ALTER TABLE users ADD COLUMN registered json NOT NULL DEFAULT '{}';

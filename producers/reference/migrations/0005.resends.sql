-- The generation a resend has. Two calls at once, and a call whose answer got lost, share one that is not confirmed: the
-- same messages, sent once.
-- depends: 0004.outbox

CREATE TABLE resends (
    tenant text NOT NULL,
    notification_id uuid NOT NULL,
    generation integer NOT NULL,
    confirmed boolean NOT NULL DEFAULT false,
    requested_at bigint NOT NULL,
    PRIMARY KEY (tenant, notification_id)
);

-- Who runs a replay now: one at a time. The row is the runner's for as long as it says so every half second; whoever wants it to
-- stop writes so here.
-- depends: 0008.bounces

CREATE TABLE replay_leases (
    replay_id uuid PRIMARY KEY,
    runner text NOT NULL,
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    stop_requested_by text
);

-- One row per replay, resend or re-drive, ids as UUID.
CREATE OR REPLACE VIEW replays AS
SELECT
    toUUID(UUIDNumToString(r.replay_id)) AS replay_id,
    r.command AS command,
    r.topic AS topic,
    nullIf(r.from_at, toDateTime64(0, 3, 'UTC')) AS from_at,
    nullIf(r.to_at, toDateTime64(0, 3, 'UTC')) AS to_at,
    r.filter AS filter,
    r.template AS template,
    r.tenant AS tenant,
    r.requested_by AS requested_by,
    r.planned AS planned,
    r.published AS published,
    r.gone AS gone,
    r.counts AS counts,
    r.state AS state,
    r.error AS error,
    r.note AS note,
    r.started_at AS started_at,
    r.updated_at AS updated_at,
    nullIf(r.finished_at, toDateTime64(0, 3, 'UTC')) AS finished_at
FROM replays_raw AS r FINAL;

-- Replays, the newest first. Parameters: id (a UUID; '' for all), limit.
SELECT toString(r.replay_id) AS replay_id, r.command AS command, r.state AS state, r.topic AS topic, r.from_at AS from_at,
    r.to_at AS to_at, r.filter AS filter, r.template AS template, r.tenant AS tenant, r.requested_by AS requested_by, r.planned AS planned,
    r.published AS published, r.gone AS gone, r.counts AS counts, r.error AS error, r.note AS note, r.started_at AS started_at,
    r.updated_at AS updated_at, r.finished_at AS finished_at
FROM replays AS r
WHERE {id:String} = '' OR toString(r.replay_id) = {id:String}
ORDER BY r.started_at DESC
LIMIT {limit:UInt32}

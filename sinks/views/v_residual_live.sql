-- What makes a residual, one row per finding, looked for when asked: as many rows as v_accounting counts.
CREATE OR REPLACE VIEW v_residual_live AS
SELECT
    n.tenant AS tenant,
    n.hour AS hour,
    toUUID(UUIDNumToString(n.notification_id)) AS notification_id,
    arrayJoin(arrayConcat(
        if(n.accepted, [], ['a status without a request']),
        arrayWithConstant(n.conflicts, 'conflicting outcomes of one attempt'),
        if(
            n.accepted AND NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15),
            ['in flight for longer than it should be'],
            []))) AS finding,
    n.state AS state,
    n.due_at AS due_at,
    n.last_event_at AS last_event_at
FROM notification_latest AS n
WHERE NOT n.accepted OR n.conflicts > 0 OR (NOT n.settled AND now64(3, 'UTC') > addMinutes(n.due_at, 15));

-- One row per accepted notification; being here is the acceptance.
-- do_not_merge_across_partitions_select_final is right because the partition is a function of the id.
CREATE OR REPLACE VIEW requests AS
SELECT
    toUUID(UUIDNumToString(r.notification_id)) AS notification_id,
    r.tenant AS tenant,
    r.accepted_at AS accepted_at,
    r.lane AS lane,
    r.category AS category,
    r.template_id AS template_id,
    r.strategy AS strategy,
    r.delivery AS delivery,
    r.tags AS tags,
    r.source AS source,
    r.correlation_id AS correlation_id,
    r.hour AS hour,
    nullIf(r.template_version, 0) AS template_version,
    r.user_id AS user_id,
    r.keyed AS keyed,
    nullIf(r.expires_at, toDateTime64(0, 3, 'UTC')) AS expires_at,
    nullIf(r.send_at, toDateTime64(0, 3, 'UTC')) AS send_at,
    r.dry_run AS dry_run,
    r.channels AS channels,
    r.generation AS generation
FROM requests_raw AS r FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

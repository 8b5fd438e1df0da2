-- One row per accepted notification; being here is the acceptance. The category is the one that decided: the messages have it,
-- since the router knows the template's; until there is a message, and where nothing was rendered, it is the one asked for.
-- Both sides of the join are read in the order of their sort key, so that the first rows come at once, and a filter on the key or on
-- accepted_at skips on both. Which message gives the category makes no difference.
-- do_not_merge_across_partitions_select_final is right because the partition is a function of the id.
CREATE OR REPLACE VIEW requests AS
SELECT
    toUUID(UUIDNumToString(r.notification_id)) AS notification_id,
    r.tenant AS tenant,
    -- As the indexes of both tables have it.
    fromUnixTimestamp64Milli(
        least(toInt64(reinterpretAsUInt64(reverse(substring(r.notification_id, 1, 6)))), 4102444799999), 'UTC') AS accepted_at,
    r.lane AS lane,
    if(r.category != 'default' OR m.category = '', r.category, m.category) AS category,
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
    r.generation AS generation,
    r.category AS requested_category,
    nullIf(r.template_version, 0) AS requested_template_version,
    nullIf(r.stored_at, toDateTime64(0, 3, 'UTC')) AS stored_at
FROM requests_raw AS r FINAL
LEFT ANY JOIN
(
    SELECT s.tenant AS tenant, s.hour AS hour, s.notification_id AS notification_id, toString(s.category) AS category
    FROM message_states AS s
    WHERE s.category != ''
) AS m ON m.tenant = r.tenant AND m.hour = r.hour AND m.notification_id = r.notification_id
SETTINGS
    do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0,
    optimize_move_to_prewhere_if_final = 1, join_algorithm = 'full_sorting_merge';

-- v_residual_live, for the hours that may have a finding. Findings are not kept, there should be none; what is kept says which
-- hours need no look.
CREATE OR REPLACE VIEW v_residual AS
SELECT *
FROM v_residual_live AS l
WHERE (l.tenant, l.hour) IN
    (
        SELECT c.tenant AS tenant, c.hour AS hour FROM hours_changed AS c
        UNION ALL
        SELECT h.tenant AS tenant, h.hour AS hour
        FROM hour_sums AS h FINAL
        WHERE h.findings > 0 OR arrayExists(at -> now64(3, 'UTC') > at, h.overdue_at)
    );

-- What the accounts of each channel have ever reported. What none reports is not measured: NULL, not 0.
CREATE OR REPLACE VIEW channel_reports AS
SELECT a.channel AS channel, groupUniqArrayArray(a.reports) AS reports
FROM account_states AS a
GROUP BY a.channel;

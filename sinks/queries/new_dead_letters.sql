-- Open dead letters of the last hour. Parameters: none.
SELECT d.stage AS stage, d.reason AS reason, count() AS letters
FROM dead_letters_raw AS d FINAL
INNER JOIN dead_letter_states AS s ON s.dead_letter_id = d.dead_letter_id
WHERE d.occurred_at > now64(3, 'UTC') - INTERVAL 1 HOUR AND s.letter_state IN ('open', 'failed_again')
GROUP BY stage, reason
ORDER BY letters DESC

-- Whose message it is. A message's id says no time, so this looks through the ids of the tenant. Parameters: tenant, id (32 hex digits).
SELECT lower(hex(e.notification_id)) AS id
FROM delivery_events_raw AS e
PREWHERE e.tenant = {tenant:String} AND e.message_id = toFixedString(unhex({id:String}), 16)
LIMIT 1

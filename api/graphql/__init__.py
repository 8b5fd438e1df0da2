"""GraphQL: the notifications, reference data and live status of a tenant in one schema, over the functions that REST calls.

    endpoint.py  HTTP, SSE and WebSocket ─► guard.py  limits ─► schema.py ─► queries, mutations, subscriptions ─► services

strawberry takes a fifth of a second to import, so api/role.py imports endpoint.py alone, and that the rest with the first call.
May import strawberry and the services. Never: SQL, a rule of the data.
"""

"""The router: what becomes of each request, decided, rendered and routed, under Faust or a plain loop.

May import runtime and schemas. Never: a provider, a database.
"""

"""The router: decides, renders and routes each request, under Faust or a plain loop.

May import runtime and schemas. Never: a provider, a database.
"""

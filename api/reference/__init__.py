"""Routes of reference data: users, templates, suppressions.

May import starlette, fastapi, producers.reference. Never: SQL.
"""

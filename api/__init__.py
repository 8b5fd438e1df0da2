"""The HTTP API: accepts requests, manages reference data, serves statuses and the OpenAPI document.

May import starlette, fastapi, producers.reference. Never: SQL, a read of ClickHouse.
"""

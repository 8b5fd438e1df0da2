"""The HTTP door: ingest, reference data, OpenAPI.

May import starlette, fastapi, producers.reference. Never: SQL, a read of ClickHouse.
"""

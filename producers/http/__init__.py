"""The HTTP door: ingest, reference data, OpenAPI.

May import starlette, fastapi, producers.reference. What never enters here: SQL, a read of ClickHouse.
"""

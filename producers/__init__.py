"""World → Kafka: the publisher library, the HTTP API, the reference data and its outbox relay.

Imports `runtime` and `schemas`. Never: routing decisions, providers, ClickHouse writes.
"""

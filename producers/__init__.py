"""World → Kafka: the publisher library, the HTTP API, the reference data and its outbox relay.

Imports `runtime` and `schemas`. What never enters here: routing decisions, providers, ClickHouse writes.
"""

"""Kafka → people: what leaves here cannot be undone, so every send is claimed before and recorded after.

Imports `runtime` and `schemas`. Never: preferences beyond the last re-check, rendering, SQL.
"""

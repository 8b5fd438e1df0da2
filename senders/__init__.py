"""Kafka → people: what leaves here cannot be undone, so every send is claimed before and recorded after.

Imports `runtime` and `schemas`. What never enters here: preferences beyond the last re-check, rendering, SQL.
"""

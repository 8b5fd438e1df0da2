"""Kafka → stores: what is written here can be rebuilt from the topics at any time.

Imports `runtime` and `schemas`. Never: a decision, a provider, anything that is not idempotent.
"""

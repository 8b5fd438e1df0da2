"""Kafka → Kafka: the router (requests → dispatch and status) and the timers. Pure functions inside thin shells.

Imports `runtime` and `schemas`. Never: a provider, a store, an HTTP route.
"""

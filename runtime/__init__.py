"""What every process needs: settings, Kafka clients, views, ids, health, metrics, logs, errors.

Imports `schemas` only. Never: a decision about a notification, a provider, a store's SQL.
"""

"""Kafka as this project uses it: an idempotent producer, a manual-commit consumer, topic administration.

The only package that imports confluent_kafka. Its errors leave as our own. Never: Avro, a decision.
"""

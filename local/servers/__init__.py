"""Kafka, PostgreSQL and ClickHouse on this machine, downloaded, pinned and run without root.

May import local. Never: a role.
"""

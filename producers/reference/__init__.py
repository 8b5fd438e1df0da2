"""Reference data: PostgreSQL as the system of record, and the relay that publishes its changes.

May import psycopg. Never: HTTP.
"""

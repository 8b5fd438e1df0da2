"""Customers' endpoints: facts of notify.status.v1, signed and posted.

May import vendors and runtime. Never: PostgreSQL, a claim of the senders.
"""

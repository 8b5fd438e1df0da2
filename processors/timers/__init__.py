"""Timers: retries and schedules, each a record of a compacted topic, published again when it is due.

May import runtime and schemas. Never: a decision about a notification.
"""

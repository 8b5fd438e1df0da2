"""A mailbox of bounces → Kafka: what mail servers say later about a mail becomes a receipt and a status.

    role.py      the life of the process; one thread a mailbox

May import vendors, runtime, and what makes records of a report (producers.callbacks). Never: a store, a decision about the next attempt.
"""

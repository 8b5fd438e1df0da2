"""Providers → Kafka: what a provider says later about a message (delivery report, bounce) becomes a receipt and a status.

    app.py       the routes; vendors/<kind>/reports.py reads each vendor's requests
    records.py   a report becomes records; pure
    role.py      the life of the process

May import starlette, vendors, runtime. Never: a store, a look-up, a decision about the next attempt.
"""

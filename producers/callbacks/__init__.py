"""Providers → Kafka: what a provider says later about a message (delivery report, bounce) becomes a receipt and a status.

    vendor.py     what a vendor's file offers        twilio.py     one vendor, one file
    registry.py   kind → vendor                      records.py    a report becomes records; pure
    app.py        the routes                         role.py       the life of the process

May import starlette, runtime, api. Never: a store, a look-up, a decision about the next attempt.
"""

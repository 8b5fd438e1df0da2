"""The contracts as data: Avro schemas, topics, reasons, the wire codec.

Imports nothing of ours and opens no socket. Never: settings, clients, clocks, decisions.
"""

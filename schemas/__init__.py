"""The contracts as data: Avro schemas, topics, reasons, the wire codec.

Imports nothing of ours and opens no socket. What never enters here: settings, clients, clocks, decisions.
"""

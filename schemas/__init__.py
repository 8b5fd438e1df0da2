"""The contracts as data: Avro schemas, topics, reasons, the wire codec.

Imports no other package of the project and opens no socket. Never: settings, clients, clocks, decisions.
"""

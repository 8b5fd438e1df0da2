"""Live status: facts as they are published, to whoever watches.

May import sinks and tracking. Never: HTTP, a frame of a protocol.
"""

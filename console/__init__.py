"""What people touch: the `heliograph` command, the HTTP server, the pages, replay, and the embedded local stack.

May import everything below. Never: a rule about notifications (it belongs to a stage).
"""

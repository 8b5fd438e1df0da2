"""Live status over HTTP: server-sent events, WebSocket, and the tokens that let a browser watch.

May import tracking.live. Never: a consumer, a question to a store.
"""

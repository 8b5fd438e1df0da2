"""Routes about notifications that were accepted: the list, one, its events, its story, cancel and resend.

May import tracking. Never: a question to a store.
"""

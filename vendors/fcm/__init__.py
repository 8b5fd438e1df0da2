"""Firebase Cloud Messaging.

May import the shared modules of vendors. Never: another vendor.
"""

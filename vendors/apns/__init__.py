"""Apple Push Notification service.

May import the shared modules of vendors. Never: another vendor.
"""

"""BulkSMS: SMS over its JSON API.

May import the shared modules of vendors. Never: another vendor.
"""

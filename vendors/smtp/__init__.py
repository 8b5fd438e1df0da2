"""Any SMTP server.

May import the shared modules of vendors. Never: another vendor.
"""

"""SendGrid: e-mail over its Mail Send API.

May import the shared modules of vendors. Never: another vendor.
"""

"""Amazon SES: e-mail over its API, version 2.

May import the shared modules of vendors. Never: another vendor.
"""

"""Mailgun: e-mail as finished MIME over its Messages API.

May import the shared modules of vendors. Never: another vendor.
"""

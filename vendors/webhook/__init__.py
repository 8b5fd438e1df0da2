"""Webhooks: any receiver that speaks Standard Webhooks.

May import the shared modules of vendors. Never: another vendor.
"""

"""Microsoft Teams: cards through the webhooks of Workflows.

May import the shared modules of vendors. Never: another vendor.
"""

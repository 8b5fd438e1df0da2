"""Slack: messages through incoming webhooks.

May import the shared modules of vendors. Never: another vendor.
"""

"""Twilio: SMS, and its delivery reports.

May import the shared modules of vendors. Never: another vendor.
"""

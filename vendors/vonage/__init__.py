"""Vonage: SMS over its SMS API.

May import the shared modules of vendors. Never: another vendor.
"""

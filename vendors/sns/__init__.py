"""Amazon SNS: SMS to phone numbers.

May import the shared modules of vendors. Never: another vendor.
"""

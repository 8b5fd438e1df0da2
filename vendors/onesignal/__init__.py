"""OneSignal: push over its Create Message API.

May import the shared modules of vendors. Never: another vendor.
"""

"""Web Push: to browsers, over the push services of their makers.

May import the shared modules of vendors. Never: another vendor.
"""

"""Commands of `heliograph`, one module each.

May import every layer below. Never: what another program could use.
"""

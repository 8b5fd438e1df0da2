"""The process that keeps a local stack alive: `python -m local.supervisor --state-dir DIR`.

May import local. Never: a role.
"""

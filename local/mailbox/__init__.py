"""The mailbox of the local stack: what the simulated SMTP server took, as pages.

May import local.simulator. Never: a role.
"""

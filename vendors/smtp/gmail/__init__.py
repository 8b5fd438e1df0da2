"""Gmail and Google Workspace: SMTP with their addresses, and with OAuth 2.0 where a service account stands for a mailbox.

May import vendors.smtp and the shared modules of vendors. Never: another vendor.
"""

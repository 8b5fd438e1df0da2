"""SMTP's table is shared: who sends for us reports the same codes (vendors/smtp_codes.py).

May import it. Never: a connection.
"""

from __future__ import annotations

from vendors.smtp_codes import CODES

__all__ = ["CODES"]

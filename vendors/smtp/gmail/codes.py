"""Gmail speaks SMTP: its table is SMTP's, with the words for its own limits.

May import SMTP's table. Never: a connection.
"""

from __future__ import annotations

from vendors.smtp_codes import CODES

__all__ = ["CODES"]

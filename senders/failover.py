"""Which provider account an attempt goes to; pure.

May import nothing. What never enters here: a provider, a breaker's state kept across calls.
"""

from __future__ import annotations


def account_for(attempt: int, accounts: int) -> int:
    """Index of the account for an attempt (from 1): the configured order, going round.

    An attempt follows another only after a definite not-sent, or as a flagged possible duplicate.
    """
    return (attempt - 1) % accounts

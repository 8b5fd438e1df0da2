"""Which provider accounts a message may go to, and which of them an attempt goes to; pure.

May import the protocol. What never enters here: a provider, a breaker's state kept across calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.events import ChannelMessage
from senders.sender import Sender


def accounts_for(message: ChannelMessage, senders: Sequence[Sender]) -> list[int]:
    """Indices of the accounts that reach the message's address, in failover order; [] when none does.

    An address without a platform (a direct publisher may leave it out) is one of the first account's kind.
    """
    platform = message["platform"]
    if platform is None:
        return [i for i, sender in enumerate(senders) if sender.platforms == senders[0].platforms]
    return [i for i, sender in enumerate(senders) if sender.platforms is None or platform in sender.platforms]


def account_for(attempt: int, accounts: Sequence[int]) -> int:
    """The account for an attempt (from 1): the configured order, going round.

    An attempt follows another only after a definite not-sent, or as a flagged possible duplicate.
    """
    return accounts[(attempt - 1) % len(accounts)]

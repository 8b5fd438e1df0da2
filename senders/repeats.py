"""Doubts that are cleared up: repeated at a vendor that knows our message id and makes nothing of a second time; looked up at
one that can be asked (`reconcile`); pure.

    | the doubt                            | the account that may have the message             |
    |--------------------------------------|---------------------------------------------------|
    | an answer was lost                   | the one that was asked                            |
    | its sender ended while it was claimed| the one of an earlier doubt, else the only one    |
    |                                      | that reaches the address, else unknown            |

If that account is known and repeats for so long since the first request that is in doubt, it gets the message again, and no
other does: unflagged, under at_most_once too. Its answer is the answer to the first request as well. In every other case, and
once the time is over or the retries are used up, the doubt is like any other (senders/outcomes.py).

An account with `reconcile` is asked after the message in place of that, in the lanes of LOOKED_UP, and where at_least_once would send it
again: the next attempt's one request is a look-up. Found, it is `sent`, unflagged. Not found, it is a doubt like any other: that
proves nothing. A look-up that fails is tried again while a retry is left beside the one that sends.

The record of the next attempt says it in a header, because during an upgrade senders of the previous version still read the topic.
May import runtime's records. Never: a clock read, Kafka.
"""

from __future__ import annotations

from runtime.records import Headers
from schemas.events import ChannelMessage

HEADER = "in-doubt-since"
"""Milliseconds since 1970: no later than the first request that is in doubt."""
LOOKED_UP = frozenset({"normal", "bulk"})
"""Lanes in which a message may wait until its vendor shows what it took: a login code may not."""


def doubt_since(headers: Headers) -> int | None:
    """Since when a message is in doubt that is being repeated, None for any other."""
    for name, value in headers:
        if name == HEADER:
            return int(value) if value and len(value) <= 16 and value.isdigit() else 0
    return None


def with_doubt(headers: Headers, since: int | None) -> Headers:
    """The headers of the next attempt's record; `since` None: nothing is repeated."""
    others = [header for header in headers if header[0] != HEADER]
    return others if since is None else [*others, (HEADER, b"%d" % since)]


def still_repeats(since: int, repeatable_s: float, now: int) -> bool:
    """Whether a vendor that remembers for `repeatable_s` still does; `since` and `now` in ms. A doubt of the future is not believed."""
    return 0 <= now - since < repeatable_s * 1000


def may_be_looked_up(message: ChannelMessage) -> bool:
    """Whether a doubt about it is looked up before it is sent again; one that is never sent again is settled as it is."""
    return message["lane"] in LOOKED_UP and message["delivery"] != "at_most_once"

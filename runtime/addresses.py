"""What no address of any channel may hold; API, publisher and router all check it here.

May import the standard library. Never: what else an address must be (producers/addresses, processors/policy).
"""

from __future__ import annotations

import re

_ENCODED_WORD = re.compile(r"=\?.*\?=", re.DOTALL)


def has_encoded_word(address: str) -> bool:
    """Whether `=?…?=` (RFC 2047) occurs in it: text to us, another address to a server that decodes it."""
    return _ENCODED_WORD.search(address) is not None

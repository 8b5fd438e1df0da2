"""An SMS's text as it goes out, as it was written but for control characters, and how many parts it takes; pure.

Spaces, joiners, direction marks, variation selectors, tags and emoji are part of the author's text.
May import the protocol. Never: a vendor's limits.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vendors.provider import UnsendableError

# 3GPP TS 23.038 §6.2.1: the default alphabet, and what takes an escape and so two septets.
_GSM_7 = re.compile(
    r"""[@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !"#¤%&'()*+,\-./0-9:;<=>?¡A-ZÄÖÑÜ§¿a-zäöñüà\f^{}\\\[~\]|€]*"""
)
_ESCAPED = re.compile(r"[\f^{}\\\[~\]|€]")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
# 3GPP TS 23.040 §9.2.3.24.1: 140 octets a message, six of them for the place of a part among several.
_GSM_7_ONE, _GSM_7_EACH = 160, 153
_UCS_2_ONE, _UCS_2_EACH = 70, 67

_C0 = {code: None for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n"}
_C1 = dict.fromkeys(range(0x80, 0xA0), " ")
_LINE_ENDS = dict.fromkeys(map(ord, "\r\x85\u2028\u2029"), "\n")
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000))
_TABLE = {**_SURROGATES, **_C1, **_C0, **_LINE_ENDS}


class Parts(NamedTuple):
    """How a text goes out."""

    unicode: bool
    """Whether it takes UCS-2: some character is not in GSM-7."""
    number: int
    """Messages it is split into."""

    @property
    def alphabet(self) -> str:
        return "UCS-2" if self.unicode else "GSM-7"

    def __str__(self) -> str:
        """What is recorded of a text that went out: `2 parts of UCS-2`. As we count: a vendor may do otherwise."""
        parts = "1 part" if self.number == 1 else f"{self.number} parts"
        return f"{parts} of {self.alphabet}"


def count_parts(text: str) -> Parts:
    """Parts of the text; no part ends within a character. Carriers without GSM-7 or with national tables may differ."""
    unicode = _GSM_7.fullmatch(text) is None
    wide = _ASTRAL if unicode else _ESCAPED
    one, each = (_UCS_2_ONE, _UCS_2_EACH) if unicode else (_GSM_7_ONE, _GSM_7_EACH)
    doubles = len(wide.findall(text))
    if len(text) + doubles <= one:
        return Parts(unicode, 1)
    if not doubles:  # nothing can fall between two parts
        return Parts(unicode, -(-len(text) // each))
    number, used = 1, 0
    for char in text:
        width = 2 if wide.match(char) else 1
        if used + width > each:
            number, used = number + 1, 0
        used += width
    return Parts(unicode, number)


def checked_parts(text: str, max_parts: int) -> Parts:
    """Parts of the text. Raises UnsendableError for more than `max_parts`: each is paid for."""
    parts = count_parts(text)
    if parts.number > max_parts:
        raise UnsendableError(f"{parts}, more than max_parts = {max_parts}")
    return parts


def clean_text(text: str) -> str:
    """The text without C0 controls, DEL and lone surrogates; every line end is LF, a C1 control is a space."""
    return text.replace("\r\n", "\n").translate(_TABLE)


_STOP_WORDS = frozenset(
    {"STOP", "STOPALL", "STOP ALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "OPTOUT", "OPT OUT", "REVOKE"}
)
"""The carriers' own list: twilio.com/docs/messaging/tutorials/advanced-opt-out, CTIA Messaging Principles §5.1.3."""


def says_stop(text: str) -> bool:
    """Whether an incoming message is one of these words and nothing else."""
    return len(text) <= 32 and " ".join(text.strip(" \t\r\n.!\"'").upper().split()) in _STOP_WORDS

"""An SMS's text as it goes out: as it was written, but for control characters; pure.

Spaces, joiners, direction marks, variation selectors, tags and emoji are part of the author's text. May import the standard
library. Never: a provider's alphabet or limits.
"""

from __future__ import annotations

_C0 = {code: None for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n"}
_C1 = dict.fromkeys(range(0x80, 0xA0), " ")
_LINE_ENDS = dict.fromkeys(map(ord, "\r\x85\u2028\u2029"), "\n")
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000))
_TABLE = {**_SURROGATES, **_C1, **_C0, **_LINE_ENDS}


def clean_text(text: str) -> str:
    """The text without C0 controls, DEL and lone surrogates; every line end is LF, a C1 control is a space."""
    return text.replace("\r\n", "\n").translate(_TABLE)

"""Where in a JSON document something is: RFC 6901.

May import the standard library. Never: a value of the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_POINTER_CHARS = 300


def pointer(path: Sequence[Any]) -> str:
    """The JSON pointer of a path of names and indexes, cut at MAX_POINTER_CHARS; "" is the whole document.

    pydantic's mark for the key of a mapping is no part of a document and is left out.
    """
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in path if part != "[key]"]
    return "".join(f"/{part}" for part in parts)[:MAX_POINTER_CHARS]

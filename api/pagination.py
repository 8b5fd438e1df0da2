"""Pages of a list: an opaque cursor says where the next one begins.

May import fastapi. Never: a list.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query

from producers.addresses import has_control
from runtime.errors import FieldError
from runtime.http.problems import Problem

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Entries of a page.")]
Cursor = Annotated[str, Query(max_length=2_000, description="next_cursor of the page before.")]


def write_cursor(*position: str | int) -> str:
    """The position as text."""
    return base64.urlsafe_b64encode(json.dumps(position, ensure_ascii=False).encode()).decode().rstrip("=")


def read_cursor(text: str, *kinds: type) -> tuple[Any, ...] | None:
    """The position, of these kinds; None for the start. Raises Problem (400)."""
    if not text:
        return None
    try:
        position = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError, binascii.Error) as exc:
        raise invalid_cursor() from exc
    if not isinstance(position, list) or [type(part) for part in position] != list(kinds):
        raise invalid_cursor()
    if any(has_control(part) if isinstance(part, str) else abs(part) >= 1 << 62 for part in position):
        raise invalid_cursor()
    return tuple(position)


def invalid_cursor() -> Problem:
    """The error for an invalid cursor."""
    why = "not a cursor of this list: take next_cursor of the page before"
    return Problem(400, "invalid_cursor", why, errors=[FieldError("", f"cursor: {why}", "invalid_cursor")])


def page(rows: Sequence[T], limit: int, show: Callable[[T], Any], position: Callable[[T], str]) -> dict[str, Any]:
    """The answer, out of up to `limit` + 1 rows."""
    return page_of(rows[:limit], len(rows) > limit, show, position)


def page_of(rows: Sequence[T], more: bool, show: Callable[[T], Any], position: Callable[[T], str]) -> dict[str, Any]:
    """The answer that shows these rows, with a cursor when there are more."""
    return {"entries": [show(row) for row in rows], "next_cursor": position(rows[-1]) if more else None}

"""JSON without guessing: duplicate keys, NaN, infinite numbers and half surrogate pairs are refused, with a pointer.

May import jiter. What never enters here: a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jiter

from producers.http.problems import FieldError, Problem, pointer


def parse_json(raw: bytes) -> Any:
    """The value. Raises Problem (400, invalid_json)."""
    try:
        return jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as exc:
        where, why = _explain(raw) or ("", str(exc)[:200])
        raise Problem(
            400, "invalid_json", f"the body is not JSON that we take: {why}", errors=[FieldError(where, why, "invalid_json")]
        ) from exc  # fmt: skip


class _Duplicate(dict[str, Any]):
    key = ""


class _Number:
    def __init__(self, text: str) -> None:
        self.text = text


def _explain(raw: bytes) -> tuple[str, str] | None:
    """(pointer, reason) of a duplicate key or a NaN: a second, slower parse that keeps them."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) == len(items):
            return found
        keys = [key for key, _ in items]
        twice = _Duplicate(found)
        twice.key = next(key for key in keys if keys.count(key) > 1)
        return twice

    try:
        value = json.loads(raw, object_pairs_hook=pairs, parse_constant=_Number)
    except (ValueError, RecursionError):
        return None
    return next(_refused(value, ()), None)


def _refused(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, _Duplicate):
        yield pointer((*path, value.key)), "the key stands twice in its object"
    if isinstance(value, _Number):
        yield pointer(path), f"{value.text} is not a JSON number"
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _refused(child, (*path, key))


def _numbers(value: Any) -> Any:
    """1.0 and 1 are the same JSON value."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return value


def body_hash(body: dict[str, Any]) -> bytes:
    """SHA-256 of a body as a JSON value: key order, white space and `request_id` do not count."""
    value = _numbers({key: item for key, item in body.items() if key != "request_id"})
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).digest()

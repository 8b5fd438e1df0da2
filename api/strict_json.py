"""JSON without guessing: duplicate keys, NaN, infinite numbers and half surrogate pairs are refused, with a pointer.

May import jiter. Never: a model.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

import jiter

from runtime.errors import FieldError
from runtime.http.problems import Problem
from runtime.json_pointer import pointer

MAX_DEPTH = 200
"""Objects and arrays inside each other, as the parser has it."""
MAX_EXPLAINED_BYTES = 65_536
"""Of a body that is parsed a second time to point at its fault; of a larger one the parser's line and column must do."""


def parse_json(raw: bytes) -> Any:
    """The value. Raises Problem (400, invalid_json)."""
    try:
        return jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as exc:
        where, why = _explain(raw, str(exc))
        raise Problem(
            400,
            "invalid_json",
            f"the body is not JSON that we take: {why}",
            errors=[FieldError(where, why, "invalid_json")],
        ) from exc


class _Duplicate(dict[str, Any]):
    key = ""


class _Number:
    def __init__(self, text: str) -> None:
        self.text = text


def _explain(raw: bytes, why: str) -> tuple[str, str]:
    """(pointer, reason); of a duplicate key or a NaN by a second, slower parse that keeps them."""
    if raw.startswith(codecs.BOM_UTF8):
        return "", "it begins with a byte order mark (EF BB BF): send UTF-8 without one"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "", "it is UTF-16: send UTF-8"
    if why.startswith("recursion limit"):
        return "", f"it is nested deeper than {MAX_DEPTH}"
    if len(raw) > MAX_EXPLAINED_BYTES and why.startswith("Detected duplicate key"):
        return "", f"a key is repeated in its object, at line {why.rpartition(' at line ')[2][:40]}"
    why = why[:200]
    if len(raw) > MAX_EXPLAINED_BYTES:
        return "", why

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) == len(items):
            return found
        twice = _Duplicate(found)
        seen = set[str]()
        for key, _ in items:
            if key in seen:
                twice.key = key
                break
            seen.add(key)
        return twice

    try:
        value = json.loads(raw, object_pairs_hook=pairs, parse_constant=_Number)
        return next(_refused(value), None) or ("", why)
    except (ValueError, RecursionError):
        return "", why


def _refused(root: Any) -> Iterator[tuple[str, str]]:
    """What the parser refuses, in the order of the text; without recursion, and each value looked at once."""
    left: list[tuple[tuple[Any, ...], Any]] = [((), root)]
    while left:
        path, value = left.pop()
        if isinstance(value, _Duplicate):
            yield pointer((*path, value.key)), "the key is repeated in its object"
        if isinstance(value, _Number):
            yield pointer(path), f"{value.text} is not a JSON number"
        if len(path) <= MAX_DEPTH and isinstance(value, dict | list):
            children = value.items() if isinstance(value, dict) else enumerate(value)
            left += reversed(
                [((*path, key), child) for key, child in children if isinstance(child, dict | list | _Number)]
            )

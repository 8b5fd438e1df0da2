"""The texts in a JSON value, at any depth: found with the way that leads to each, or changed.

May import the standard library. Never: what a text means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_DEPTH = 32
"""Levels of a value; cards and blocks have fewer than ten."""

Path = tuple[str, ...]
"""The keys and indices that lead to a text."""


def texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text; keys are none. Raises ValueError for a value of more than MAX_DEPTH levels."""
    if len(path) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping | list):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from texts(each, (*path, str(key)))


def with_texts(value: Any, change: Callable[[str, Path], str], path: Path = ()) -> Any:
    """The value with every text changed."""
    if isinstance(value, str):
        return change(value, path)
    if isinstance(value, Mapping):
        return {key: with_texts(each, change, (*path, str(key))) for key, each in value.items()}
    if isinstance(value, list):
        return [with_texts(each, change, (*path, str(i))) for i, each in enumerate(value)]
    return value

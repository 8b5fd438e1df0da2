"""Ids in paths: `/v1/users/org%2F42` is the user org/42, and `/v1/users/org/42` matches no route.

A server decodes a path before it is routed, and an id with a slash falls apart. So each part between the slashes that were
sent is decoded for itself, and a slash that was encoded goes through the router as half a surrogate pair, which no id has.
May import starlette's types and pydantic. Never: which ids there are.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from pydantic import BeforeValidator
from starlette.types import Scope

_SLASH = "\udc2f"


def keep_slashes(scope: Scope) -> Scope:
    """The scope with its encoded slashes kept apart from those between the parts of its path."""
    raw: bytes = scope.get("raw_path") or b""
    if scope["type"] != "http" or b"%2f" not in raw.lower():
        return scope
    parts = raw.partition(b"?")[0].decode("latin-1").split("/")
    return {**scope, "path": "/".join(unquote(part).replace("/", _SLASH) for part in parts)}


def _with_slashes(value: str) -> str:
    return value.replace(_SLASH, "/")


PathId = Annotated[str, BeforeValidator(_with_slashes)]
"""An id out of the path, of a request that went through `keep_slashes`."""

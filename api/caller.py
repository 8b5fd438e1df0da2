"""Who asks, as the routes see it.

May import the standard library. Never: how a key is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Caller(Protocol):
    """Who is asking."""

    @property
    def tenant(self) -> str: ...


Authenticate = Callable[..., Any]
"""A dependency that returns (or awaits to) a Caller, or raises Problem."""

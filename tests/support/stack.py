"""Which stores the tests run on: the embedded ones, or containers where HELIOGRAPH_TEST_STACK=containers asks for them.

May import pytest and the containers of the tests. Never: what a test asks of a store.
"""

from __future__ import annotations

import os
from typing import Literal

import pytest

VARIABLE = "HELIOGRAPH_TEST_STACK"
Stack = Literal["embedded", "containers"]


def wanted() -> Stack:
    """The stack that was asked for; a word that is none ends the run."""
    word = os.environ.get(VARIABLE, "")
    if word in ("", "embedded"):
        return "embedded"
    if word == "containers":
        return "containers"
    pytest.exit(f"{VARIABLE} is {word!r}: it may be embedded (the default) or containers", returncode=4)


def on_containers() -> bool:
    """Whether stores are containers. Without an engine that could run them the test run ends, with one line."""
    if wanted() == "embedded":
        return False
    from tests.support.containers import why_not  # docker is wanted by few

    if reason := why_not():
        pytest.exit(f"{VARIABLE}=containers: {reason}", returncode=4)
    return True

"""The text of the schema as it is committed, and so served: schemas/graphql/schema.graphql.

May import the standard library. Never: strawberry (a test holds the two against each other).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def committed_sdl() -> str:
    """What is written down of the schema."""
    return files("schemas").joinpath("graphql/schema.graphql").read_text("utf-8")

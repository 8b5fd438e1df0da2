"""Pages, as Relay's connections: nodes, edges with cursors, and where the next page begins.

May import strawberry and api.pagination. Never: a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import strawberry

from api.graphql.scalars import refused

DEFAULT_FIRST = 25
MAX_FIRST = 100
Node = TypeVar("Node")
Row = TypeVar("Row")


@strawberry.type(description="Where a page ends, and whether there is another.")
class PageInfo:
    has_next_page: bool
    end_cursor: str | None


@strawberry.type(description="A node, and the cursor that a page after it begins with.")
class Edge(Generic[Node]):
    cursor: str
    node: Node


@strawberry.type(description="A page.")
class Connection(Generic[Node]):
    nodes: list[Node]
    edges: list[Edge[Node]]
    page_info: PageInfo


def check_first(first: int, most: int = MAX_FIRST) -> int:
    """The entries of a page. Raises RefusedError."""
    if not 1 <= first <= most:
        raise refused("first", f"1 to {most}")
    return first


def connection_of(
    rows: Sequence[Row],
    more: bool,
    show: Callable[[Row], Node],
    cursor: Callable[[Row], str],
    end_cursor: str | None = None,
) -> Connection[Node]:
    """The page that shows these rows; `end_cursor` where it is not the last row's."""
    edges = [Edge(cursor=cursor(row), node=show(row)) for row in rows]
    end = end_cursor or (edges[-1].cursor if edges else None)
    return Connection(
        nodes=[edge.node for edge in edges], edges=edges, page_info=PageInfo(has_next_page=more, end_cursor=end)
    )

"""The schema, and its text: schemas/graphql/schema.graphql is what is served, and what a release keeps to.

May import strawberry. Never: a field.
"""

from __future__ import annotations

from functools import cache

import strawberry
from graphql import GraphQLError
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

from api.graphql.context import Context
from api.graphql.errors import write_error
from api.graphql.guard import Documents, Guard
from api.graphql.mutations import Mutation
from api.graphql.queries import Query
from api.graphql.scalars import SCALARS
from api.graphql.subscriptions import Subscription


class Schema(strawberry.Schema):
    """Ours; what its callers are told of an error is errors.py's."""

    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """See the base: here before an answer is made of them."""
        context = execution_context.context if execution_context is not None else None
        assert isinstance(context, Context)
        for error in errors:
            write_error(error, context.request_id, context.services.outages)


@cache
def graphql_schema() -> Schema:
    """Built once; takes some tenths of a second."""
    documents = Documents()
    return Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        config=StrawberryConfig(scalar_map=SCALARS),
        extensions=[lambda: Guard(documents)],
    )


def served_sdl() -> str:
    """The text of the schema, as it is served and committed."""
    return graphql_schema().as_str() + "\n"

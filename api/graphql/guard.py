"""What happens to every operation before it runs: parsed, measured, counted against the caller's limit, validated, and cut off in time.

A document that was found valid is kept, so that a query which comes again is neither parsed nor validated again.
May import strawberry and graphql-core. Never: a type of the schema.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext

from graphql import DocumentNode, GraphQLError, get_operation_ast, specified_rules
from strawberry.extensions import SchemaExtension
from strawberry.schema.schema import validate_document
from strawberry.types.graphql import OperationType

from api.graphql.context import Context
from api.graphql.errors import INVALID_QUERY
from api.graphql.limits import COST_OF_A_CALL, MAX_TOKENS, TooLarge, measure
from runtime.http.problems import Problem
from runtime.metrics import GRAPHQL_REFUSED

TIMEOUT_S = 10.0
MAX_KEPT = 256
MAX_KEPT_CHARS = 16_384


class Documents:
    """Valid documents by their text."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, DocumentNode] = OrderedDict()

    def find(self, query: str) -> DocumentNode | None:
        """None for one that is not known to be valid."""
        if query in self._kept:
            self._kept.move_to_end(query)
        return self._kept.get(query)

    def keep(self, query: str, document: DocumentNode) -> None:
        """It is valid."""
        if len(query) <= MAX_KEPT_CHARS:
            self._kept[query] = document
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)


def refusal(rule: str, why: str, code: str = "query_too_large", status: int = 400) -> Problem:
    """A refusal by a rule, counted."""
    GRAPHQL_REFUSED.labels(rule).inc()
    return Problem(status, code, why)


class Guard(SchemaExtension):
    """See the module; `documents` is shared by all operations."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._known = False

    def on_parse(self) -> Iterator[None]:
        """Within the limit of tokens."""
        execution = self.execution_context
        execution.parse_options = {"max_tokens": MAX_TOKENS}
        execution.graphql_document = self._documents.find(execution.query or "")
        self._known = execution.graphql_document is not None
        yield
        for error in execution.pre_execution_errors or ():
            rule = "tokens" if "tokens. Parsing aborted" in error.message else "syntax"
            code = "query_too_large" if rule == "tokens" else INVALID_QUERY
            error.original_error = refusal(rule, error.message.splitlines()[0], code)

    def on_validate(self) -> Iterator[None]:
        """Measured first: what is too large is not validated."""
        execution = self.execution_context
        try:
            execution.pre_execution_errors = self._checked()
        except TooLarge as exc:
            execution.pre_execution_errors = [GraphQLError(str(exc), original_error=refusal(exc.rule, str(exc)))]
        yield

    def _checked(self) -> list[GraphQLError]:
        execution = self.execution_context
        document, context = execution.graphql_document, execution.context
        assert document is not None and isinstance(context, Context)
        schema = execution.schema._schema
        operation = get_operation_ast(document, execution.operation_name)
        assert operation is not None, "the type of the operation is known by now"
        cost = measure(schema, document, operation, execution.variables or {})
        # One call is counted already, for the request.
        context.services.authenticator.charge(context.caller, cost // COST_OF_A_CALL - 1)
        if self._known:
            return []
        errors = validate_document(schema, document, tuple(specified_rules))
        if errors:
            GRAPHQL_REFUSED.labels("validation").inc()
        else:
            self._documents.keep(execution.query or "", document)
        return errors

    async def on_execute(self) -> AsyncIterator[None]:
        """A query takes TIMEOUT_S at most. A mutation is not cut off: what it stored must be said, and its parts have limits of
        their own; a subscription goes on.
        """
        is_limited = self.execution_context.operation_type is OperationType.QUERY
        try:
            async with asyncio.timeout(TIMEOUT_S) if is_limited else nullcontext():
                yield
        except TimeoutError as exc:
            why = f"the operation takes longer than {TIMEOUT_S:.0f} s: ask for less"
            raise refusal("timeout", why, "query_timeout", 503) from exc

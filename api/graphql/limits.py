"""How large a query is before any of it runs: depth, aliases, repetitions, variables and cost; pure.

    cost of a field = what it costs itself (1 unless COSTS says more) + (its `first`, else 1) * the cost of what is under it
    cost of a mutation's field on top of that = a call

All operations of a document are validated, whichever is asked for: what makes that slow is counted in all of them. A fragment is measured once, however often it is spread, so that measuring takes time in proportion to the text. Introspection has a
budget of its own: how many fields it gives is known from the schema.
May import graphql-core. Never: who asks, a limit of calls.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
    get_named_type,
)
from pydantic_core import to_json

MAX_DEPTH = 10
MAX_ALIASES = 30
MAX_TOKENS = 2_000
MAX_COST = 2_000
MAX_REPETITIONS = 30
"""Fields that were asked for before in the same place; the check that they may be merged compares each with each."""
MAX_SPREADS = 50
MAX_INTROSPECTION_DEPTH = 15
MAX_INTROSPECTION = 120_000
"""Fields that introspection gives, at most; the query that tools send has two thirds of it, and takes some 30 ms."""
MAX_VARIABLES_BYTES = 262_144
"""Of what variables stand for, each as often as it is named; that of a body, which has each of them once."""
COST_OF_A_CALL = 100
COSTS: Mapping[str, int] = {"explanation": 50, "message": 50}
"""Fields that ask the store more than others do."""
_MANY: Mapping[str, int] = {"types": 60, "fields": 10, "args": 2, "inputFields": 8, "enumValues": 8, "directives": 6}
"""How many there are of a list of introspection, about."""
_INTROSPECTION = frozenset({"__schema", "__type"})
_VARIABLE = re.compile(r"\$\s*(\w+)")
_DIGITS = 6
"""Of a number that are read: more of them are more than there may be of anything."""


class TooLarge(Exception):
    """The query is over a limit, which `rule` names; the message says what to do."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule


class _Size(NamedTuple):
    depth: int
    cost: int
    introspection: int


_NOTHING = _Size(0, 0, 0)


def measure(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode, variables: Mapping[str, Any]
) -> int:
    """The cost of an operation. Raises TooLarge."""
    try:
        return _Measure(schema, document, operation, variables).cost()
    except RecursionError as exc:
        raise TooLarge("depth", "fragments are nested too deeply") from exc


class _Measure:
    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        operation: OperationDefinitionNode,
        variables: Mapping[str, Any],
    ) -> None:
        self._schema, self._operation, self._given = schema, operation, variables
        self._others = [
            node for node in document.definitions if isinstance(node, OperationDefinitionNode) and node is not operation
        ]
        self._fragments = {
            node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)
        }
        self._variables = {
            node.variable.name.value: int(node.default_value.value[:_DIGITS])
            for node in operation.variable_definitions or ()
            if isinstance(node.default_value, IntValueNode)
        } | {name: int(value) for name, value in variables.items() if _is_whole(value)}
        self._measured: dict[str, _Size | None] = {}
        self._asked = set[str]()
        self._aliases = self._spreads = self._repeated = 0

    def cost(self) -> int:
        """See `measure`."""
        self._check_variables()
        size = self._of_operation(self._operation, "")
        for index, operation in enumerate(self._others):
            self._of_operation(operation, str(index))
        for name, fragment in self._fragments.items():
            # Also those that are not used: to validate them takes as long.
            self._of_fragment(name, fragment, 0, introspecting=False)
        if size.depth > MAX_DEPTH:
            raise TooLarge("depth", f"fields are nested deeper than {MAX_DEPTH}: ask again with an id from the answer")
        if size.cost > MAX_COST:
            raise TooLarge(
                "cost", f"the query costs {size.cost}, of {MAX_COST}: ask for fewer fields, or a smaller first"
            )
        if size.introspection > MAX_INTROSPECTION:
            raise TooLarge("cost", "introspection asks for too much at once")
        return size.cost + size.introspection // 100

    def _check_variables(self) -> None:
        """Raises TooLarge: a variable is sent once, and a few bytes of the query name it again."""
        loc = self._operation.loc
        named = Counter(_VARIABLE.findall(loc.source.body) if loc is not None else ())
        # Once where it is defined, once where it is used.
        if self._given and any(times > 2 for times in named.values()):
            size = sum(len(to_json(value)) * max(1, named[name] - 1) for name, value in self._given.items())
            if size > MAX_VARIABLES_BYTES:
                raise TooLarge(
                    "variables", f"variables stand for {size} bytes, of {MAX_VARIABLES_BYTES}: send several operations"
                )

    def _of_operation(self, operation: OperationDefinitionNode, path: str) -> _Size:
        return self._of(
            operation.selection_set, self._schema.get_root_type(operation.operation), 0, path, introspecting=False
        )

    def _of(
        self, selections: SelectionSetNode | None, parent: Any, level: int, path: str, *, introspecting: bool
    ) -> _Size:
        if selections is None:
            return _NOTHING
        if level > (MAX_INTROSPECTION_DEPTH if introspecting else MAX_DEPTH):
            raise TooLarge("depth", f"fields are nested deeper than {MAX_DEPTH}: ask again with an id from the answer")
        depth = cost = introspection = 0
        for node in selections.selections:
            if isinstance(node, FieldNode):
                where = self._count(node, path)
                size = self._of_field(node, parent, level, where, introspecting=introspecting)
            elif isinstance(node, InlineFragmentNode):
                on = node.type_condition
                inner = self._schema.get_type(on.name.value) if on is not None else parent
                size = self._of(node.selection_set, inner, level, path, introspecting=introspecting)
            else:
                assert isinstance(node, FragmentSpreadNode)
                size = self._of_spread(node, level, introspecting=introspecting)
            depth = max(depth, size.depth)
            cost += size.cost
            introspection += size.introspection
        return _Size(depth, cost, introspection)

    def _count(self, node: FieldNode, path: str) -> str:
        """Its place in the answer, or in that of its fragment."""
        if node.alias is not None:
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                raise TooLarge("aliases", f"more than {MAX_ALIASES} aliases: send several queries")
        where = f"{path}/{(node.alias or node.name).value}"
        self._repeated += where in self._asked
        if self._repeated > MAX_REPETITIONS:
            raise TooLarge("repetitions", f"more than {MAX_REPETITIONS} fields are asked for again in the same place")
        self._asked.add(where)
        return where

    def _of_field(self, node: FieldNode, parent: Any, level: int, path: str, *, introspecting: bool) -> _Size:
        name = node.name.value
        if introspecting or name in _INTROSPECTION:
            inner = self._of(node.selection_set, None, level + 1, path, introspecting=True)
            # Also what is under a fragment counts here: all of it is introspection.
            under = inner.introspection + inner.cost
            return _Size(0, 0, min(1 + _MANY.get(name, 1) * under, 10 * MAX_INTROSPECTION))
        fields = parent.fields if isinstance(parent, GraphQLObjectType | GraphQLInterfaceType) else {}
        field: GraphQLField | None = fields.get(name)
        child = get_named_type(field.type) if field is not None else None
        inner = self._of(node.selection_set, child, level + 1, path, introspecting=False)
        itself = COSTS.get(name, 1) + COST_OF_A_CALL * (parent is not None and parent is self._schema.mutation_type)
        cost = itself + self._first(node, field) * inner.cost
        return _Size(inner.depth + 1, min(cost, 1_000 * MAX_COST), inner.introspection)

    def _first(self, node: FieldNode, field: GraphQLField | None) -> int:
        """How many there may be of it: a wrong number is refused by the field itself."""
        argument = field.args.get("first") if field is not None else None
        if argument is None:
            return 1
        found: Any = argument.default_value if isinstance(argument.default_value, int) else 1
        for given in node.arguments or ():
            if given.name.value == "first":
                if isinstance(given.value, IntValueNode):
                    found = int(given.value.value[:_DIGITS])
                elif isinstance(given.value, VariableNode):
                    found = self._variables.get(given.value.name.value, found)
        return max(1, min(int(found), 1_000))

    def _of_spread(self, node: FragmentSpreadNode, level: int, *, introspecting: bool) -> _Size:
        self._spreads += 1
        if self._spreads > MAX_SPREADS:
            raise TooLarge("repetitions", f"more than {MAX_SPREADS} fragments are spread: send several queries")
        name = node.name.value
        fragment = self._fragments.get(name)
        if fragment is None:
            return _NOTHING  # validation says so
        return self._of_fragment(name, fragment, level, introspecting=introspecting)

    def _of_fragment(self, name: str, fragment: FragmentDefinitionNode, level: int, *, introspecting: bool) -> _Size:
        on = fragment.type_condition.name.value
        introspecting = introspecting or on.startswith("__")
        if name not in self._measured:
            self._measured[name] = None
            self._measured[name] = self._of(
                fragment.selection_set, self._schema.get_type(on), 0, name, introspecting=introspecting
            )
        size = self._measured[name]
        if size is None:
            raise TooLarge("cycle", f"the fragment {name} spreads itself")
        return size


def _is_whole(value: Any) -> bool:
    """Whether GraphQL takes it for an Int: 100.0 is one as well."""
    return type(value) is int or (isinstance(value, float) and value.is_integer())

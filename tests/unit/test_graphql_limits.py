"""How large a query is, and what is refused before it runs."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from graphql import get_introspection_query, get_operation_ast, parse

from api.graphql.limits import MAX_COST, MAX_TOKENS, TooLarge, measure
from api.graphql.scalars import Channel, State
from api.graphql.schema import graphql_schema
from schemas.channels import CHANNELS
from schemas.events import states


def cost(query: str, operation_name: str | None = None, **variables: Any) -> int:
    document = parse(query, max_tokens=MAX_TOKENS)
    operation = get_operation_ast(document, operation_name)
    assert operation is not None
    return measure(graphql_schema()._schema, document, operation, variables)


def test_enums_are_the_closed_lists() -> None:
    assert [channel.value for channel in Channel] == list(CHANNELS)
    assert {state.value for state in State} == set(states().rank)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("{ viewer { tenant } }", 2),
        ("{ notifications(first: 10) { nodes { id } } }", 1 + 10 * 2),
        ("{ notifications { nodes { id } } }", 1 + 25 * 2),
        ("query ($n: Int! = 4) { notifications(first: $n) { nodes { id } } }", 1 + 4 * 2),
        ("{ notifications(first: 2) { nodes { events(first: 3) { id } } } }", 1 + 2 * (1 + 1 + 3)),
        ("{ notifications(first: 2) { nodes { events { id } } } }", 1 + 2 * (1 + 1 + 50)),
        ("{ notification(id: 1) { explanation } }", 1 + 50),
        ("{ viewer { ...v ...v } } fragment v on Viewer { tenant keyId }", 1 + 4),
        ("{ viewer { ... on Viewer { tenant } ... { keyId } } }", 3),
        ("{ viewer { tenant } __typename }", 3),
    ],
)
def test_cost_is_fields_times_first(query: str, expected: int) -> None:
    assert cost(query) == expected


def test_first_of_a_variable_counts() -> None:
    query = "query ($n: Int!) { notifications(first: $n) { nodes { id } } }"
    assert cost(query, n=100) == 201
    assert cost(query, n=-5) == 3
    with pytest.raises(TooLarge):
        cost(query, n=10**9)


def test_first_is_read_as_graphql_reads_an_int() -> None:
    query = "query ($n: Int! = 1) { notifications(first: $n) { nodes { id } } }"
    assert cost(query, n=100.0) == 201
    for many in (query.replace("= 1", f"= {'9' * 5_000}"), query.replace("$n)", f"{'9' * 5_000})")):
        with pytest.raises(TooLarge):
            cost(many)
    with pytest.raises(TooLarge):
        cost(query, n=1e300)


def test_operations_that_are_not_asked_for_count_where_validation_is_slow() -> None:
    with pytest.raises(TooLarge) as refused:
        cost("query a { viewer { tenant } } query b {" + " viewer { tenant }" * 400 + " }", operation_name="a")
    assert refused.value.rule == "repetitions"
    # Each has its own places, and costs only when it is asked for.
    two = "query a { viewer { tenant } } query b { notifications(first: 100) { nodes { tags } } }"
    assert cost(two, operation_name="a") == 2
    assert cost(two, operation_name="b") == 201


def test_variable_counts_as_often_as_it_is_named() -> None:
    value = {"text": "x" * 100_000}
    query = "query ($d: JSON) {{ {} }}"
    render = "a{}: preview(template: 1, channel: EMAIL, data: $d) {{ text }}"
    assert cost(query.format(" ".join(map(render.format, range(2)))), d=value)
    with pytest.raises(TooLarge) as refused:
        cost(query.format(" ".join(map(render.format, range(3)))), d=value)
    assert refused.value.rule == "variables"
    assert cost(query.format(" ".join(map(render.format, range(3)))), d={"text": "x"})


FRAGMENTS = "".join(f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }} " for n in range(60))
TOO_LARGE = {
    "deep": (
        "depth",
        "{ notification(id: 1) " + "{ messages { notification " * 6 + "{ id }" + " } }" * 6 + " }",
    ),
    "deep by fragments": (
        "depth",
        "{ notification(id: 1) { ...a } } "
        "fragment a on Notification { messages { notification { messages { notification { ...b } } } } } "
        "fragment b on Notification { messages { notification { messages { notification { messages { id } } } } } }",
    ),
    "aliased": ("aliases", "{" + " ".join(f"a{n}: viewer {{ tenant }}" for n in range(31)) + "}"),
    "wide": ("cost", "{ notifications(first: 100) { nodes { events(first: 100) { id } } } }"),
    "doubling fragments": ("repetitions", "{ ...f0 } " + FRAGMENTS + "fragment f60 on Query { viewer { tenant } }"),
    "doubling fragments, few": (
        "cost",
        "{ ...f40 } "
        + "".join(f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }} " for n in range(40, 60))
        + "fragment f60 on Query { viewer { tenant } }",
    ),
    "cyclic": ("cycle", "{ viewer { ...a } } fragment a on Viewer { tenant ...b } fragment b on Viewer { ...a }"),
    "cyclic, not used": ("cycle", "{ viewer { tenant } } fragment a on Viewer { ...a }"),
    "repeated": ("repetitions", "{ viewer {" + " tenant" * 32 + "} }"),
    "repeated inline": ("repetitions", "{" + " ... { viewer { tenant } }" * 20 + "}"),
    "explained": ("cost", "{ notifications(first: 50) { nodes { explanation } } }"),
    "deep introspection": (
        "depth",
        "{ __schema " + "{ types { fields { type " * 6 + "{ name }" + " } } }" * 6 + " }",
    ),
    "wide introspection": (
        "cost",
        "{ __schema { types { fields { args { type { fields { args { type { fields { name type { name } } } } } } } } } } }",
    ),
    "introspection, many times": (
        "cost",
        "{"
        + " ".join(
            f"a{n}: __schema {{ types {{ fields {{ name args {{ name type {{ name kind }} }} }} }} }}"
            for n in range(30)
        )
        + "}",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_query_over_a_limit_is_refused_at_once(name: str) -> None:
    rule, query = TOO_LARGE[name]
    began = time.perf_counter()
    with pytest.raises(TooLarge) as refused:
        cost(query)
    assert refused.value.rule == rule
    assert time.perf_counter() - began < 1


def test_process_without_a_call_of_graphql_does_not_import_it() -> None:
    program = "import sys, api.role; sys.exit(any(name in sys.modules for name in ('strawberry', 'graphql')))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_query_of_the_tools_for_introspection_is_taken() -> None:
    assert cost(get_introspection_query(specified_by_url=True, input_value_deprecation=True)) <= MAX_COST


def test_page_with_messages_and_users_is_well_within_the_limit() -> None:
    fields = "id state reason why acceptedAt lane category tags user { id name } messages { id channel state provider }"
    assert cost(f"{{ notifications {{ nodes {{ {fields} }} }} }}") <= MAX_COST / 2

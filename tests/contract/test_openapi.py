"""The OpenAPI document against the running api: what schemathesis makes of it is answered as the document says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.integration.reference_stack import World

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


def refused_or_listed_by_item(ctx: Any, response: Any, case: Any) -> Any:
    """A wrong body is refused; of several notifications the wrong ones are, within a 202."""
    if response.status_code == 202 and b'"results"' in response.content:
        return None
    if unsent_parameters(case.query or {}, str(response.request.url)):
        return None
    return negative_data_rejection(ctx, response, case)


def unsent_parameters(query: Mapping[str, Any], url: str) -> set[str]:
    """Parameters of a case that its URL does not have: an empty list or object is not written, so it cannot be refused."""
    return set(query) - {name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}


def test_parameter_that_is_not_sent_is_noticed() -> None:
    assert unsent_parameters({"cursor": "", "limit": 3, "é": []}, "http://a/v1/users?cursor=&limit=3") == {"é"}
    assert unsent_parameters({"é": ["", 1]}, "http://a/v1/users?%C3%A9=&%C3%A9=1") == set()


EXAMPLES = 90
"""Per operation: more than 2,000 in all."""
# Not among them, positive_data_acceptance: a JSON schema cannot say which phone numbers and templates exist.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    refused_or_listed_by_item,
    unsupported_method,
    ignored_auth,
]


@pytest.fixture(scope="module")
def document(live: World) -> Any:
    return live.api.call("GET", "/openapi.json").body


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(path, method, op) for path, methods in document["paths"].items() for method, op in methods.items()]


def test_generated_cases_are_answered_as_the_document_says(live: World, document: Any) -> None:
    # What the first case of an operation names exists, so that not all of it ends in 404.
    live.api.call("POST", "/v1/users", {"id": "0", "email": "a@example.org"})
    live.api.call(
        "POST", "/v1/templates", {"id": "0", "channels": {"email": {"text": "{{ x }}"}, "sms": {"text": "x"}}}
    )
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=live.api.url)
    asked = 0
    failures: list[str] = []
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # what is no schema fails here
        if operation.path == "/v1/stream":
            continue  # its answer does not end: tests/integration/test_live.py

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @schemathesis_case(operation)  # type: ignore[untyped-decorator]
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            response = case.call(headers={"Authorization": f"Bearer {live.key}"}, timeout=30)
            case.validate_response(response, checks=CHECKS)

        try:
            ask()
        except (AssertionError, BaseExceptionGroup) as exc:
            failures.append(f"{operation.label}: {exc}")
    assert not failures, "\n\n".join(failures)
    assert asked >= 2_000


def schemathesis_case(operation: Any) -> Any:
    """@given with the operation's cases, right ones and wrong ones."""
    from hypothesis import given
    from schemathesis.generation import GenerationMode

    strategies = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    strategy = strategies[0]
    for other in strategies[1:]:
        strategy |= other
    return given(case=strategy)


def test_every_operation_has_examples_and_documents_its_problems(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    seen = set()
    for path, method, operation in operations(document):
        assert operation["operationId"] not in seen
        seen.add(operation["operationId"])
        assert {"400", "401", "429", "500", "503"} <= operation["responses"].keys(), (method, path)
        for status, answer in operation["responses"].items():
            if status.startswith("2") and "application/json" in answer.get("content", {}):
                assert answer["content"]["application/json"]["example"], (method, path)
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content["example"] is not None, (method, path)
            assert {"413", "415"} <= operation["responses"].keys()


def test_examples_are_what_the_schemas_say(document: Any) -> None:
    import jsonschema_rs

    checked = 0
    for path, method, operation in operations(document):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [answer.get("content", {}) for answer in operation["responses"].values()]
        for content in contents:
            for kind, media in content.items():
                if "example" in media and kind.endswith("json"):
                    schema = {**media["schema"], "components": document["components"]}
                    assert jsonschema_rs.is_valid(schema, media["example"]), (
                        method,
                        path,
                        json.dumps(media["example"]),
                    )
                    checked += 1
    assert checked > 30


def test_page_of_the_document_names_every_operation_and_loads_nothing(live: World, document: Any) -> None:
    page = live.api.call("GET", "/docs")
    assert page.status == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for path, _, operation in operations(document):
        assert path in page.body
        assert f'id="{operation["operationId"]}"' in page.body
    assert "<script" not in page.body
    assert "src=" not in page.body
    assert "http://" not in page.body

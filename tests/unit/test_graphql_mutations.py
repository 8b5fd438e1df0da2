"""Mutations on a broker and stores that do as they are told: REST's guarantees, REST's codes, and pointers into the arguments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast
from unittest.mock import AsyncMock, create_autospec

import pytest

from api.graphql import guard
from api.graphql.context import Context
from api.graphql.schema import graphql_schema
from api.graphql.server import GraphqlServer
from api.graphql.services import Services
from api.requests import Authenticator
from producers.notification import Notification
from producers.reference.keys import Caller, Keys
from producers.reference.propagation import Propagation
from producers.reference.service import ReferenceService
from producers.reference.template_check import TemplateCheck
from runtime.errors import Refusal, RefusedError
from runtime.http.outages import Outages
from runtime.http.problems import Problem
from runtime.workers import Workers
from tests.support.http_world import HttpWorld
from tests.unit.test_http_ingest import FakeKeys
from tracking.control import Control

SMS: dict[str, Any] = {"to": {"user_id": "u1"}, "content": {"text": "hello"}, "channels": ["SMS"]}
SEND = "mutation ($input: SendInput!) { send(input: $input) { id state acceptedAt generation replayed } }"


class GraphWorld:
    def __init__(self) -> None:
        self.http = HttpWorld()
        world = self.http.ingest_world
        self.broker, self.claims = world.broker, world.claims
        self.services = create_autospec(Services, instance=True)
        self.services.authenticator = Authenticator(cast(Keys, FakeKeys()))
        self.services.acceptance, self.services.outages = world.acceptance, Outages()
        self.services.control = create_autospec(Control, instance=True)
        self.workers = Workers()
        store = self.http.store
        self.services.reference = ReferenceService(
            store, world.templates, TemplateCheck(store, self.workers), Propagation(store.unpublished)
        )

    async def ask(self, query: str, **variables: Any) -> tuple[Any, list[dict[str, Any]]]:
        context = Context(self.services, Caller("shop", "id"), "request", "correlation")
        found = await graphql_schema().execute(query, variable_values=variables, context_value=context)
        return found.data, [{**(error.extensions or {}), "message": error.message} for error in found.errors or ()]

    def close(self) -> None:
        self.http.close()
        self.workers.close()


@pytest.fixture
async def world() -> AsyncIterator[GraphWorld]:
    made = GraphWorld()
    yield made
    made.close()


async def test_same_request_id_twice_is_one_notification(world: GraphWorld) -> None:
    first, _ = await world.ask(SEND, input={**SMS, "requestId": "k1"})
    second, _ = await world.ask(SEND, input={**SMS, "requestId": "k1"})
    assert first["send"]["id"] == second["send"]["id"]
    assert (first["send"]["replayed"], second["send"]["replayed"]) == (False, True)
    assert first["send"]["state"] == "ACCEPTED"
    assert len(world.broker.records) == 1
    _, (error,) = await world.ask(SEND, input={**SMS, "requestId": "k1", "tags": ["other"]})
    assert (error["code"], error["status"]) == ("idempotency_conflict", 409)


async def test_same_request_id_over_rest_and_graphql_is_one_notification(world: GraphWorld) -> None:
    body = {"to": {"user_id": "u1"}, "content": {"text": "hello"}, "channels": ["sms"], "priority": "bulk"}
    by_rest = await world.http.call(
        "POST", "/v1/notifications", {**body, "request_id": "k1", "routing": {"strategy": "all"}}
    )
    found, errors = await world.ask(SEND, input={**SMS, "requestId": "k1", "priority": "bulk", "strategy": "all"})
    assert by_rest.status_code == 202 and not errors
    assert found["send"]["id"] == by_rest.json()["id"]
    assert found["send"]["replayed"]


async def test_broker_that_does_not_confirm_is_kafka_unavailable_and_never_an_id(world: GraphWorld) -> None:
    world.broker.failures = 1
    data, (error,) = await world.ask(SEND, input=SMS)
    assert data is None
    assert (error["code"], error["status"], error["retry_after_s"]) == ("kafka_unavailable", 503, 1)
    world.broker.hang = True
    data, (error,) = await world.ask(SEND, input={**SMS, "requestId": "k"})
    assert (data, error["code"]) == (None, "kafka_unavailable")


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"to": {"email": "x"}}, "/input/to/email"),
        ({"sendAt": "2026-01-01T00:00:00Z", "priority": "x"}, "/input/priority"),
        ({"strategy": "x"}, "/input/strategy"),
        ({"version": 0, "template": "order", "content": None}, "/input/version"),
        ({"template": "order"}, "/input"),
        ({"data": {"a_b": float("inf")}}, "/input/data"),
        ({"requestId": "with blank"}, "/input/requestId"),
        ({"metadata": {"some_key": 5}}, "/input/metadata/some_key"),
    ],
)
async def test_wrong_input_says_where(world: GraphWorld, wrong: dict[str, Any], pointer: str) -> None:
    data, (error,) = await world.ask(SEND, input={**SMS, **wrong})
    assert data is None
    assert (error["code"], error["status"], error["pointer"]) == ("invalid_request", 400, pointer)


MANY = """mutation ($inputs: [SendInput!]!) { sendMany(inputs: $inputs) {
  ... on Accepted { id replayed } ... on Refused { index code detail errors } } }"""


async def test_each_of_many_is_accepted_or_refused_for_itself(world: GraphWorld) -> None:
    data, errors = await world.ask(MANY, inputs=[SMS, {**SMS, "to": {}}, {**SMS, "sendAt": None, "expiresAt": None}])
    assert not errors
    first, second, third = data["sendMany"]
    assert first["id"] != third["id"]
    assert (second["index"], second["code"], second["errors"][0]["pointer"]) == (1, "invalid_request", "/to")
    assert len(world.broker.records) == 2


async def test_many_that_may_all_be_sent_again_are_an_error(world: GraphWorld) -> None:
    world.broker.failures = 10
    data, (error,) = await world.ask(MANY, inputs=[SMS, SMS])
    assert (data, error["code"]) == (None, "kafka_unavailable")
    _, (error,) = await world.ask(MANY, inputs=[])
    assert (error["code"], error["pointer"]) == ("invalid_parameter", "/inputs")
    _, (error,) = await world.ask(MANY, inputs=[SMS] * 1_001)
    assert error["code"] == "invalid_parameter"


async def test_mutation_is_not_cut_off_before_kafka_has_answered(
    world: GraphWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "TIMEOUT_S", 0.01)
    send = world.broker.send

    async def late(records: Any) -> None:
        await asyncio.sleep(0.1)
        await send(records)

    monkeypatch.setattr(world.broker, "send", late)
    data, errors = await world.ask(MANY, inputs=[SMS, SMS])
    assert not errors
    assert len({found["id"] for found in data["sendMany"]}) == len(world.broker.records) == 2


async def test_each_mutation_of_an_operation_is_a_call(world: GraphWorld) -> None:
    charge = create_autospec(world.services.authenticator.charge)
    world.services.authenticator.charge = charge
    one = 'send(input: {to: {user_id: "u1"}, content: {text: "hello"}, channels: [SMS]}) { id }'
    _, errors = await world.ask("mutation { " + " ".join(f"a{n}: {one}" for n in range(10)) + " }")
    assert not errors
    charge.assert_called_once_with(Caller("shop", "id"), 9)  # the request itself is counted already
    _, (error,) = await world.ask("mutation { " + " ".join(f"a{n}: {one}" for n in range(20)) + " }")
    assert error["code"] == "query_too_large"
    assert len(world.broker.records) == 10


async def test_variable_that_is_named_again_and_again_makes_no_megabytes(world: GraphWorld) -> None:
    many = f"mutation ($i: SendInput!) {{ sendMany(inputs: [{' $i' * 900}]) {{ __typename }} }}"
    _, (error,) = await world.ask(many, i={**SMS, "data": {"text": "x" * 200_000}})
    assert error["code"] == "query_too_large"
    assert not world.broker.records


async def test_number_that_graphql_cannot_read_is_refused(world: GraphWorld) -> None:
    wanted = f'{{to: {{user_id: "u1"}}, content: {{text: "x"}}, channels: [SMS], data: {{n: {"9" * 5_000}}}}}'
    _, (error,) = await world.ask(f"mutation {{ send(input: {wanted}) {{ id }} }}")
    assert (error["code"], error["pointer"]) == ("invalid_request", "/input/data")


async def test_cancel_and_resend_are_those_of_rest(world: GraphWorld) -> None:
    nid = "019b76da-a800-7abc-8def-0123456789ab"
    world.services.control.cancel.return_value = (True, {"id": nid, "status": "cancelled"})
    data, _ = await world.ask("mutation ($id: ID!) { cancel(id: $id) { id state stored } }", id=nid)
    assert data["cancel"] == {"id": nid, "state": "CANCELLED", "stored": True}
    world.services.control.resend.return_value = (nid, 2)
    data, _ = await world.ask("mutation ($id: ID!) { resend(id: $id) { id generation acceptedAt replayed } }", id=nid)
    assert data["resend"] == {"id": nid, "generation": 2, "acceptedAt": "2026-01-01T00:00:00.000Z", "replayed": False}
    world.services.control.resend.assert_awaited_with("shop", nid, "correlation", None)
    world.services.control.cancel.side_effect = RefusedError(
        Refusal.CONFLICT, "already_settled", "it is sent", extra={"notification_status": "sent"}
    )
    _, (error,) = await world.ask("mutation ($id: ID!) { cancel(id: $id) { id } }", id=nid)
    assert (error["code"], error["status"], error["notification_status"]) == ("already_settled", 409, "sent")


async def test_fault_of_ours_says_nothing_of_itself(world: GraphWorld) -> None:
    world.services.control.cancel.side_effect = ZeroDivisionError("a secret")
    _, (error,) = await world.ask('mutation { cancel(id: "x") { id } }')
    assert (error["code"], error["status"], error["request_id"]) == ("internal_error", 500, "request")
    assert "secret" not in str(error)


def test_send_input_has_every_field_of_the_model() -> None:
    fields = set(graphql_schema()._schema.type_map["SendInput"].fields)  # type: ignore[attr-defined]
    names = {name.replace("_a", "A").replace("_r", "R").replace("_i", "I") for name in Notification.model_fields}
    assert names - {"routing"} == fields - {"version", "strategy"}


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_operation_that_the_document_has_not_is_refused(world: GraphWorld, is_streamed: bool) -> None:
    server = GraphqlServer(world.services, ())
    context = server.context(Caller("shop", "id"), "request", "correlation", None)
    asked = {"query": "query a { viewer { tenant } }", "variables": None, "operationName": "b"}
    receive, send = AsyncMock(side_effect=asyncio.Event().wait), AsyncMock()
    if is_streamed:
        found = await server.stream(asked, context, receive, send)
        assert found is not None and found[0] == 400
        assert found[1]["errors"][0]["extensions"]["code"] == "invalid_query"
        send.assert_not_called()
    else:
        with pytest.raises(Problem) as refused:
            await server.execute(asked, context)
        assert (refused.value.status, refused.value.code) == (400, "invalid_query")

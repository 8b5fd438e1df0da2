"""clients/python without an API: what is repeated with which key, where a stream goes on, and the types against the document."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NotRequired, Union, get_type_hints, is_typeddict

import heliograph_client
import httpx2
import pytest
from heliograph_client import ApiError, AsyncClient, Client, HeliographError, UnavailableError, calls, live, types

from tests.support.http_world import HttpWorld

NOTIFICATION: types.Notification = {"to": {"user_id": "ada"}, "content": {"text": "hello"}}
ACCEPTED = {"id": "n1", "status": "accepted", "accepted_at": "2026-01-01T00:00:00.000Z", "links": {}}
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FIRST_WAIT_S", 0.001), ("LONGEST_WAIT_S", 0.002)):
        monkeypatch.setattr(calls, name, value)
    monkeypatch.setattr(live, "BACK_AFTER_S", 0.001)


def client(handler: Handler, **more: float) -> Client:
    made = Client("http://api", "key", **more)
    made._http = httpx2.Client(base_url="http://api", transport=httpx2.MockTransport(handler))
    return made


class Answers:
    """Gives these in their order, and keeps what was asked."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self._answers = iter(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


BUSY = httpx2.Response(503, headers={"Retry-After": "0"}, json={"code": "kafka_unavailable", "detail": "no"})


def test_a_call_that_is_lost_or_refused_for_now_is_repeated_with_the_same_key() -> None:
    answers = Answers(
        httpx2.ReadTimeout("late"), BUSY, httpx2.Response(429, json={}), httpx2.Response(202, json=ACCEPTED)
    )
    with client(answers) as heliograph:
        assert heliograph.send(NOTIFICATION)["id"] == "n1"
    keys = [request.headers["Idempotency-Key"] for request in answers.asked]
    assert len(keys) == 4
    assert len(set(keys)) == 1
    with client(again := Answers(*[httpx2.Response(202, json=ACCEPTED)] * 3)) as heliograph:
        heliograph.send(NOTIFICATION)
        heliograph.send(NOTIFICATION, key="mine")
        heliograph.send({**NOTIFICATION, "request_id": "r1"})
    made, given, none = (request.headers.get("Idempotency-Key") for request in again.asked)
    assert made not in (keys[0], None)
    assert (given, none) == ("mine", None)


def test_many_get_their_ids_before_they_are_sent() -> None:
    answer = httpx2.Response(202, json={"results": [{"index": 0, "status": "accepted", "id": "n1"}]})
    answers = Answers(BUSY, answer)
    with client(answers) as heliograph:
        heliograph.send_many([NOTIFICATION])
    first, second = (json.loads(request.content)["notifications"] for request in answers.asked)
    assert first == second
    assert first[0]["request_id"]
    assert "request_id" not in NOTIFICATION
    assert len(calls.send_many([NOTIFICATION] * 2_001)) == 3
    assert calls.in_order([{"results": [{"index": 5}]}, {"results": [{"index": 5}]}])[1]["index"] == 1_005


def test_one_is_sent_to_one() -> None:
    with client(Answers()) as heliograph, pytest.raises(HeliographError, match="send_many"):
        heliograph.send({**NOTIFICATION, "to": [{"user_id": "ada"}, {"user_id": "bob"}]})


def test_what_would_be_done_twice_is_not_repeated_once_it_may_have_been_done() -> None:
    for lost in (httpx2.ReadTimeout("late"), BUSY):
        with client(answers := Answers(lost)) as heliograph, pytest.raises(HeliographError):
            heliograph.resend("n1")
        assert len(answers.asked) == 1
    never_sent = Answers(httpx2.ConnectError("refused"), httpx2.Response(202, json={"id": "n1", "generation": 1}))
    with client(never_sent) as heliograph:
        assert heliograph.resend("n1")["generation"] == 1


def test_a_refusal_says_what_the_api_says_and_is_not_repeated() -> None:
    problem = {"code": "invalid_request", "detail": "/to: needed", "errors": [{"pointer": "/to"}], "request_id": "q"}
    with client(answers := Answers(httpx2.Response(400, json=problem))) as heliograph:
        with pytest.raises(ApiError, match="400 invalid_request: /to: needed") as caught:
            heliograph.send(NOTIFICATION)
        assert (caught.value.errors, caught.value.request_id) == ([{"pointer": "/to"}], "q")
        assert len(answers.asked) == 1
    with client(Answers(httpx2.Response(200, text="<html>"))) as heliograph, pytest.raises(UnavailableError):
        heliograph.get("n1")
    with client(lambda _: BUSY, retry_for_s=0.02) as heliograph, pytest.raises(ApiError, match="503"):
        heliograph.get("n1")


def event(kind: str, place: str, data: Any) -> str:
    return f"event: {kind}\nid: {place}\ndata: {json.dumps(data)}\n\n"


def stream(*events: str) -> httpx2.Response:
    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text="retry: 10\n\n" + "".join(events))


def snapshot(*facts: str, status: str = "routed") -> str:
    data = {"notification": {"id": "n1", "status": status}, "events": [{"id": one} for one in facts], "complete": True}
    return event("snapshot", "1-a", data)


def status(fact: str) -> str:
    return event("status", f"1-{fact}", {"event": {"id": fact}, "notification": {"status": "sent"}, "settled": True})


SETTLED = event("end", "end", {"reason": "settled"})


def test_a_stream_goes_on_behind_its_last_event_and_tells_no_fact_twice() -> None:
    answers = Answers(
        stream(snapshot("f1"), status("f2")),
        httpx2.ConnectError("it restarts"),
        BUSY,
        stream(snapshot("f1", "f2"), status("f2"), status("f3"), event("end", "1-x", {"reason": "restart"})),
        stream(snapshot("f1", "f2", "f3"), SETTLED),
    )
    with client(answers) as heliograph:
        told = list(heliograph.watch("n1"))
    facts = [one.data["event"]["id"] for one in told if one.kind == "status"]
    assert facts == ["f2", "f3"]
    assert told[-1].data == {"reason": "settled"}
    assert [request.headers.get("Last-Event-ID") for request in answers.asked] == [None, "1-f2", "1-f2", "1-f2", "1-x"]
    assert {request.url.query for request in answers.asked} == {b"notification_id=n1&until=settled"}


def test_a_wait_ends_with_the_status_of_the_end_and_not_of_the_beginning() -> None:
    answers = Answers(
        stream(snapshot("f1"), status("f2"), SETTLED), stream(snapshot("f1", "f2", status="sent"), SETTLED)
    )
    with client(answers) as heliograph:
        assert heliograph.wait("n1")["status"] == "sent"
    refused = httpx2.Response(404, json={"code": "not_found", "detail": "there is no such notification"})
    with client(Answers(refused)) as heliograph, pytest.raises(ApiError, match="404 not_found"):
        heliograph.wait("n1")
    with client(Answers()) as heliograph, pytest.raises(HeliographError, match="at most 100"):
        list(heliograph.watch(*map(str, range(101))))


def test_nobody_who_answers_ends_a_stream_with_an_error() -> None:
    def gone(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    with client(gone, retry_for_s=0.02) as heliograph, pytest.raises(UnavailableError, match="refused"):
        list(heliograph.watch("n1"))


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name.replace("aclose", "close"): [str(each) for each in inspect.signature(member).parameters.values()]
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)
    assert len(methods(Client)) > 25


# ---------------------------------------------------------------- types


@pytest.fixture(scope="module")
def schemas() -> Iterator[dict[str, Any]]:
    world = HttpWorld()
    yield asyncio.run(world.call("GET", "/openapi.json")).json()["components"]["schemas"]
    world.close()


def annotation(schema: dict[str, Any]) -> Any:
    """What Python calls what a schema allows."""
    if "$ref" in schema:
        return getattr(types, schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return Literal[schema["const"]]
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    if either := schema.get("anyOf"):
        return Union[tuple(map(annotation, either))]  # noqa: UP007 of a list that is known at run time
    if schema["type"] == "array":
        return list[annotation(schema["items"])]  # type: ignore[misc]
    if schema["type"] == "object":
        values = schema.get("additionalProperties")
        return dict[str, annotation(values) if isinstance(values, dict) else Any]  # type: ignore[misc]
    return {"string": str, "integer": int, "boolean": bool, "null": type(None)}[schema["type"]]


def fields(schema: dict[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        name: annotation(each) if name in required else NotRequired[annotation(each)]
        for name, each in schema["properties"].items()
    }


OURS = {"Result", "StreamToken"}
"""Of answers whose schemas have no name, or several forms: tests/integration/test_clients.py has them of a running API."""
DESCRIBED = sorted(name for name, value in vars(types).items() if is_typeddict(value) and name not in OURS)


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_type_is_what_the_document_says(schemas: dict[str, Any], name: str) -> None:
    assert get_type_hints(getattr(types, name), include_extras=True) == fields(schemas[name])


def test_what_the_client_takes_and_gives_is_described() -> None:
    assert len(DESCRIBED) > 25
    used = {
        word
        for member in vars(Client).values()
        if inspect.isfunction(member)
        for hint in map(str, get_type_hints(member).values())
        for word in re.findall(r"heliograph_client\.types\.(\w+)", hint)
    }
    assert used <= {*DESCRIBED, *OURS}
    assert heliograph_client.__all__

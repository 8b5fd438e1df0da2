"""Two tenants on one api: whatever one of them calls, it neither sees nor changes what the other has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from producers.reference.keys import create_api_key
from runtime import ids
from schemas.codec import codec
from schemas.topics import CANCELLATIONS, requests_topic
from tests.integration.reference_stack import PEPPER, Answer, Api, World, postgres, text_to, world
from tests.integration.test_clickhouse_schema import Store
from tests.support.clickhouse import Server
from tests.support.watching import events_of

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]
__all__ = ["postgres", "world"]

SECRET = "of-the-other"
"""Stands in everything that the other tenant has, and nowhere else."""


@dataclass
class Tenants:
    """Me, the other one, and what the other one has."""

    me: Api
    other: Api
    ids: dict[str, list[str]]
    operations: list[tuple[str, str]]

    def belongings(self) -> dict[str, Any]:
        """All that the other one sees of its own."""
        return {
            path: self.other.call("GET", path).body
            for path in (
                "/v1/users",
                f"/v1/users/{SECRET}",
                f"/v1/users/{SECRET}/preferences",
                "/v1/templates",
                f"/v1/templates/{SECRET}",
                f"/v1/templates/{SECRET}/versions",
                "/v1/suppressions",
                "/v1/suppressions/export",
                "/v1/webhooks",
                "/v1/notifications",
                *(f"/v1/notifications/{nid}/events" for nid in self.ids["notification_id"]),
            )
        }


@pytest.fixture(scope="module")
def tenants(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    store = Store(server)
    world.run("api", HELIOGRAPH_CLICKHOUSE__URL=store.settings.url)
    world.wait_ready()
    me = world.api
    other = Api(me.url, create_api_key(world.postgres.dsn, "other", "tests", pepper=PEPPER))
    assert other.call("POST", "/v1/users", {"id": SECRET, "name": SECRET, "email": f"{SECRET}@x.de"}).status == 201
    other.call("PUT", f"/v1/users/{SECRET}/preferences", {"categories": {SECRET: {"email": False}}})
    template = {"id": SECRET, "channels": {"email": {"text": f"{SECRET} {{{{ n }}}}"}}}
    assert other.call("POST", "/v1/templates", template).status == 201
    suppression = other.call(
        "POST", "/v1/suppressions", {"channel": "email", "address": f"{SECRET}@x.de", "reason": SECRET}
    )
    sent = [
        other.send({**text_to(SECRET), "tags": [SECRET], "request_id": f"{SECRET}-{n}"}).body["id"] for n in range(3)
    ]
    webhook = other.call("POST", "/v1/webhooks", {"url": f"https://{SECRET}.example/x", "description": SECRET})
    assert webhook.status == 201
    document = me.call("GET", "/openapi.json").body
    routes = ((method.upper(), path) for path, methods in document["paths"].items() for method in methods)
    operations = [route for route in routes if route != ENDLESS]
    known = {
        "notification_id": sent,
        "user_id": [SECRET],
        "template_id": [SECRET],
        "suppression_id": [suppression.body["id"]],
        "webhook_id": [webhook.body["id"]],
    }
    store.insert(world.records(requests_topic("normal")))  # the sink's work
    assert len(other.call("GET", "/v1/notifications").body["entries"]) == 3
    yield Tenants(me, other, known, operations)
    world.broker.stop_roles()
    assert server.stop() == 0


BODIES: tuple[Any, ...] = (
    None,
    {},
    {"version": 1},
    {"channel": "email", "data": {"n": 1}},
    {"name": "mine"},
    {"channels": {"sms": False}},
    {"channels": {"email": {"text": '{% include "of-the-other" %}'}}, "publish": True},
    {"id": SECRET, "channels": {"sms": {"text": "x"}}, "layout": SECRET},
    {"to": {"user_id": SECRET}, "template": {"id": SECRET}, "data": {"n": 1}},
    {"to": {"user_id": SECRET}, "content": {"text": "x"}, "request_id": f"{SECRET}-0"},
    {"notifications": [{"to": {"user_id": SECRET}, "template": {"id": SECRET}, "data": {"n": 1}}]},
    {"url": "https://mine.example/x"},
    {"enabled": False},
    {"overlap_s": 0},
    {"tenant": "other"},
)
QUERIES = (
    "",
    "?user_id=" + SECRET,
    "?tag=" + SECRET,
    "?limit=200",
    "?version=1",
    "?address=" + SECRET + "@x.de",
    "?status=accepted",
    "?tenant=other",
)
ENDLESS = ("GET", "/v1/stream")
"""Its answer does not end; tests/integration/test_live.py shows whose facts are in it."""
HEADERS: tuple[dict[str, str], ...] = ({}, {"Idempotency_Key": f"{SECRET}-1"}, {"X_Tenant": "other"})


def call(
    api: Api,
    ids_of_other: dict[str, list[str]],
    operation: tuple[str, str],
    query: str,
    body: Any,
    headers: dict[str, str],
    pick: int,
) -> Answer:
    method, template = operation

    def fill(match: re.Match[str]) -> str:
        candidates = ids_of_other[match[1]]
        return candidates[pick % len(candidates)]

    path = re.sub(r"\{(\w+)\}", fill, template)
    raw = None if body is None else json.dumps(body).encode()
    return api.call(method, path + query, raw=raw, **headers)


def seen(answer: Answer, sent: Any) -> str:
    """The answer's text without what the call itself said."""
    text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
    return "" if sent and SECRET in json.dumps(sent) else text


@settings(
    max_examples=250,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_nothing_of_the_other_tenant_is_seen_or_changed(tenants: Tenants, data: st.DataObject) -> None:
    operation = data.draw(st.sampled_from(tenants.operations))
    query, body = data.draw(st.sampled_from(QUERIES)), data.draw(st.sampled_from(BODIES))
    headers, pick = data.draw(st.sampled_from(HEADERS)), data.draw(st.integers(0, 2))
    answer = call(tenants.me, tenants.ids, operation, query, body, headers, pick)
    assert answer.status < 500, (operation, answer)
    text = seen(answer, body)
    for name in ("notification_id", "suppression_id"):
        assert not any(known in text for known in tenants.ids[name]), (operation, query, body)
    if operation[0] == "GET" and tenants.me.call("GET", f"/v1/users/{SECRET}").status != 200:
        assert f"{SECRET}@x.de" not in text
    if answer.status < 300 and re.search(r"\{(notification|suppression)_id\}", operation[1]):
        raise AssertionError(f"{operation} found what is the other's")


def test_belongings_are_as_they_were_after_every_route_was_tried(tenants: Tenants, world: World) -> None:
    before = tenants.belongings()
    assert SECRET in json.dumps(before["/v1/users"])
    for operation in tenants.operations:
        for body in BODIES:
            answer = call(tenants.me, tenants.ids, operation, "", body, {}, 0)
            assert answer.status < 500, (operation, body, answer)
    after = tenants.belongings()
    assert after == before
    # Nor is there a wish or a request in the other's name.
    assert [
        r for r in world.records(CANCELLATIONS) if r.key in {nid.encode() for nid in tenants.ids["notification_id"]}
    ] == []
    requests = [codec("NotificationRequest").decode(r.value) for r in world.records(requests_topic("normal"))]
    assert sorted(r["notification_id"] for r in requests if r["tenant"] == "other") == sorted(
        tenants.ids["notification_id"]
    )
    assert {r["tenant"] for r in requests} == {"default", "other"}


def test_every_route_needs_a_key(tenants: Tenants) -> None:
    nobody = Api(tenants.me.url, "hg_nobody")
    for operation in (*tenants.operations, ENDLESS):
        assert call(nobody, tenants.ids, operation, "", {}, {}, 0).status == 401, operation


def test_same_idempotency_key_of_two_tenants_is_two_notifications(tenants: Tenants) -> None:
    body = {**text_to(SECRET), "tags": [SECRET], "request_id": f"{SECRET}-0"}
    mine = tenants.me.send(body)
    assert mine.status in (202, 409)
    assert mine.body.get("id") != tenants.other.send(body).body["id"] == tenants.ids["notification_id"][0]
    assert ids.accepted_at(tenants.ids["notification_id"][0])


# ---------------------------------------------------------------- one id, every face


def by_rest(api: Api, nid: str) -> str:
    answer = api.call("GET", f"/v1/notifications/{nid}")
    return "found" if answer.status == 200 else str(answer.body["code"])


def by_events(api: Api, nid: str) -> str:
    request = urllib.request.Request(f"{api.url}/v1/stream?notification_id={nid}")
    request.add_header("Authorization", f"Bearer {api.key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as stream:
            # Where the store is slow a stream begins without it, and ends once it is known that there is nothing.
            for one in events_of(iter(stream)):
                if one.kind == "end" or (one.kind == "snapshot" and one.data["notification"] is not None):
                    return "found" if one.kind == "snapshot" else str(one.data["reason"])
    except urllib.error.HTTPError as exc:
        with exc:
            return str(json.loads(exc.read())["code"])
    return "nothing"


def by_websocket(api: Api, nid: str) -> str:
    address = api.url.replace("http://", "ws://") + "/v1/ws"
    headers = {"Authorization": f"Bearer {api.key}"}
    with connect(address, additional_headers=headers, subprotocols=[Subprotocol("heliograph.v1")]) as socket:
        socket.send(json.dumps({"type": "subscribe", "id": "a", "filter": {"notification_id": nid}}))
        while True:
            message = json.loads(socket.recv(30))
            if message["type"] == "snapshot" and message["notification"] is not None:
                return "found"
            if message["type"] in ("error", "end"):
                return str(message.get("code") or message["reason"])


def by_command(*words: str) -> Callable[[Api, str], str]:
    def ask(api: Api, nid: str) -> str:
        line = [sys.executable, "-m", "console.cli", *words, nid, "--api", api.url, "--api-key", api.key]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        return "found" if done.returncode == 0 else f"{done.returncode} {done.stderr}"

    return ask


FACES: dict[str, Callable[[Api, str], str]] = {
    "rest": by_rest,
    "server-sent events": by_events,
    "websocket": by_websocket,
    "command status": by_command("status"),
    "command explain": by_command("explain"),
}


@pytest.mark.parametrize("face", FACES)
def test_id_of_the_other_is_as_unknown_as_one_that_nobody_has(tenants: Tenants, face: str) -> None:
    ask, theirs = FACES[face], tenants.ids["notification_id"][0]
    assert ask(tenants.other, theirs) == "found"
    nobodys = ids.notification_id(ids.accepted_at(theirs), "nobody")
    mine, unknown = (ask(tenants.me, nid).replace(nid, "ID") for nid in (theirs, nobodys))
    assert mine == unknown != "found"
    assert "not_found" in mine or "there is no such notification" in mine, mine

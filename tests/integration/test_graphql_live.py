"""GraphQL on a whole stack: mutations are stored, subscriptions say what REST says, and abuse ends the connection, not the process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from producers.reference.keys import create_api_key, revoke_api_key
from runtime.settings import Settings
from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until
from tests.integration.test_live import facts, mail
from tests.support.api_process import environment
from tests.support.toolchains import node_project, python_environment

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    # The client of websockets leaves the socket of a connection that the server ended to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
__all__ = ["running"]

CLIENTS = Path(__file__).resolve().parents[1] / "contract"
CHANGED = """subscription ($id: ID!) { notificationChanged(id: $id) {
  cursor settled event { id state } notification { id state messages { state } } } }"""
ALL = "subscription ($after: String) { statusEvents(filter: {}, after: $after) { cursor event { id } notification { id } } }"


def ask(running: Stack, query: str, **variables: Any) -> Any:
    code, body, _ = running.call("POST", "/graphql", {"query": query, "variables": variables})
    assert code == 200 and "errors" not in body, body
    return body["data"]


@pytest.fixture(scope="module")
def new_key(running: Stack) -> Callable[[str], str]:
    """A key of a tenant."""
    pepper = Settings(api={"key_pepper": environment(running)["HELIOGRAPH_API__KEY_PEPPER"]}).api.key_pepper  # type: ignore[arg-type]
    return lambda tenant: create_api_key(running.endpoints["postgres"], tenant, "test", pepper=pepper)


class Socket:
    """A client of graphql-transport-ws."""

    def __init__(self, running: Stack, key: str | None = None, **more: Any) -> None:
        url = running.endpoints["api"].replace("http", "ws") + "/graphql"
        self.key = key or running.endpoints["api_key"]
        self.ws: ClientConnection = connect(
            url, subprotocols=[Subprotocol("graphql-transport-ws")], max_size=None, legacy=True, **more
        )

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.ws.close()

    def say(self, kind: str, **more: Any) -> None:
        self.ws.send(json.dumps({"type": kind, **more}))

    def hear(self, timeout: float = 20) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.ws.recv(timeout))
        return message

    def start(self) -> Socket:
        self.say("connection_init", payload={"Authorization": f"Bearer {self.key}"})
        assert self.hear() == {"type": "connection_ack"}
        return self

    def subscribe(self, name: str, query: str, **variables: Any) -> None:
        self.say("subscribe", id=name, payload={"query": query, "variables": variables})

    def closed(self, timeout: float = 20) -> int:
        """The code that it is closed with."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                self.ws.recv(timeout)
            except ConnectionClosed as exc:
                assert exc.rcvd is not None
                return int(exc.rcvd.code)
        raise AssertionError("it is not closed")


def test_mutations_are_stored_and_read_again(running: Stack) -> None:
    user = ask(
        running,
        """mutation { putUser(input: {id: "g1", name: "G", email: "g1@example.org", devices: []}) { id name preferences { categories } } }""",
    )["putUser"]
    assert user == {"id": "g1", "name": "G", "preferences": {"categories": {}}}
    assert ask(running, 'mutation { putUser(input: {id: "g1", name: "H"}) { name email } }')["putUser"] == {
        "name": "H",
        "email": None,
    }
    wanted = ask(
        running, 'mutation { putPreferences(user: "g1", input: {channels: {sms: false}}) { preferences { channels } } }'
    )
    assert wanted["putPreferences"]["preferences"]["channels"] == {"sms": False}
    template = """mutation ($text: JSON!, $publish: Boolean!) { writeTemplate(input: {id: "g", channels: $text, publish: $publish}) {
      id version published channels } }"""
    for version, publish in ((1, True), (2, False)):
        text = {"email": {"subject": "S", "text": f"version {version}"}}
        written = ask(running, template, text=text, publish=publish)["writeTemplate"]
        assert written == {"id": "g", "version": version, "published": publish, "channels": text}
    published = ask(running, 'mutation { publishTemplate(id: "g", version: 2) { publishedVersion latestVersion } }')
    assert published["publishTemplate"] == {"publishedVersion": 2, "latestVersion": 2}
    suppressed = ask(
        running, 'mutation { suppress(input: {channel: EMAIL, address: "No@example.org"}) { id address reason } }'
    )["suppress"]
    assert (suppressed["address"], suppressed["reason"]) == ("No@example.org", "manual")
    assert (
        ask(running, "mutation ($id: ID!) { unsuppress(id: $id) }", id=suppressed["id"])["unsuppress"]
        == suppressed["id"]
    )
    assert ask(running, 'mutation { deleteUser(id: "g1") }') == {"deleteUser": "g1"}
    assert ask(running, '{ user(id: "g1") { id } }') == {"user": None}
    sent = ask(
        running,
        'mutation { send(input: {to: {email: "g@example.org"}, template: "g", requestId: "g-1"}) { id } again: send(input: {to: {email: "g@example.org"}, template: "g", requestId: "g-1"}) { id replayed } }',
    )
    assert sent["again"] == {"id": sent["send"]["id"], "replayed": True}
    nid = sent["send"]["id"]
    until(lambda: len(facts(running, nid)) >= 2, 30, "it is sent")
    shown = ask(running, "query ($id: ID!) { notification(id: $id) { state template { version } } }", id=nid)
    assert shown["notification"] == {"state": "SENT", "template": {"version": 2}}


def test_subscription_to_one_sends_the_facts_of_rest(running: Stack) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    nid = mail(running, send_at=at)
    heard: list[dict[str, Any]] = []
    with Socket(running).start() as client:
        client.subscribe("a", CHANGED, id=nid)
        while not heard or not heard[-1]["settled"]:
            message = client.hear(30)
            assert message["type"] == "next" and "errors" not in message["payload"], message
            heard.append(message["payload"]["data"]["notificationChanged"])
        client.say("complete", id="a")
    assert [one["event"]["state"] for one in heard][-2:] == ["routed", "sent"]
    assert heard[-1]["notification"]["state"] == "SENT"
    assert len({one["event"]["id"] for one in heard}) == len(heard)
    until(lambda: len(facts(running, nid)) >= len(heard), 30, "analytics have all")
    assert {one["event"]["id"] for one in heard} == set(facts(running, nid))


def test_query_and_mutation_run_over_a_socket(running: Stack) -> None:
    with Socket(running).start() as client:
        client.subscribe("a", "{ viewer { tenant } }")
        assert client.hear()["payload"] == {"data": {"viewer": {"tenant": "default"}}}
        assert client.hear() == {"type": "complete", "id": "a"}
        client.subscribe("a", "{ viewer { secret } }")
        message = client.hear()
        assert message["type"] == "error"
        assert message["payload"][0]["extensions"]["code"] == "invalid_query"
        client.say("ping")
        assert client.hear() == {"type": "pong"}


@contextmanager
def stream(running: Stack, query: str, key: str | None = None, **variables: Any) -> Iterator[http.client.HTTPResponse]:
    request = urllib.request.Request(
        running.endpoints["api"] + "/graphql", json.dumps({"query": query, "variables": variables}).encode()
    )
    request.add_header("Authorization", f"Bearer {key or running.endpoints['api_key']}")
    request.add_header("Content-Type", "application/json")
    request.add_header("Accept", "text/event-stream")
    with closing(urllib.request.urlopen(request, timeout=30)) as response:
        yield response


def results(response: Any) -> Iterator[Any]:
    """Results of a stream, until it is complete."""
    event = ""
    for raw in response:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data:") and event == "next":
            yield json.loads(line.removeprefix("data:"))
        elif event == "complete" and line == "":
            return


def test_subscription_resumes_after_a_cursor_by_server_sent_events(running: Stack) -> None:
    with stream(running, ALL) as first:
        assert first.headers["content-type"].startswith("text/event-stream")
        following = results(first)
        time.sleep(1)  # the stream has begun before what it is to send
        nid = mail(running)
        event = next(one for one in following if one["data"]["statusEvents"]["notification"]["id"] == nid)
    later = mail(running)
    until(lambda: len(facts(running, later)) >= 2, 30, "it is sent")
    with stream(running, ALL, after=event["data"]["statusEvents"]["cursor"]) as again:
        heard = []
        for one in results(again):
            heard.append(one["data"]["statusEvents"])
            if heard[-1]["event"]["id"] in facts(running, later) and len(heard) > 1:
                break
    assert event["data"]["statusEvents"]["event"]["id"] not in {one["event"]["id"] for one in heard}
    assert later in {one["notification"]["id"] for one in heard}
    with stream(running, ALL, after="1-AAAA") as wrong:
        refused = next(results(wrong))
    assert refused["errors"][0]["extensions"]["code"] == "reset"


def test_query_streams_one_result(running: Stack) -> None:
    with stream(running, "{ viewer { tenant } }") as response:
        assert list(results(response)) == [{"data": {"viewer": {"tenant": "default"}}}]
    code, body, _ = running.call("POST", "/graphql", {"query": "subscription { x }"}, {"Accept": "text/event-stream"})
    assert (code, body["errors"][0]["extensions"]["code"]) == (400, "invalid_query")
    code, body, _ = running.call("POST", "/graphql", {"query": ALL})
    assert (code, body["errors"][0]["extensions"]["code"]) == (400, "invalid_query")


def test_another_tenant_hears_nothing(running: Stack, new_key: Callable[[str], str]) -> None:
    nid = mail(running)
    with Socket(running, new_key("other")).start() as client:
        client.subscribe("a", CHANGED, id=nid)
        message = client.hear()
        error = (message["payload"] if message["type"] == "error" else message["payload"]["errors"])[0]
        assert error["extensions"]["code"] == "not_found"
        client.subscribe("b", ALL)
        mail(running)
        with pytest.raises(TimeoutError):
            while True:
                assert client.hear(3).get("type") != "next"


def test_revoked_key_ends_its_subscriptions_and_starts_no_more(running: Stack, new_key: Callable[[str], str]) -> None:
    key = new_key("default")
    nid = mail(running)
    with Socket(running, key).start() as client:
        client.subscribe("a", CHANGED, id=nid)
        client.hear()
        revoke_api_key(running.endpoints["postgres"], key.split("_")[1])
        began = time.monotonic()
        codes = []
        while (message := client.hear())["type"] != "complete":
            codes += [error["extensions"]["code"] for error in message["payload"].get("errors", ())]
        assert codes == ["revoked"] and time.monotonic() - began < 10
        refused: list[dict[str, Any]] = []

        def is_refused() -> bool:  # a key that is known is looked up again within a second
            client.subscribe(f"b{time.monotonic()}", "{ viewer { tenant } }")
            refused.append(client.hear())
            return bool(refused[-1]["type"] == "error") or client.hear()["type"] != "complete"

        until(is_refused, 10, "the key is refused")
        assert refused[-1]["payload"][0]["extensions"]["code"] == "unauthenticated"
    with Socket(running, key) as client:
        client.say("connection_init", payload={"Authorization": f"Bearer {key}"})
        assert client.closed() == 4403


# ---------------------------------------------------------------- abuse


def alive(running: Stack) -> None:
    code, _, _ = running.call("GET", "/livez")
    assert code == 200


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"\x00\x01"], 4400),
        (["not json"], 4400),
        (["[]"], 4400),
        (["5"], 4400),
        (['{"type": 5}'], 4400),
        (['{"type": "start"}'], 4400),
        (['{"type": "subscribe", "id": [1], "payload": {"query": "{x}"}}'], 4400),
        (['{"type": "subscribe", "id": "a", "payload": []}'], 4400),
        (['{"type": "subscribe", "id": "a", "payload": {"query": 5}}'], 4400),
        (['{"type": "subscribe", "id": "a", "payload": {"query": "{ viewer { tenant } }"}}'], 4401),
        (['{"type": "connection_init", "payload": {"Authorization": "Bearer hg_x"}}'], 4403),
        (['{"type": "connection_init", "payload": []}'], 4400),
        (['{"type": "ping", "payload": {"x": "' + "x" * 20_000 + '"}}'], 1009),
        (["[" * 9_000 + "]" * 7_000], 4400),
    ],
)
def test_malformed_frame_ends_the_socket_with_its_code(running: Stack, frames: list[Any], code: int) -> None:
    with Socket(running) as client:
        for frame in frames:
            client.ws.send(frame)
        assert client.closed() == code
    alive(running)


def test_socket_needs_the_protocol_and_an_allowed_origin(running: Stack) -> None:
    url = running.endpoints["api"].replace("http", "ws") + "/graphql"
    for protocol, origin, code in (
        ("graphql-ws", None, 4406),
        ("graphql-transport-ws", "https://evil.example", 4403),
    ):
        ws = connect(
            url, legacy=True, subprotocols=[Subprotocol(protocol)], origin=None if origin is None else Origin(origin)
        )
        with pytest.raises(ConnectionClosed) as ended:
            ws.recv(10)
        assert ended.value.rcvd is not None and ended.value.rcvd.code == code


def test_socket_that_says_nothing_is_closed(running: Stack) -> None:
    with Socket(running) as client:
        began = time.monotonic()
        assert client.closed() == 4408
        assert time.monotonic() - began < 15


def test_ten_thousand_subscribe_frames_are_cut_off(running: Stack) -> None:
    with Socket(running).start() as client:
        frame = json.dumps({"type": "subscribe", "id": "x", "payload": {"query": ALL}})
        try:
            for number in range(10_000):
                client.ws.send(frame.replace('"x"', f'"{number}"'))
        except ConnectionClosed:
            pass
        assert client.closed() == 4429
    alive(running)


def test_more_than_twenty_operations_at_once_are_refused(running: Stack) -> None:
    nid = mail(running)
    with Socket(running).start() as client:
        for number in range(21):
            client.subscribe(str(number), CHANGED, id=nid)
            time.sleep(0.06)
        while (message := client.hear())["type"] != "error":
            pass
        assert (message["id"], message["payload"][0]["extensions"]["code"]) == ("20", "too_many_watchers")


def test_half_open_sockets_do_not_hold_others_up(running: Stack) -> None:
    where = urlsplit(running.endpoints["api"])
    assert where.hostname is not None and where.port is not None
    half: list[socket.socket] = []
    try:
        for number in range(100):
            one = socket.create_connection((where.hostname, where.port))
            one.sendall(b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n" if number % 2 else b"GET /gra")
            half.append(one)
        began = time.monotonic()
        assert ask(running, "{ viewer { tenant } }") == {"viewer": {"tenant": "default"}}
        assert time.monotonic() - began < 5
    finally:
        for one in half:
            one.close()


def test_expensive_queries_leave_others_their_turn(running: Stack) -> None:
    """Each is refused or answered without holding the loop: a health check beside them takes no multiple of one alone."""
    queries = [
        "{" + " viewer" * 1_900 + "}",
        "{" + " ".join("... { viewer { tenant } }" for _ in range(240)) + "}",
        "{" + " ".join(f"x{n}" for n in range(1_900)) + "}",
        "{ ...f0 } " + "".join(f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }} " for n in range(90)) + "fragment f90 on Query { viewer { tenant } }",
        "{ __schema { types { fields { name args { name type { name } } } } } }",
        "{ notifications(first: 100) { nodes { id state acceptedAt } } }",
    ]  # fmt: skip
    for query in queries:
        running.call("POST", "/graphql", {"query": query})
    slowest = 0.0
    for query in queries:
        began = time.perf_counter()
        running.call("POST", "/graphql", {"query": query})
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 2.0  # 20 times the budget: the machine may be busy
    alive(running)


# ---------------------------------------------------------------- foreign clients


def judge(command: list[str], **more: Any) -> list[Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.doubles
@pytest.mark.parametrize("kind", ["ws", "sse"])
def test_subscription_by_a_client_of_npm(running: Stack, kind: str) -> None:
    home = node_project(CLIENTS / "graphql_clients")
    nid = mail(running)
    until(lambda: len(facts(running, nid)) >= 2, 30, "it is sent")
    url = running.endpoints["api"] + "/graphql"
    variables = json.dumps({"id": nid})
    command = [
        "node",
        "watch.mjs",
        kind,
        url.replace("http", "ws") if kind == "ws" else url,
        running.endpoints["api_key"],
    ]
    heard = judge([*command, CHANGED, variables, "2"], cwd=home)
    assert {one["data"]["notificationChanged"]["event"]["id"] for one in heard} <= set(facts(running, nid))
    assert len(heard) == 2


@pytest.mark.doubles
def test_subscription_by_gql(running: Stack) -> None:
    python = python_environment(CLIENTS / "gql_client") / "python"
    nid = mail(running)
    until(lambda: len(facts(running, nid)) >= 2, 30, "it is sent")
    url = running.endpoints["api"] + "/graphql"
    script = CLIENTS / "gql_client" / "watch.py"
    heard = judge([str(python), str(script), url, running.endpoints["api_key"], CHANGED, json.dumps({"id": nid}), "2"])
    assert heard[0] == {"viewer": {"tenant": "default"}}
    assert {one["notificationChanged"]["event"]["id"] for one in heard[1:]} <= set(facts(running, nid))
    assert len(heard) == 3


# Last: it ends the API of the stack.
def test_asked_to_stop_it_ends_subscriptions_and_sockets_at_once(running: Stack) -> None:
    nid = mail(running)
    with Socket(running).start() as client, stream(running, CHANGED, id=nid) as response:
        client.subscribe("a", CHANGED, id=nid)
        client.hear()
        following = results(response)
        next(following)
        began = time.monotonic()

        os.kill(running.endpoints["pids"]["api"], signal.SIGTERM)
        codes = [error["extensions"]["code"] for one in following for error in one.get("errors", ())]
        assert codes == ["restart"]
        assert client.closed() == 1012
        assert time.monotonic() - began < 5

"""Live status on a whole stack: what is watched is what GET says, whatever happens to the process, and nobody else's."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from producers.reference.keys import create_api_key, revoke_api_key
from runtime.settings import Settings
from tests.e2e.conftest import Stack, running
from tests.faults.live import Plan, Told, run
from tests.integration.conftest import until
from tests.support.api_process import ApiProcess, environment
from tests.support.watching import Watcher
from tracking.live.places import read_place, write_place

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    # The client of websockets leaves the socket of a connection that the server ended to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
__all__ = ["running"]


def mail(running: Stack, **more: Any) -> str:
    body = {
        "to": {"email": f"l-{uuid.uuid4().hex[:8]}@example.org"},
        "content": {"subject": "S", "text": "hello"},
        "channels": ["email"],
        **more,
    }
    code, answer, _ = running.call("POST", "/v1/notifications", body)
    assert code == 202, answer
    return str(answer["id"])


def watch(running: Stack, query: str, key: str | None = None, **more: Any) -> Watcher:
    endpoints = running.endpoints
    address = f"{endpoints['api']}/v1/stream{query}"
    return Watcher(lambda: address, key or endpoints["api_key"], **more).start()


def facts(running: Stack, nid: str) -> dict[str, Any]:
    code, body, _ = running.call("GET", f"/v1/notifications/{nid}/events")
    assert code == 200, body
    return {entry["id"]: entry for entry in body["entries"]}


@pytest.fixture(scope="module")
def other_key(running: Stack) -> str:
    """Of another tenant."""
    variables = environment(running)
    pepper = Settings(api={"key_pepper": variables["HELIOGRAPH_API__KEY_PEPPER"]}).api.key_pepper  # type: ignore[arg-type]
    return create_api_key(running.endpoints["postgres"], "other", "test", pepper=pepper)


def test_facts_arrive_live_and_are_those_of_get(running: Stack) -> None:
    ids = [mail(running) for _ in range(5)]
    query = "?" + "&".join(f"notification_id={nid}" for nid in ids)
    watcher = watch(running, f"{query}&until=settled")
    assert watcher.over.wait(30)
    assert watcher.kinds()[-1] == "end"
    assert watcher.sent[-1].data == {"reason": "settled"}
    assert watcher.last == "end"
    assert not watcher.twice
    expected: dict[str, Any] = {}
    until(lambda: all(len(facts(running, nid)) >= 2 for nid in ids), 30, "analytics have all")
    for nid in ids:
        expected |= facts(running, nid)
    assert watcher.facts == expected


def test_what_happens_while_watching_is_sent_as_it_happens(running: Stack) -> None:
    nid = mail(running, send_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3)))
    watcher = watch(running, f"?notification_id={nid}&until=settled")
    assert watcher.over.wait(30)
    states = [one.data["event"]["state"] for one in watcher.sent if one.kind == "status"]
    assert states[-2:] == ["routed", "sent"]
    assert [one.data["settled"] for one in watcher.sent if one.kind == "status"][-2:] == [False, True]
    assert watcher.connections == 1


def test_another_tenant_sees_nothing(running: Stack, other_key: str) -> None:
    nid = mail(running)
    until(lambda: len(facts(running, nid)) >= 2, 30, "it is sent")
    refused = watch(running, f"?notification_id={nid}", other_key)
    assert refused.over.wait(20)
    assert refused.refused == 404
    begun = watch(running, "", other_key)
    until(lambda: begun.last is not None, 20, "it has begun")
    # A place of before, of the other tenant's stream.
    zeros = write_place([0] * len(read_place(str(begun.last)) or ()))
    resumed = watch(running, "", other_key, last=zeros)
    until(lambda: resumed.connections == 1, 20, "it has begun")
    mail(running)
    time.sleep(2)
    for watcher in (begun, resumed):
        watcher.stop()
        assert watcher.facts == {}


def test_stream_of_a_tenant_goes_on_where_it_was(running: Stack) -> None:
    first = watch(running, "?state=sent")
    until(lambda: first.last is not None, 20, "it has begun")
    one = mail(running)
    until(lambda: any(e.kind == "status" for e in first.sent), 20, "one arrives")
    first.stop()
    place = first.last
    missed = [mail(running) for _ in range(10)]
    until(lambda: all(len(facts(running, nid)) >= 2 for nid in missed), 30, "they are sent")
    second = watch(running, "?state=sent", last=place)
    until(lambda: len(second.facts) >= 10, 20, "all that was missed arrives", lambda: len(second.facts))
    live = mail(running)
    until(lambda: len(second.facts) >= 11, 20, "and what is new")
    time.sleep(0.5)
    second.stop()
    got = [e.data["notification"]["id"] for e in second.sent if e.kind == "status"]
    assert sorted(got) == sorted([*missed, live])
    assert one not in got
    assert "reset" not in second.kinds()


@pytest.mark.parametrize("place", ["nonsense", "1-AQA", "beyond"])
def test_place_that_cannot_be_resumed_is_a_reset_and_never_silence(running: Stack, place: str) -> None:
    begun = watch(running, "?state=sent")
    until(lambda: begun.last is not None, 20, "it has begun")
    begun.stop()
    here = read_place(str(begun.last))
    assert here is not None
    asked = write_place([offset + 10_000 for offset in here]) if place == "beyond" else place
    watcher = watch(running, "?state=sent", last=asked)
    until(lambda: "reset" in watcher.kinds(), 20, "a reset")
    (reset,) = [one for one in watcher.sent if one.kind == "reset"]
    assert reset.data == {"reason": "unknown"}
    assert read_place(str(reset.id)) is not None
    watcher.stop()


def test_stream_that_is_over_is_not_begun_again(running: Stack) -> None:
    watcher = watch(running, f"?notification_id={mail(running)}", last="end")
    assert watcher.over.wait(10)
    assert watcher.connections == 0
    assert watcher.refused is None


def test_token_watches_what_it_is_for_and_ends_with_its_key(running: Stack) -> None:
    nid, other = mail(running), mail(running)
    variables = environment(running)
    pepper = Settings(api={"key_pepper": variables["HELIOGRAPH_API__KEY_PEPPER"]}).api.key_pepper  # type: ignore[arg-type]
    tenant = running.endpoints["tenant"]
    key = create_api_key(running.endpoints["postgres"], tenant, "test", pepper=pepper)
    headers = {"Authorization": f"Bearer {key}"}
    code, made, _ = running.call("POST", "/v1/stream-tokens", {"notification_ids": [nid], "ttl_s": 60}, headers)
    assert code == 201
    api = running.endpoints["api"]

    with urllib.request.urlopen(f"{api}/v1/stream?access_token={made['token']}", timeout=20) as stream:
        lines = [stream.readline() for _ in range(4)]
        assert lines[2] == b"event: snapshot\n", lines
        revoke_api_key(running.endpoints["postgres"], key.split("_")[1])
        revoked_at = time.monotonic()
        rest = stream.read()
        assert b'{"reason":"revoked"}' in rest
        assert time.monotonic() - revoked_at < 5
    for query in ("", f"&notification_id={other}"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{api}/v1/stream?access_token={made['token']}{query}", timeout=20)
        assert caught.value.code == 401


# ---------------------------------------------------------------- WebSocket


def socket(running: Stack, key: str | None = "", **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {key or running.endpoints['api_key']}"} if key is not None else None
    address = running.endpoints["api"].replace("http://", "ws://") + "/v1/ws"
    more.setdefault("subprotocols", ["heliograph.v1"])
    return connect(address, additional_headers=headers, **more)


def said(ws: ClientConnection, kind: str, timeout_s: float = 20) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = json.loads(ws.recv(timeout_s))
        if message["type"] == kind:
            return message


def closed(ws: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        while True:
            ws.recv(15)
    return ws.close_code


def subscribe(name: str, **filters: Any) -> str:
    return json.dumps({"type": "subscribe", "id": name, "filter": filters})


def test_socket_has_many_subscriptions(running: Stack, other_key: str) -> None:
    with socket(running) as ws:
        assert ws.subprotocol == "heliograph.v1"
        nid = mail(running)
        ws.send(subscribe("a", notification_id=nid, until="settled"))
        assert said(ws, "subscribed")["id"] == "a"
        snapshot = said(ws, "snapshot")
        assert snapshot["notification"]["id"] == nid
        assert said(ws, "end")["reason"] == "settled"
        ws.send(subscribe("b", state="sent"))
        said(ws, "subscribed")
        nid = mail(running)
        event = said(ws, "event")
        assert (event["id"], event["notification"]["id"], event["settled"]) == ("b", nid, True)
        assert read_place(event["cursor"]) is not None
        ws.send(json.dumps({"type": "unsubscribe", "id": "b"}))
        ws.send(json.dumps({"type": "unsubscribe", "id": "b"}))
        assert said(ws, "error")["code"] == "unknown_subscription"
    with socket(running, other_key) as ws:
        ws.send(subscribe("a", notification_id=nid))
        assert said(ws, "error")["code"] == "not_found"


def test_socket_is_authenticated_by_its_first_frame(running: Stack) -> None:
    nid = mail(running)
    _, made, _ = running.call("POST", "/v1/stream-tokens", {"notification_ids": [nid]})
    with socket(running, None) as ws:
        ws.send(json.dumps({"type": "auth", "token": made["token"]}))
        ws.send(subscribe("a"))
        assert said(ws, "snapshot")["notification"]["id"] == nid
        ws.send(subscribe("b", notification_id=mail(running)))
        assert said(ws, "error")["code"] == "not_found"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (["{"], 4400),
        (["[]"], 4400),
        ([b"\0\1"], 4400),
        (['{"type":"subscribe"}'], 4400),
        (['{"type":"dance","id":"a"}'], 4400),
        (['{"type":"subscribe","id":"a","filter":{"state":3}}'], 4400),
        (['{"type":"subscribe","id":"a","more":1}'], 4400),
        (['{"a":1,"a":2}'], 4400),
        (['{"type":"unsubscribe","id":"a"}'] * 60, 4429),
        (["x" * 20_000], 1009),
    ],
)
def test_wrong_frames_end_a_socket(running: Stack, frames: list[str | bytes], code: int) -> None:
    with socket(running) as ws:
        try:
            for frame in frames:
                ws.send(frame)
        except ConnectionClosed:
            pass
        assert closed(ws) == code


def test_socket_without_a_key_an_origin_or_the_protocol_is_ended(running: Stack) -> None:
    with socket(running, None) as ws:
        ws.send(json.dumps({"type": "auth", "token": "hgs_x"}))
        assert closed(ws) == 4401
    with socket(running, None) as ws:
        began = time.monotonic()
        assert closed(ws) == 4401
        assert 3 < time.monotonic() - began < 10
    with socket(running, origin="https://evil.example") as ws:
        assert closed(ws) == 4403
    with socket(running, subprotocols=["other"]) as ws:
        assert closed(ws) == 4400


# ---------------------------------------------------------------- faults


@pytest.fixture
def second_api(running: Stack) -> Iterator[ApiProcess]:
    with ApiProcess(running) as process:
        process.start()
        until(process.ready, 30, "the second API")
        yield process


def test_watchers_lose_nothing_when_the_processes_are_killed(running: Stack) -> None:
    """The long form is tests/faults/test_live.py."""
    told = Told()
    assert run(Plan(seed=17, watchers=40, kills=4, every_s=2), running, told) == [], told


def test_sigterm_ends_every_stream_at_once(running: Stack, second_api: ApiProcess) -> None:
    process = second_api.process
    assert process is not None
    nid = mail(running)
    key = running.endpoints["api_key"]
    watchers = [Watcher(lambda: f"{second_api.url}/v1/stream?notification_id={nid}", key).start() for _ in range(50)]
    until(lambda: all("snapshot" in watcher.kinds() for watcher in watchers), 30, "all watch")
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    until(lambda: all("end" in watcher.kinds() for watcher in watchers), 10, "all are ended")
    assert time.monotonic() - asked < 2
    for watcher in watchers:
        watcher.stop()
        assert watcher.sent[-1].data == {"reason": "restart"}
        assert watcher.last != "end"
    assert process.wait(15) == 0


def test_live_facts_arrive_while_clickhouse_is_stopped(running: Stack) -> None:
    nid = mail(running, send_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 5)))
    until(lambda: len(facts(running, nid)) >= 1, 20, "it is scheduled")
    clickhouse = running.endpoints["pids"]["clickhouse"]
    os.kill(clickhouse, signal.SIGSTOP)
    try:
        watcher = watch(running, f"?notification_id={nid}&until=settled")
        until(lambda: "snapshot" in watcher.kinds(), 30, "a snapshot")
        snapshot = next(one for one in watcher.sent if one.kind == "snapshot")
        assert snapshot.data["complete"] is False
        until(lambda: any(event["state"] == "sent" for event in watcher.facts.values()), 30, "it is sent, live")
        assert not watcher.over.is_set()
    finally:
        os.kill(clickhouse, signal.SIGCONT)
    assert watcher.over.wait(60), watcher.kinds()
    last = [one for one in watcher.sent if one.kind == "snapshot"][-1]
    assert last.data["complete"] is True
    until(lambda: watcher.facts == facts(running, nid), 30, "the same facts")

"""Live status at its limits: a place far back, one that is too old, a reader that stops reading."""

from __future__ import annotations

import json
import socket
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bench.processes import pss_mib
from producers.reference.keys import create_api_key
from runtime import ids
from runtime.clock import system_clock
from runtime.kafka.admin import Admin
from runtime.kafka.producer import Producer
from runtime.settings import KafkaSettings
from runtime.status import fact, status_record
from schemas.topics import STATUS
from sinks.role import GROUP
from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until
from tests.support.api_process import ApiProcess, environment
from tests.support.watching import Watcher
from tracking.live.reader import end_offsets

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse, pytest.mark.timeout(300)]
__all__ = ["running"]


@dataclass
class Tenant:
    """One of its own, whose facts are put into the topic by hand."""

    running: Stack
    name: str
    key: str = field(init=False)
    kafka: KafkaSettings = field(init=False)

    def __post_init__(self) -> None:
        endpoints = self.running.endpoints
        pepper = environment(self.running)["HELIOGRAPH_API__KEY_PEPPER"]
        self.key = create_api_key(endpoints["postgres"], self.name, "test", pepper=SecretStr(pepper))
        self.kafka = KafkaSettings(bootstrap_servers=environment(self.running)["HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS"])

    def publish(self, count: int) -> list[str]:
        """Ids of facts about as many notifications."""
        now, records, event_ids = system_clock(), [], []
        for number in range(count):
            nid = ids.notification_id(now, self.name, uuid.uuid4().hex)
            event_ids.append(ids.event_id(nid, "routed", 0))
            about: Any = {"recipient": f"u{number}", "correlation_id": "c" * 200}
            records.append(status_record(fact(event_ids[-1], nid, self.name, "bulk", "routed", now, about)))
        producer = Producer(self.kafka, client_id="test")
        try:
            producer.publish(records)
        finally:
            producer.close()
        return event_ids

    def behind(self) -> int:
        """Records that the sink has yet to store."""
        committed, _ = Admin(self.kafka).group_offsets(GROUP, [STATUS])
        ends = end_offsets(self.kafka, len(committed) or 1)
        return sum(end - committed.get((STATUS, partition), 0) for partition, end in enumerate(ends))


def watch(running: Stack, key: str) -> Watcher:
    address = f"{running.endpoints['api']}/v1/stream"
    return Watcher(lambda: address, key).start()


def resumed(url: str, source: str) -> float:
    """Streams of a process that went on from a place, from there."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    name = f'heliograph_live_resumes_total{{source="{source}"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_place_behind_the_ring_is_read_from_the_topic(running: Stack) -> None:
    tenant = Tenant(running, "far-back")
    begun = watch(running, tenant.key)
    until(lambda: begun.last is not None, 20, "it has begun")
    begun.stop()
    missed = tenant.publish(2_000)
    until(lambda: tenant.behind() == 0, 60, "all is stored", tenant.behind)
    with ApiProcess(running) as process:  # its ring begins where the sink is
        process.start()
        until(process.ready, 30, "the second API")
        watcher = Watcher(lambda: f"{process.url}/v1/stream", tenant.key, last=begun.last).start()
        until(lambda: len(watcher.facts) >= len(missed), 30, "all arrives", lambda: len(watcher.facts))
        live = tenant.publish(5)
        until(lambda: len(watcher.facts) >= len(missed) + 5, 20, "and what is new")
        watcher.stop()
        assert resumed(process.url, "topic") == 1
    told = [one.data["event"]["id"] for one in watcher.sent if one.kind == "status"]
    assert sorted(told) == sorted([*missed, *live])
    assert "reset" not in watcher.kinds()


def test_place_that_is_too_old_is_a_reset_and_what_is_new_follows(running: Stack) -> None:
    tenant = Tenant(running, "too-old")
    begun = watch(running, tenant.key)
    until(lambda: begun.last is not None, 20, "it has begun")
    begun.stop()
    tenant.publish(500)
    until(lambda: tenant.behind() == 0, 60, "all is stored", tenant.behind)
    # What a place is too old for is 200,000 records, or 15 minutes: here 400 records.
    with ApiProcess(running, "tracking.live.reader:MAX_READ_BACK=400") as process:
        process.start()
        until(process.ready, 30, "the second API")
        watcher = Watcher(lambda: f"{process.url}/v1/stream", tenant.key, last=begun.last).start()
        until(lambda: "reset" in watcher.kinds(), 30, "a reset")
        assert watcher.sent[-1].data == {"reason": "too_old"}
        live = tenant.publish(3)
        until(lambda: len(watcher.facts) >= 3, 20, "what is new")
        watcher.stop()
        assert resumed(process.url, "too_old") == 1
    assert sorted(watcher.facts) == sorted(live)


LIMITS = ("tracking.live.hub:STUCK_S=3", "runtime.http.serving:USER_TIMEOUT_MS=3000")
"""In place of half a minute each."""
ENOUGH = 40_000
"""Facts: more than the buffers of a connection and the frames of a watcher take."""


@pytest.mark.parametrize("face", ["sse", "websocket"])
def test_reader_that_stops_reading_is_cut_off_and_costs_bounded_memory(running: Stack, face: str) -> None:
    tenant = Tenant(running, f"slow-{face}")
    with ApiProcess(running, *LIMITS) as process, socket.socket() as peer:
        started = process.start()
        until(process.ready, 30, "the API")
        good = Watcher(lambda: f"{process.url}/v1/stream", tenant.key).start()
        until(lambda: good.last is not None, 20, "it has begun")
        host, port = process.url.removeprefix("http://").split(":")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.settimeout(20)
        peer.connect((host, int(port)))
        upgrade = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: heliograph.v1\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        path, more = ("/v1/stream", "") if face == "sse" else ("/v1/ws", upgrade)
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {tenant.key}\r\n{more}\r\n".encode())
        if face == "websocket":
            peer.recv(300)
            peer.sendall(masked(json.dumps({"type": "subscribe", "id": "a"})))
        until(lambda: live_watchers(process.url) == 2, 20, "it watches")
        before = pss_mib([started.pid])
        for _ in range(4):
            tenant.publish(ENOUGH // 4)
        # It is gone by itself; who reads goes on.
        until(lambda: live_watchers(process.url) == 1, 60, "it is cut off")
        grown = pss_mib([started.pid]) - before
        until(lambda: connections_of(int(port), peer) == 0, 30, "its connection is ended")
        live = tenant.publish(1)
        until(lambda: live[0] in good.facts, 30, "who reads is told")
        good.stop()
    # The ring is the most of it, and is bounded by itself.
    assert grown < 64 + 40, grown


def masked(text: str) -> bytes:
    """A frame of a client; its mask is of zeros."""
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text.encode()


def live_watchers(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("heliograph_live_watchers "))


def connections_of(port: int, peer: socket.socket) -> int:
    """Sockets of the server to this peer."""
    mine = peer.getsockname()[1]
    rows = [line.split()[1:3] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(local[-4:], 16) == port and int(remote[-4:], 16) == mine for local, remote in rows)

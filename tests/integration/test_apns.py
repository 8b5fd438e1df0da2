"""The APNs sender against the simulator's HTTP/2: one request per claim, and the result of each fault."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic_core import to_json

from local.ports import PortBook
from local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from tests.integration.conftest import until
from tests.support.made import message
from vendors.apns.sender import ApnsSender, create
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent


@dataclass
class Simulator:
    """A simulator process with APNs."""

    url: str
    apns_port: int
    data: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return json.load(response)

    def fault(self, **fault: Any) -> None:
        body = to_json({"kind": "apns", **fault})
        request = urllib.request.Request(self.url + "/faults", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()

    def clear(self) -> None:
        urllib.request.urlopen(urllib.request.Request(self.url + "/faults", method="DELETE"), timeout=10).close()

    def account(self, **fields: Any) -> ProviderSettings:
        keys = {
            "key_file": str(self.data / APNS_KEY_FILE),
            "key_id": APNS_KEY_ID,
            "team_id": APNS_TEAM_ID,
            "topic": APNS_TOPIC,
            "base_url": f"http://127.0.0.1:{self.apns_port}",
            "timeout_s": 3,
            **fields,
        }
        return ProviderSettings(name="apple", channel="push", kind="apns", **keys)

    def accepted(self, message_id: str) -> list[dict[str, Any]]:
        return [entry for entry in self.get("/accepted?kind=apns") if entry["message_id"] == message_id]

    def seen(self) -> int:
        return int(self.get("/requests")["apns"])


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    directory = tmp_path_factory.mktemp("apns")
    book = PortBook()
    http, smtp, apns = book.reserve("simulator"), book.reserve("smtp"), book.reserve("apns")
    log = (directory / "simulator.log").open("wb")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "local.simulator",
            "--http-port",
            str(http),
            "--smtp-port",
            str(smtp),
            "--apns-port",
            str(apns),
            "--data-dir",
            str(directory),
            "--maildir",
            str(directory / "mail"),
        ],
        stderr=log,
    )
    made = Simulator(f"http://127.0.0.1:{http}", apns, directory)

    def is_up() -> bool:
        try:
            return bool(made.get("/readyz"))
        except OSError:
            return False

    until(is_up, 30, "simulator")
    yield made
    process.terminate()
    process.wait(10)
    log.close()
    book.close()


@pytest_asyncio.fixture
async def sender(simulator: Simulator) -> AsyncIterator[ApnsSender]:
    made = create(simulator.account())
    await made.start()
    yield made
    await made.close()
    simulator.clear()


def push(**fields: Any) -> ChannelMessage:
    made = {"channel": "push", "platform": "apns", "address": "device", "title": "T", "body": "B", **fields}
    return message(message_id=str(uuid.uuid4()), **made)


async def test_push_is_accepted_once_under_our_id(simulator: Simulator, sender: ApnsSender) -> None:
    sent = push(data=to_json({"order": "A1"}), address="a/b?c")
    assert await sender.send(sent) == Sent(sent["message_id"])
    (entry,) = simulator.accepted(sent["message_id"])
    assert entry["to"] == "a/b?c"
    assert json.loads(entry["body"])["aps"] == {"alert": {"title": "T", "body": "B"}}
    assert json.loads(entry["body"])["order"] == "A1"


async def test_many_pushes_share_a_connection(simulator: Simulator) -> None:
    before = simulator.seen()
    with_time = create(simulator.account(timeout_s=60))  # all wait for one simulator, however busy the machine
    try:
        results = await asyncio.gather(*(with_time.send(push(body="x" * 3_000)) for _ in range(1_200)))
    finally:
        await with_time.close()
    assert {type(result) for result in results} == {Sent}
    assert simulator.seen() - before == 1_200


@pytest.mark.parametrize(
    ("fault", "expected", "accepts"),
    [
        ({"mode": "429", "retry_after_s": 7}, Retry(ErrorClass.THROTTLED, "429 TooManyRequests", 7.0), 0),
        ({"mode": "500"}, InDoubt("500 InternalServerError"), 0),
        ({"mode": "500", "retry_after_s": 3}, InDoubt("503 ServiceUnavailable", 3.0), 0),
        ({"mode": "500_after_accept"}, InDoubt("500 InternalServerError"), 1),
        ({"mode": "drop_after_accept"}, InDoubt("connection closed"), 1),
        ({"mode": "reset"}, InDoubt("ConnectionResetError"), 0),
        ({"mode": "slow", "latency_ms": 300}, Sent, 1),
        ({"mode": "bad_json"}, Sent, 1),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
async def test_fault_becomes(
    simulator: Simulator, sender: ApnsSender, fault: dict[str, Any], expected: SendResult | type, accepts: int
) -> None:
    simulator.fault(**fault, times=1)
    before, sent = simulator.seen(), push()
    made = await sender.send(sent)
    assert (type(made) if isinstance(expected, type) else made) == expected
    assert len(simulator.accepted(sent["message_id"])) == accepts
    assert simulator.seen() - before == 1
    assert type(await sender.send(push())) is Sent  # on a new connection where the old one ended


async def test_rejected_device_says_since_when(simulator: Simulator, sender: ApnsSender) -> None:
    simulator.fault(mode="reject", times=1)
    made = await sender.send(push())
    assert isinstance(made, Rejected)
    assert made.error is ErrorClass.PERMANENT_RECIPIENT
    assert made.code.startswith("410 Unregistered since 20")


async def test_answer_after_the_timeout_is_in_doubt(simulator: Simulator) -> None:
    sender = create(simulator.account(timeout_s=0.4))
    simulator.fault(mode="slow", latency_ms=1_500, times=1)
    sent = push()
    assert await sender.send(sent) == InDoubt("TimeoutError")
    assert type(await sender.send(push())) is Sent
    await sender.close()
    until(lambda: len(simulator.accepted(sent["message_id"])) == 1, 5, "the late accept")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"team_id": "OTHER"}, "403 InvalidProviderToken"),
        ({"topic": "com.example.wrong"}, "400 DeviceTokenNotForTopic"),
    ],
)
async def test_wrong_account_drops_no_device(simulator: Simulator, fields: dict[str, Any], code: str) -> None:
    sender = create(simulator.account(**fields))
    assert await sender.send(push()) == Retry(ErrorClass.ACCOUNT, code)
    await sender.close()


async def test_clock_an_hour_behind_signs_again_once_and_then_fails_the_account(simulator: Simulator) -> None:
    now = 0
    provider = simulator.account()
    sender = create(provider)
    sender._token._clock = lambda: now
    assert await sender.send(push()) == Retry(ErrorClass.TRANSIENT, "403 ExpiredProviderToken")
    assert await sender.send(push()) == Retry(ErrorClass.ACCOUNT, "403 ExpiredProviderToken")
    now = int(time.time() * 1000)  # the machine's clock is set right
    assert type(await sender.send(push())) is Sent
    await sender.close()


async def test_no_connection_is_definitely_not_sent(simulator: Simulator) -> None:
    book = PortBook()
    sender = create(simulator.account(base_url=f"http://127.0.0.1:{book.reserve('nobody')}"))
    made = await sender.send(push())
    assert isinstance(made, Retry)
    assert made.error is ErrorClass.TRANSIENT
    book.close()

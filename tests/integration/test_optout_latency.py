"""An opt-out or a suppression works within a second, in the router and in front of the provider.

From the API's answer over PostgreSQL, relay, Kafka and the view of the process that decides; measured with the stream
running. The router is judged by its statuses, the sender by the simulator's log of what it accepted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runtime.kafka.consumer import BEGINNING, Consumer
from schemas.codec import codec
from schemas.topics import STATUS
from tests.integration.conftest import until
from tests.integration.reference_stack import World, end, postgres, world

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]

EFFECTIVE_WITHIN_S = 1.0
EVERY_S = 0.025
BACKENDS = ("memory", "rocksdb")


def tell(measured: str) -> None:
    """Shown by `pytest -rP`; times are from the API's answer."""
    sys.stdout.write(measured + "\n")


def opt_out(world: World, user: str) -> None:
    assert world.api.call("PUT", f"/v1/users/{user}/preferences", {"channels": {"email": False}}).status == 200


def suppress(world: World, user: str) -> None:
    body = {"channel": "email", "address": f"{user}@example.org", "reason": "complaint"}
    assert world.api.call("POST", "/v1/suppressions", body).status == 201


CASES: dict[str, tuple[Callable[[World, str], None], tuple[str, str]]] = {
    "opt-out": (opt_out, ("skipped", "opted_out")),
    "suppression": (suppress, ("suppressed", "suppressed_address")),
}


@dataclass
class StatusWatcher:
    """Statuses as they come: (state, reason) per notification, in order."""

    consumer: Consumer
    states: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)

    def read(self) -> None:
        for record in self.consumer.consume(5_000, 0.1):
            status = codec("DeliveryStatus").decode(record.value)
            self.states.setdefault(status["notification_id"], []).append((status["state"], status.get("reason")))

    def wait(self, ids: set[str], *states: str) -> None:
        """Until each of them has one of these states behind it."""

        def have() -> bool:
            self.read()
            return all(any(state in states for state, _ in self.states.get(each, [])) for each in ids)

        until(have, what=f"{' or '.join(states)} of {len(ids)}")

    def last(self, notification_id: str) -> tuple[str, str | None]:
        return self.states[notification_id][-1]


@pytest.fixture(scope="module")
def watcher(world: World) -> Iterator[StatusWatcher]:
    consumer = Consumer(world.broker.settings, client_id="test-latency", group=None)
    consumer.assign(dict.fromkeys(consumer.partitions_for_topic(STATUS), BEGINNING))
    yield StatusWatcher(consumer)
    consumer.close()


@pytest.fixture(scope="module", autouse=True)
def api_and_relay(world: World) -> None:
    """The api and the relay, for the whole module."""
    world.run("relay")
    world.run("api")
    world.wait_ready()


@pytest.fixture(scope="module")
def simulator(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; the roles send mail to it, at a rate that makes a queue."""
    directory = tmp_path_factory.mktemp("simulator")
    http, smtp = world.book.reserve("simulator"), world.book.reserve("smtp")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "local.simulator",
            "--http-port",
            str(http),
            "--smtp-port",
            str(smtp),
            "--data-dir",
            str(directory / "data"),
            "--maildir",
            str(directory / "mail"),
        ],
        stderr=subprocess.DEVNULL,
    )
    config = directory / "heliograph.toml"
    config.write_text(
        '[[providers]]\nname = "mail"\nchannel = "email"\nkind = "smtp"\nhost = "127.0.0.1"\n'
        f'port = {smtp}\ntls = "none"\nfrom_address = "no-reply@example.org"\nrate_per_second = 20\n'
    )
    world.settings["HELIOGRAPH_CONFIG"] = str(config)
    url = f"http://127.0.0.1:{http}"

    def ready() -> bool:
        try:
            return bool(get(f"{url}/readyz"))
        except OSError:
            return False

    until(ready, what="simulator")
    yield url
    process.terminate()
    process.wait(10)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def accept_times(simulator: str, user: str) -> list[float]:
    entries = get(f"{simulator}/accepted?kind=smtp&limit=100000")
    return [datetime.fromisoformat(e["at"]).timestamp() for e in entries if e["to"].startswith(f"{user}@")]


def mail_to(user: str) -> dict[str, Any]:
    return {"to": {"user_id": user}, "content": {"subject": "s", "text": "t"}, "channels": ["email"]}


def publish(world: World, user: str) -> str:
    answer = world.api.send(mail_to(user))
    assert answer.status == 202
    return str(answer.body["id"])


def publish_many(world: World, user: str, count: int) -> set[str]:
    answer = world.api.call("POST", "/v1/notifications/bulk", {"notifications": [mail_to(user)] * count})
    assert answer.status == 202
    return {result["id"] for result in answer.body["results"]}


def new_user(world: World, user: str) -> None:
    assert world.api.call("POST", "/v1/users", {"id": user, "email": f"{user}@example.org"}).status == 201


@contextmanager
def running(world: World, directory: Path, backend: str, *roles: tuple[str, ...]) -> Iterator[None]:
    """Roles whose views are kept in `backend`."""
    views = {"HELIOGRAPH_VIEWS__BACKEND": backend, "HELIOGRAPH_VIEWS__DIRECTORY": str(directory)}
    started = [world.run(*role, **views) for role in roles]
    try:
        yield
    finally:
        for role in started:
            end(role)
            world.broker.roles.remove(role)


def streamed(world: World, user: str, change: Callable[[World, str], None]) -> tuple[list[tuple[float, str]], float]:
    """Requests published all the time, with the times of their publishing, and when the change in their midst was answered."""
    published: list[tuple[float, str]] = []
    enough = threading.Event()

    def stream() -> None:
        while not enough.wait(EVERY_S):
            at = time.time()
            published.append((at, publish(world, user)))

    streaming = threading.Thread(target=stream)
    streaming.start()
    try:
        time.sleep(0.5)
        change(world, user)
        changed = time.time()
        time.sleep(EFFECTIVE_WITHIN_S + 1)
    finally:
        enough.set()
        streaming.join()
    return published, changed


@pytest.mark.parametrize("backend", BACKENDS)
def test_router_refuses_within_a_second(world: World, watcher: StatusWatcher, tmp_path: Path, backend: str) -> None:
    with running(world, tmp_path, backend, ("router", "--lane", "normal")):
        for case, (change, wanted) in CASES.items():
            user = f"r-{backend}-{case}"
            new_user(world, user)
            first = publish(world, user)
            watcher.wait({first}, "routed")
            published, changed = streamed(world, user, change)
            watcher.wait({each for _, each in published}, "routed", wanted[0])
            routed = [at for at, each in published if watcher.last(each)[0] == "routed"]
            refused = [each for at, each in published if at > changed + EFFECTIVE_WITHIN_S]
            tell(f"router, {case}, {backend}: the last request routed was published at {max(routed) - changed:+.3f} s")
            assert len(routed) > 2  # the stream ran before
            assert len(refused) > 10  # and after
            assert {watcher.last(each) for each in refused} == {wanted}
            assert max(routed) <= changed + EFFECTIVE_WITHIN_S


@pytest.mark.parametrize("backend", BACKENDS)
def test_sender_refuses_what_waits_in_front_of_the_provider_within_a_second(
    world: World, watcher: StatusWatcher, simulator: str, tmp_path: Path, backend: str
) -> None:
    count = 80
    with running(world, tmp_path, backend, ("router", "--lane", "normal"), ("sender", "--channel", "email")):
        for case, (change, wanted) in CASES.items():
            user = f"s-{backend}-{case}"
            new_user(world, user)
            first = publish(world, user)
            watcher.wait({first}, "sent")
            ids = publish_many(world, user, count)
            watcher.wait(ids, "routed")
            change(world, user)
            changed = time.time()
            watcher.wait(ids, "sent", wanted[0])
            accepted = accept_times(simulator, user)
            settled = [watcher.last(each) for each in ids]
            late = [at - changed for at in accepted if at > changed]
            tell(
                f"sender, {case}, {backend}: {len(late)} accepts after the answer, the last at {max(late, default=0):+.3f} s"
            )
            seen = Counter(tuple(watcher.states[each]) for each in ids)
            assert len(accepted) == 1 + sum(state == "sent" for state, _ in settled), (case, seen)
            assert settled.count(wanted) > count // 4  # enough was waiting
            assert set(settled) <= {("sent", None), wanted}
            assert max(accepted) <= changed + EFFECTIVE_WITHIN_S

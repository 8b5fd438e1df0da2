"""The clients of clients/ against a running API: they send, wait and watch while it is killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from heliograph_client import ApiError, AsyncClient, Client, LiveEvent
from heliograph_client.types import Notification

from runtime.clock import system_clock
from runtime.status import rfc3339
from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until
from tests.support.toolchains import node_project, tool

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse, pytest.mark.timeout(300)]
__all__ = ["running"]
TYPESCRIPT = Path(__file__).resolve().parents[2] / "clients" / "typescript"


@pytest.fixture(scope="module")
def client(running: Stack) -> Iterator[Client]:
    with Client(running.endpoints["api"], running.endpoints["api_key"]) as made:
        yield made


def mail(address: str, in_s: float | None = None) -> Notification:
    body: Notification = {"to": {"email": address}, "content": {"subject": "S", "text": "hello"}, "channels": ["email"]}
    if in_s is not None:
        body["send_at"] = rfc3339(system_clock() + round(in_s * 1_000))
    return body


def kill_api(running: Stack) -> None:
    os.kill(running.endpoints["pids"]["api"], signal.SIGKILL)  # its supervisor starts it again


def test_python_sends_waits_and_watches_through_a_restart(running: Stack, client: Client) -> None:
    later = client.send(mail("later@example.org", 6))
    told: list[LiveEvent] = []
    watching = threading.Thread(target=lambda: told.extend(client.watch(later["id"])))
    watching.start()
    time.sleep(1)
    kill_api(running)
    # Nothing answers now: each call is made again until it is.
    accepted = client.send(mail("now@example.org"))
    assert client.wait(accepted["id"])["status"] == "sent"
    assert client.wait(later["id"])["status"] == "sent"
    watching.join(60)
    assert told[-1].data == {"reason": "settled"}
    until(lambda: len(list(client.events(later["id"]))) == 3, 30, "analytics have all")
    seen = {fact["id"] for one in told if one.kind == "snapshot" for fact in one.data["events"]}
    seen |= {one.data["event"]["id"] for one in told if one.kind == "status"}
    assert seen == {fact["id"] for fact in client.events(later["id"])}
    assert [one.kind for one in told].count("snapshot") >= 2, "it was not cut off"


def test_python_asynchronous_does_the_same(running: Stack) -> None:
    async def played() -> tuple[str, list[str]]:
        async with AsyncClient(running.endpoints["api"], running.endpoints["api_key"]) as client:
            later = await client.send(mail("async@example.org", 4))
            waiting = asyncio.create_task(client.wait(later["id"]))
            await asyncio.sleep(1)
            kill_api(running)
            results = await client.send_many([mail(f"async-{n}@example.org") for n in range(3)])
            outcomes = await asyncio.gather(*(client.wait(one["id"]) for one in results))
            return (await waiting)["status"], [outcome["status"] for outcome in outcomes]

    assert asyncio.run(played()) == ("sent", ["sent"] * 3)


def test_python_has_all_of_the_reference_data(client: Client) -> None:
    made = client.create_user({"id": "org/7", "email": "seven@example.org"})
    assert client.get_user("org/7") == made
    assert client.put_user("org/7", {"email": "seven@example.org", "name": "Seven"})["name"] == "Seven"
    assert client.change_user("org/7", {"name": None, "locale": "de"})["locale"] == "de"
    assert "org/7" in {user["id"] for user in client.list_users()}
    client.put_preferences("org/7", {"channels": {"sms": False}})
    assert client.get_preferences("org/7")["channels"] == {"sms": False}
    written = client.create_template({"id": "seven", "channels": {"email": {"subject": "A", "text": "{{ n }}"}}})
    assert (written["version"], written["variables"]) == (1, ["n"])
    client.add_version("seven", {"channels": {"email": {"subject": "B", "text": "{{ n }}"}}, "publish": False})
    assert client.publish_template("seven", 2)["version"] == 2
    assert client.get_template("seven", 1)["channels"]["email"]["subject"] == "A"
    assert "seven" in {template["id"] for template in client.list_templates()}
    stopped = client.suppress({"channel": "email", "address": "stop@example.org"})
    assert [one["id"] for one in client.list_suppressions(address="stop@example.org")] == [stopped["id"]]
    client.unsuppress(stopped["id"])
    client.delete_user("org/7")
    with pytest.raises(ApiError, match="404 not_found"):
        client.get_user("org/7")


def test_python_acts_on_notifications(client: Client) -> None:
    scheduled = client.send(mail("c@example.org", 600))
    assert client.cancel(scheduled["id"])["status"] in ("cancelled", "scheduled")
    assert client.wait(scheduled["id"])["status"] == "cancelled"
    sent, refused = client.send_many([{**mail("d@example.org"), "tags": ["mine"]}, {"to": {}}])
    assert (sent["status"], refused["status"], refused["error"]["status"]) == ("accepted", "refused", 400)
    assert client.wait(sent["id"])["status"] == "sent"
    until(lambda: [one["id"] for one in client.list_notifications(tag="mine")] == [sent["id"]], 30, "it is listed")
    assert client.resend(sent["id"])["generation"] == 1
    assert client.explain(sent["id"])["id"] == sent["id"] == client.get(sent["id"])["id"]
    token = client.stream_token([sent["id"]], ttl_s=60)
    assert token["token"].startswith("hgs_")
    first: Any = next(iter(client.watch(state="sent", after="nonsense")))
    assert (first.kind, first.data) == ("reset", {"reason": "unknown"})


# ---------------------------------------------------------------- TypeScript


@pytest.fixture(scope="module")
def project() -> Path:
    """clients/typescript with what its lockfile names, compiled."""
    made = node_project(TYPESCRIPT)
    done = subprocess.run([tool("npm"), "run", "build"], cwd=made, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.mark.doubles
def test_typescript_has_the_types_of_the_running_api(running: Stack, project: Path, tmp_path: Path) -> None:
    document, types = tmp_path / "openapi.json", tmp_path / "schema.d.ts"
    document.write_text(json.dumps(running.call("GET", "/openapi.json")[1]))
    generator = project / "node_modules" / ".bin" / "openapi-typescript"
    done = subprocess.run([generator, document, "-o", types], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert types.read_text() == (TYPESCRIPT / "src" / "schema.d.ts").read_text(), "see docs/clients.md: generate"


@pytest.mark.doubles
def test_typescript_sends_waits_and_watches_through_a_restart(running: Stack, client: Client, project: Path) -> None:
    endpoints = running.endpoints
    script = Path(__file__).with_name("client_play.mjs")
    command = [tool("node"), script, project / "dist", endpoints["api"], endpoints["api_key"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            assert node.stdout.readline() == "watching\n"
            kill_api(running)
            out, _ = node.communicate("go\n", timeout=90)
        finally:
            node.kill()
    played = json.loads(out)
    assert [one["status"] for one in played["waited"]] == ["sent", "sent"]
    assert played["told"][-1]["data"] == {"reason": "settled"}
    kinds = [one["kind"] for one in played["told"]]
    assert kinds.count("snapshot") >= 2, "it was not cut off"
    until(lambda: len(list(client.events(played["id"]))) == 3, 30, "analytics have all")
    seen = {fact["id"] for one in played["told"] if one["kind"] == "snapshot" for fact in one["data"]["events"]}
    seen |= {one["data"]["event"]["id"] for one in played["told"] if one["kind"] == "status"}
    assert seen == {fact["id"] for fact in client.events(played["id"])}
    assert [one["status"] for one in played["results"]] == ["accepted", "refused"]
    assert played["refusal"] == {"isApiError": True, "code": "already_settled", "status": 409}
    assert (played["users"], played["unknown"]) == (200, 404)

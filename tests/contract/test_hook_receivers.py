"""The receivers of docs/webhooks.md run as they are printed, and the verifiers of others take what we sign, during a rotation too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local.ports import PortBook
from runtime.clock import system_clock
from runtime.settings import OutboundSettings
from senders.hooks.facts import body_of
from senders.hooks.posting import HookClient
from tests.support.toolchains import node_project, tool
from vendors.webhook.signature import Signer, new_secret

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "webhooks.md"
RECEIVERS = Path(__file__).parent / "receivers"
ID = "5b6f2d8e-7a41-4c1d-9a55-2f0f6a0e4c11"
OLD, NEW, OTHER = (new_secret() for _ in range(3))
BODY = body_of("message.sent", 1_765_439_081_472, {"notification_id": "n1", "state": "sent", "text": "Zoë ✓"})


def printed(language: str) -> str:
    """The code of a language in the document."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(code)


def python_receiver(folder: Path) -> list[str]:
    (folder / "receive.py").write_text(printed("python"), "utf-8")
    return [sys.executable, str(folder / "receive.py")]


def node_receiver(_: Path) -> list[str]:
    project = node_project(RECEIVERS)
    (project / f"printed-{os.getpid()}.mjs").write_text(printed("js"), "utf-8")
    return [tool("node"), str(project / f"printed-{os.getpid()}.mjs")]


@pytest.fixture(params=[python_receiver, node_receiver])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """URL of a running receiver that knows OLD, and what it printed."""
    command = request.param(tmp_path)
    book = PortBook()
    port = book.reserve("receiver")
    log = tmp_path / "out"
    with log.open("wb") as out:
        process = subprocess.Popen([*command, str(port)], stdout=out, env={**os.environ, "WEBHOOK_SECRET": OLD})
    url = f"http://127.0.0.1:{port}/hooks"
    try:
        deadline = time.monotonic() + 20
        while post(url, {}, b"") is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield url, lambda: log.read_text("utf-8")
    finally:
        process.terminate()
        process.wait(10)
        book.close()


def post(url: str, headers: dict[str, str], body: bytes) -> int | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method="POST"), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return None


async def test_printed_receiver_takes_what_we_post_once_and_refuses_the_rest(
    receiver: tuple[str, Callable[[], str]],
) -> None:
    url, printed_so_far = receiver
    client = HookClient(OutboundSettings(allow=("127.0.0.1",)))
    client.start()
    try:
        for secrets in ([OLD], [NEW, OLD], [OLD]):
            outcome = await client.post(url, Signer(secrets), ID, BODY)
            assert (outcome.kind, outcome.code) == ("delivered", "204")
        assert (await client.post(url, Signer([NEW]), ID, BODY)).code == "401"
    finally:
        await client.close()
    assert printed_so_far() == "message.sent n1\n"


def judged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the verifiers in Node say, one answer a line."""
    command = [tool("node"), str(node_project(RECEIVERS) / "receive.mjs")]
    said = subprocess.run(
        command,
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in said.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["webhook", "svix"])
def test_their_verifiers_take_both_secrets_of_a_rotation_and_no_other(kind: str) -> None:
    headers = Signer([NEW, OLD]).headers(ID, system_clock(), BODY)
    late = Signer([OLD]).headers(ID, system_clock() - 600_000, BODY)
    text = BODY.decode()
    asked = [
        (OLD, headers, text),
        (NEW, headers, text),
        (OTHER, headers, text),
        (OLD, headers, text + " "),
        (OLD, late, text),
    ]
    lines = [{"kind": kind, "secret": secret, "headers": shown, "body": body} for secret, shown, body in asked]
    taken = ["body" in answer for answer in judged(lines)]
    assert taken == [True, True, False, False, False]

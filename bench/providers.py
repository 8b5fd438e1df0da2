"""What a vendor's account costs over HTTP: `python -m bench.providers [KIND ...] [--messages N] [--repeat N]`.

Each account sends the same messages, 64 at once, to a sink that takes everything, beside a bare aiohttp loop that posts the same
requests to the same sink: made beforehand, but for what AWS wants signed and browsers encrypted, which the loop does alike. Rounds are
interleaved.
Prints medians: messages a second, CPU µs a message, and both as a share of the bare loop's. The claims, the ledger and Kafka are not
in it: that is `python -m bench sms push`.
May import vendors. Never: an assertion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from bench.e2e import listens
from console.commands.output import show
from local.ports import LOOPBACK, PortBook
from local.simulator import HOOK_ACCOUNTS, webpush
from local.simulator.fcm import Credentials
from runtime.settings import OutboundSettings, ProviderSettings
from runtime.subscriptions import Subscription, read_subscription
from schemas.events import ChannelMessage
from vendors.http_account import GivenUrlAccount, HttpAccount, HttpRequest
from vendors.registry import channel_of, create_senders
from vendors.sender import Sent
from vendors.webpush.encryption import encrypted

IN_FLIGHT = 64
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_AWS = {"region": "eu-central-1", "access_key": "bench", "secret_key": "bench"}
_FROM = {"from_address": "Shop <shop@shop.example>"}
KEYS: dict[str, dict[str, Any]] = {
    "sendgrid": {"api_key": "bench", **_FROM},
    "mailgun": {"api_key": "bench", "domain": "shop.example", **_FROM},
    "ses": {**_AWS, **_FROM},
    "twilio": {"account_sid": "AC0", "auth_token": "bench", "from": "+15005550006"},
    "vonage": {"key": "bench", "secret": "bench", "from": "Shop"},
    "bulksms": {"key": "bench", "secret": "bench", "from": "Shop"},
    "sns": _AWS,
    "fcm": {"project_id": "bench"},
    "onesignal": {"app_id": "bench", "api_key": "bench"},
    "webpush": {"private_key": "A" * 42 + "E", "subject": "mailto:bench@shop.example", "hosts": [LOOPBACK]},
    "webhook": dict(HOOK_ACCOUNTS["webhook"]),
}
SIGNED = ("ses", "sns")
TAKEN: dict[str, tuple[int, str]] = {
    "sendgrid": (202, ""),
    "mailgun": (200, '{"id": "<m@shop.example>", "message": "Queued. Thank you."}'),
    "ses": (200, '{"MessageId": "m"}'),
    "twilio": (201, '{"sid": "SM0", "status": "queued"}'),
    "vonage": (200, '{"message-count": "1", "messages": [{"status": "0", "message-id": "m"}]}'),
    "bulksms": (201, '[{"id": "m", "status": {"id": "ACCEPTED.null", "type": "ACCEPTED"}}]'),
    "sns": (200, "<PublishResponse><PublishResult><MessageId>m</MessageId></PublishResult></PublishResponse>"),
    "fcm": (200, '{"name": "projects/bench/messages/m"}'),
    "onesignal": (200, '{"id": "m", "external_id": null}'),
    "webpush": (201, ""),
    "webhook": (200, ""),
}
TOKEN = b'{"access_token": "bench", "expires_in": 3600, "token_type": "Bearer"}'


class Sink(asyncio.Protocol):
    """A vendor that takes everything, for as little as it can."""

    def __init__(self, kind: str) -> None:
        status, body = TAKEN[kind]
        self._taken, self._token = response(status, body.encode()), response(200, TOKEN)
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        held, out = self._held + data, []
        while (end := held.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(held, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(held) < whole:
                break
            out.append(self._token if held.startswith(b"POST /token") else self._taken)
            held = held[whole:]
        self._held = held
        if out:
            self._transport.write(b"".join(out))


def response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


async def serve(kind: str, port: int) -> None:
    """Take until the process ends."""
    await asyncio.get_running_loop().create_server(lambda: Sink(kind), LOOPBACK, port)
    await asyncio.Event().wait()


def message(kind: str, number: int, url: str) -> ChannelMessage:
    """As the router makes it, with what a sender of the channel reads; webhooks and browsers are at the URL."""
    channel = channel_of(kind)
    addresses = {"email": f"u{number}@example.org", "sms": f"+4915{number:09d}", "webhook": f"{url}/hooks/{number}"}
    to = addresses.get(channel, f"token-{number}")
    if kind == "webpush":
        to = webpush.subscription(url, f"b{number % IN_FLIGHT}").address
    text = f"A-{number:07} is on its way: https://shop.example/t/A-{number:07}. "
    made: Any = {
        "message_id": str(uuid4()),
        "notification_id": str(uuid4()),
        "tenant": "bench",
        "lane": "normal",
        "attempt": 1,
        "address": to,
        "platform": None,
        "expires_at": None,
        "subject": "On its way",
        "text": text * (8 if channel == "email" else 1),
        "html": f"<p>{text}</p>" * 8 if channel == "email" else None,
        "title": "On its way",
        "body": text,
        "data": json.dumps({"order": f"A-{number:07}"}).encode(),
    }
    return made  # type: ignore[no-any-return]


def browser_text(message: ChannelMessage) -> tuple[Subscription, bytes]:
    """A browser, and what its service worker reads."""
    push = {name: message[name] for name in ("title", "body", "message_id")}
    return read_subscription(message["address"]), json.dumps(
        {**push, "data": json.loads(message["data"] or b"{}")}
    ).encode()


async def crowd(each: Callable[[int], Awaitable[bool]], count: int) -> tuple[float, float]:
    """(messages a second, CPU µs a message) of IN_FLIGHT at once. Raises RuntimeError when one was not taken."""
    numbers, taken = iter(range(count)), 0

    async def one() -> None:
        nonlocal taken
        for number in numbers:
            if await each(number):
                taken += 1

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
    if taken != count:
        raise RuntimeError(f"{taken} of {count} messages were taken")
    return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6


async def ours(account: HttpAccount | GivenUrlAccount, messages: Sequence[ChannelMessage]) -> tuple[float, float]:
    async def send(number: int) -> bool:
        return isinstance(await account.send(messages[number]), Sent)

    return await crowd(send, len(messages))


async def bare(requests: Sequence[HttpRequest], sign: Callable[[HttpRequest], HttpRequest]) -> tuple[float, float]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

        async def post(number: int) -> bool:
            request = sign(requests[number])
            async with session.post(request.url, data=request.body, headers=request.headers) as answer:
                await answer.read()
                return answer.status < 300

        return await crowd(post, len(requests))


async def measure(kind: str, port: int, count: int, repeat: int, folder: Path) -> dict[str, Any]:
    """A row of the table."""
    channel, url = channel_of(kind), f"http://{LOOPBACK}:{port}"
    keys = dict(KEYS[kind])
    if kind == "fcm":
        Credentials.load_or_create(folder / "fcm.json", f"{url}/token")
        keys["credentials_file"] = str(folder / "fcm.json")
    entry: Any = {"name": kind, "channel": channel, "kind": kind, "max_in_flight": IN_FLIGHT, **keys}
    if kind not in ("webhook", "webpush"):
        entry["base_url"] = url
    (account,) = create_senders(channel, [ProviderSettings(**entry)], OutboundSettings(allow=(LOOPBACK,)))
    assert isinstance(account, HttpAccount | GivenUrlAccount)
    messages = [message(kind, number, url) for number in range(count)]
    requests = [account.prepare(each) for each in messages]
    signer = getattr(account, "_signer", None)

    plain = {}
    if kind == "webpush":
        plain = {request.headers["Topic"]: browser_text(each) for request, each in zip(requests, messages, strict=True)}

    def sign(request: HttpRequest) -> HttpRequest:
        if kind == "webpush":
            return HttpRequest(request.url, request.headers, encrypted(*plain[request.headers["Topic"]]))
        if signer is None:
            return request
        headers = {"Content-Type": request.headers["Content-Type"]}
        return HttpRequest(request.url, signer.sign("POST", request.url, headers, request.body), request.body)

    await account.start()
    await ours(account, messages[:IN_FLIGHT])
    rounds = [(await ours(account, messages), await bare(requests, sign)) for _ in range(repeat)]
    await account.close()
    return {
        "kind": kind,
        "per_second": round(statistics.median(mine[0] for mine, _ in rounds)),
        "cpu_us": round(statistics.median(mine[1] for mine, _ in rounds)),
        "bare_per_second": round(statistics.median(other[0] for _, other in rounds)),
        "bare_cpu_us": round(statistics.median(other[1] for _, other in rounds)),
        "of_bare": round(statistics.median(mine[0] / other[0] for mine, other in rounds), 2),
        "of_bare_by_cpu": round(statistics.median(other[1] / mine[1] for mine, other in rounds), 2),
    }


def row(kind: str, count: int, repeat: int) -> dict[str, Any]:
    """Measure beside a sink in a process of its own."""
    book = PortBook()
    port = book.reserve("sink")
    command = [sys.executable, "-m", "bench.providers", kind, "--serve", str(port)]
    with tempfile.TemporaryDirectory() as name, subprocess.Popen(command) as process:
        try:
            while not listens(port):
                time.sleep(0.05)
            return asyncio.run(measure(kind, port, count, repeat, Path(name)))
        finally:
            process.terminate()
            book.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.providers", description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *KEYS], metavar="KIND", help="all where none is named")
    parser.add_argument("--messages", type=int, default=2_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.kinds[0], options.serve))
        return
    show([row(kind, options.messages, options.repeat) for kind in options.kinds or KEYS], as_json=False)


if __name__ == "__main__":
    main()

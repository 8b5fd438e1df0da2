"""One claim is at most one provider request, counted on the wire by servers that know nothing of our clients.

Every fault at every phase, for every provider: how often was it asked, and is the result's class right? `Retry` is a promise
that nothing was sent, so it must not follow a request that may have been read; `InDoubt` costs a possible duplicate, so it
must not follow one that was certainly never written.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import struct
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, RequestReceived, StreamEnded
from h2.exceptions import ProtocolError

from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from tests.support import accounts
from vendors.http import HttpTransport, ResponseLostError
from vendors.http2 import Http2Transport
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, Sender, SendResult, Sent

TIMEOUT_S = 0.6


@dataclass
class Wire:
    """What a server saw."""

    port: int = 0
    connections: int = 0
    requests: int = 0
    tokens: int = 0
    finished_mails: int = 0
    after: list[bytes] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


Handler = Callable[[Wire, Reader, Writer], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(handler: Handler, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
    """A server on a port of its own."""
    wire = Wire()

    async def accept(reader: Reader, writer: Writer) -> None:
        wire.connections += 1
        try:
            await handler(wire, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client's side of a fault
        finally:
            wire.ended.set()
            writer.close()

    listening = socket.socket()
    if receive_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listening.bind(("127.0.0.1", 0))
    wire.port = listening.getsockname()[1]
    server = await asyncio.start_server(accept, sock=listening)
    try:
        yield wire
    finally:
        server.close()


def reset(writer: Writer) -> None:
    """RST, whatever is unread or unsent."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def account(
    kind: str, port: int, tmp_path: Path, *, scheme: str = "http", tokens: int = 0, ehlo: str | None = None, **more: Any
) -> Sender:
    """A sender to 127.0.0.1:port."""
    if kind == "smtp":
        keys = {"host": "127.0.0.1", "port": port, "from_address": "us@shop.example", "tls": "none", **more}
        keys |= {"local_hostname": ehlo} if ehlo else {}
        provider = ProviderSettings(**{"name": "p", "channel": "email", "kind": kind, "timeout_s": TIMEOUT_S, **keys})
    else:
        token_uri = f"http://127.0.0.1:{tokens or port}/token"
        provider = accounts.account(
            kind, tmp_path, port, scheme=scheme, token_uri=token_uri, timeout_s=TIMEOUT_S, **more
        )
    made: Sender = accounts.sender_of(provider)
    return made


@contextlib.asynccontextmanager
async def started(sender: Sender) -> AsyncIterator[Sender]:
    await sender.start()
    try:
        yield sender
    finally:
        await sender.close()


def to_send(kind: str, **fields: Any) -> ChannelMessage:
    if kind == "smtp":
        fields = {"address": "you@example.org", "text": "T", **fields}
    return accounts.to_send(kind, **fields)


# -- HTTP/1.1 ---------------------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(64 << 20))
"""64 MiB of zeros, in 64 KiB."""


async def read_request(reader: Reader) -> str:
    """The path of one whole request. Raises IncompleteReadError at the end of the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = next(
        (int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0
    )
    await reader.readexactly(length)
    return head.split(" ")[1]


def answer(writer: Writer, status: int, body: bytes, *headers: str, length: int | None = None) -> None:
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


async def grant(wire: Wire, reader: Reader, writer: Writer) -> None:
    """A token endpoint."""
    while True:
        await read_request(reader)
        wire.tokens += 1
        answer(writer, 200, b'{"access_token": "a", "expires_in": 3600, "token_type": "Bearer"}')


def http_server(kind: str, fault: str) -> Handler:
    """A vendor with one fault; `second_...` and `kept_...` let the first request of a connection pass."""

    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        if fault == "reset_on_accept":
            return reset(writer)
        if fault == "close_before_reading":
            await asyncio.sleep(0.1)
            return None
        while True:
            await read_request(reader)
            wire.requests += 1
            status, own_headers, body = accounts.TAKEN[kind]
            headers = [f"{name}: {value}" for name, value in own_headers.items()]
            match fault:
                case "reset_after_reading":
                    return reset(writer)
                case "close_after_reading":
                    return None
                case "500":
                    answer(writer, 500, b"{}")
                case "503":
                    answer(writer, 503, b"{}", "Retry-After: 7")
                case "429":
                    answer(writer, 429, b"{}", "Retry-After: 7")
                case "418":
                    answer(
                        writer,
                        418,
                        b'{"code": 99999, "error": {"details": [{"@type": "FcmError", "errorCode": "NEW"}]}}',
                    )
                case "big":
                    answer(writer, status, b"", *headers, length=64 << 20)
                    for _ in range(64):
                        writer.write(bytes(1 << 20))
                        await writer.drain()
                case "bomb":
                    answer(writer, status, BOMB, *headers, "Content-Encoding: gzip")
                case "cut_json":
                    answer(writer, status, body[:-4], *headers)
                case "torn_body":
                    answer(writer, status, body[:-4], *headers, length=len(body) or 9)
                    await writer.drain()
                    return None
                case "slow_body":
                    answer(writer, status, body[:5], *headers, length=len(body))
                    await asyncio.sleep(0.1)
                    writer.write(body[5:])
                case "drip":
                    answer(writer, status, b"", *headers, length=max(len(body), 9))
                    for byte in body.rjust(9):  # each in time, the whole never
                        writer.write(bytes([byte]))
                        await asyncio.sleep(TIMEOUT_S / 2)
                case "redirect":
                    answer(writer, 307, b"", f"Location: http://127.0.0.1:{wire.port}/again")
                case "hang":
                    await asyncio.sleep(3 * TIMEOUT_S)
                case "kept_then_closed":
                    answer(writer, status, body, *headers)
                    await writer.drain()
                    return None
                case "second_closed_after_reading" if wire.requests > 1:
                    return None
                case _:
                    answer(writer, status, body, *headers)
        return None

    return handle


RETRY, DOUBT = Retry, InDoubt

HTTP_FAULTS = [
    # fault, requests on the wire, class of the result
    ("none", 1, Sent),
    ("slow_body", 1, Sent),
    ("reset_on_accept", 0, DOUBT),
    ("close_before_reading", 0, DOUBT),
    ("reset_after_reading", 1, DOUBT),
    ("close_after_reading", 1, DOUBT),
    ("500", 1, DOUBT),
    ("503", 1, DOUBT),
    ("429", 1, RETRY),
    ("418", 1, RETRY),  # no table knows it; refused all the same
    ("redirect", 1, DOUBT),
    ("hang", 1, DOUBT),
    # the status arrives, a proper body does not
    ("cut_json", 1, None),
    ("torn_body", 1, None),
    ("drip", 1, None),
    ("big", 1, None),
    ("bomb", 1, None),
]
OTHERWISE: dict[tuple[str, str], type] = {("webhook", "redirect"): RETRY, ("webhook", "503"): RETRY}
"""What the specification of webhooks says of a fault, beside the result of every other kind."""


@contextlib.asynccontextmanager
async def http_account(kind: str, fault: str, tmp_path: Path) -> AsyncIterator[tuple[Sender, Wire, Wire]]:
    async with (
        served(http_server(kind, fault)) as wire,
        served(grant) as tokens,
        started(account(kind, wire.port, tmp_path, tokens=tokens.port)) as sender,
    ):
        yield sender, wire, tokens


@pytest.mark.parametrize("kind", accounts.HTTP_KINDS)
@pytest.mark.parametrize(("fault", "requests", "result"), HTTP_FAULTS)
async def test_http_fault(kind: str, fault: str, requests: int, result: type | None, tmp_path: Path) -> None:
    async with http_account(kind, fault, tmp_path) as (sender, wire, _):
        made = await sender.send(to_send(kind))
        await asyncio.sleep(0.05)  # whoever asks again does it now
        result = OTHERWISE.get((kind, fault), result)
        assert type(made) is (result or (Sent if kind in accounts.BY_STATUS else DOUBT)), made
        assert (wire.connections, wire.requests) == (1, requests)
        if fault in ("503", "429"):
            assert isinstance(made, Retry | InDoubt)
            assert made.retry_after_s == 7.0


@pytest.mark.parametrize("kind", accounts.HTTP_KINDS)
async def test_http_connection_that_the_server_closed_is_not_used_again(kind: str, tmp_path: Path) -> None:
    async with http_account(kind, "kept_then_closed", tmp_path) as (sender, wire, _):
        for count in (1, 2):
            assert type(await sender.send(to_send(kind))) is Sent
            assert (wire.requests, wire.connections) == (count, count)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", accounts.HTTP_KINDS)
async def test_http_request_lost_on_a_kept_connection_is_not_repeated(kind: str, tmp_path: Path) -> None:
    async with http_account(kind, "second_closed_after_reading", tmp_path) as (sender, wire, _):
        assert type(await sender.send(to_send(kind))) is Sent
        assert type(await sender.send(to_send(kind))) is InDoubt
        await asyncio.sleep(0.05)
        assert (wire.requests, wire.connections) == (2, 1)


@pytest.mark.parametrize("kind", [*accounts.HTTP_KINDS, "apns", "smtp"])
async def test_refused_connection_is_not_sent(kind: str, tmp_path: Path) -> None:
    async with served(grant) as tokens, started(account(kind, unused_port(), tmp_path, tokens=tokens.port)) as sender:
        made = await sender.send(to_send(kind))
        assert isinstance(made, Retry)
        assert made.error is ErrorClass.TRANSIENT


@pytest.mark.parametrize("kind", [*accounts.HTTP_KINDS, "apns"])
async def test_tls_handshake_that_does_not_end_is_not_sent(kind: str, tmp_path: Path) -> None:
    async def silent(wire: Wire, reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(3 * TIMEOUT_S)

    async with (
        served(silent) as wire,
        served(grant) as tokens,
        started(account(kind, wire.port, tmp_path, scheme="https", tokens=tokens.port)) as sender,
    ):
        made = await sender.send(to_send(kind))
        assert isinstance(made, Retry), made
        assert made.error is ErrorClass.TRANSIENT


_ODD_TOKENS = {"list": b"[1]", "odd": b'{"access_token": "a", "expires_in": "soon"}', "number": b"7"}


def token_server(fault: str) -> Handler:
    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            wire.tokens += 1
            match fault:
                case "reset":
                    return reset(writer)
                case "500":
                    answer(writer, 500, b"{}")
                case "refused":
                    answer(writer, 400, b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}')
                case "list" | "odd" | "number":
                    answer(writer, 200, _ODD_TOKENS[fault])
                case "hang":
                    await asyncio.sleep(3 * TIMEOUT_S)

    return handle


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("reset", ErrorClass.TRANSIENT),
        ("500", ErrorClass.TRANSIENT),
        ("hang", ErrorClass.TRANSIENT),
        ("refused", ErrorClass.ACCOUNT),
        *((fault, ErrorClass.TRANSIENT) for fault in _ODD_TOKENS),
    ],
)
async def test_failed_access_token_is_no_request(fault: str, error: ErrorClass, tmp_path: Path) -> None:
    async with (
        served(http_server("fcm", "none")) as wire,
        served(token_server(fault)) as tokens,
        started(account("fcm", wire.port, tmp_path, tokens=tokens.port)) as sender,
    ):
        results = await asyncio.gather(*(sender.send(to_send("fcm")) for _ in range(5)))
        assert [(type(made), cast(Retry, made).error) for made in results] == [(Retry, error)] * 5
        assert (wire.connections, wire.requests) == (0, 0)
        assert 1 <= tokens.tokens <= 3  # google-auth asks up to three times; those who wait share its answer
        if fault == "refused":
            assert (
                cast(Retry, results[0]).code == "no access token (RefreshError: invalid_grant: Invalid JWT Signature.)"
            )


async def test_proxy_of_the_environment_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(grant) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for kind in accounts.HTTP_KINDS:
            async with http_account(kind, "none", tmp_path) as (sender, wire, _):
                assert type(await sender.send(to_send(kind))) is Sent
                assert wire.requests == 1
        assert proxy.connections == 0


async def test_access_token_is_asked_for_once(tmp_path: Path) -> None:
    async with http_account("fcm", "none", tmp_path) as (sender, wire, tokens):
        results = await asyncio.gather(*(sender.send(to_send("fcm")) for _ in range(5)))
        assert {type(made) for made in results} == {Sent}
        assert (wire.requests, tokens.tokens) == (5, 1)


# -- HTTP/2: APNs -----------------------------------------------------------------------------------------------------


def apns_server(fault: str) -> Handler:
    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        if fault == "reset_on_accept":
            return reset(writer)
        http2 = H2Connection(H2Configuration(client_side=False))
        if fault == "hang_on_accept":
            await asyncio.sleep(3 * TIMEOUT_S)
            return None
        http2.initiate_connection()
        writer.write(http2.data_to_send())
        if fault == "close_before_reading":
            await writer.drain()
            await asyncio.sleep(0.1)
            return None
        answered = 0
        while data := await reader.read(65_536):
            try:
                events = http2.receive_data(data)
            except ProtocolError:
                return None
            for event in events:
                if isinstance(event, RequestReceived) and dict(event.headers or [])[b":path"].startswith(b"/3/device/"):
                    wire.requests += 1
                    if fault == "reset_at_headers":
                        return reset(writer)
                elif isinstance(event, StreamEnded):
                    stream_id = event.stream_id or 0
                    answered += 1
                    if _apns_answers(fault, wire, http2, stream_id):
                        return reset(writer) if fault == "reset_after_reading" else None
                elif isinstance(event, ConnectionTerminated):
                    return None
            writer.write(http2.data_to_send())
            if fault == "kept_then_closed" and answered:
                await writer.drain()
                await asyncio.sleep(0.05)  # unread bytes would make an RST of it, which takes the answer with it
                return None
        return None

    return handle


def _apns_answers(fault: str, wire: Wire, http2: H2Connection, stream_id: int) -> bool:
    """Answer a request; True to end the connection without."""

    def said(status: int, body: bytes, *headers: tuple[str, str]) -> None:
        http2.send_headers(stream_id, [(":status", str(status)), ("apns-id", "x"), *headers])
        http2.send_data(stream_id, body, end_stream=True)

    match fault:
        case "reset_after_reading" | "close_after_reading":
            return True
        case "second_closed_after_reading" if wire.requests > 1:
            return True
        case "500":
            said(500, b'{"reason": "InternalServerError"}')
        case "503":
            said(503, b'{"reason": "ServiceUnavailable"}', ("retry-after", "7"))
        case "429":
            said(429, b'{"reason": "TooManyRequests"}', ("retry-after", "7"))
        case "expired_token":
            said(403, b'{"reason": "ExpiredProviderToken"}')
        case "cut_json":
            said(400, b'{"reason": "BadDev')
        case "refused_stream":
            http2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
        case "stream_reset":
            http2.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        case "goaway_zero":
            http2.close_connection(last_stream_id=0)
        case "goaway_this":
            http2.close_connection(last_stream_id=stream_id)
        case "hang":
            pass
        case _:
            said(200, b"")
    return False


@pytest.mark.parametrize(
    ("fault", "requests", "expected"),
    [
        ("none", 1, Sent),
        ("reset_on_accept", 0, RETRY),  # no request leaves before the peer's SETTINGS are there
        ("hang_on_accept", 0, RETRY),
        ("close_before_reading", 0, DOUBT),
        ("reset_at_headers", 1, DOUBT),
        ("reset_after_reading", 1, DOUBT),
        ("close_after_reading", 1, DOUBT),
        ("500", 1, DOUBT),
        ("503", 1, DOUBT),
        ("429", 1, RETRY),
        ("expired_token", 1, RETRY),  # signed anew, but sent by the next claim
        ("cut_json", 1, RETRY),  # refused, for a reason that cannot be read: no device is dropped
        ("refused_stream", 1, RETRY),
        ("stream_reset", 1, DOUBT),
        ("goaway_zero", 1, RETRY),
        ("goaway_this", 1, DOUBT),
        ("hang", 1, DOUBT),
    ],
)
async def test_apns_fault(fault: str, requests: int, expected: type, tmp_path: Path) -> None:
    async with served(apns_server(fault)) as wire, started(account("apns", wire.port, tmp_path)) as sender:
        made = await sender.send(to_send("apns"))
        await asyncio.sleep(0.05)
        assert type(made) is expected, made
        assert (wire.connections, wire.requests) == (1, requests)
        if fault in ("503", "429"):
            assert isinstance(made, Retry | InDoubt)
            assert made.retry_after_s == 7.0


async def test_apns_connection_that_the_server_closed_is_not_used_again(tmp_path: Path) -> None:
    async with served(apns_server("kept_then_closed")) as wire, started(account("apns", wire.port, tmp_path)) as sender:
        for count in (1, 2):
            assert type(await sender.send(to_send("apns"))) is Sent
            assert (wire.requests, wire.connections) == (count, count)
            await asyncio.sleep(0.1)


async def test_apns_request_lost_on_a_kept_connection_is_not_repeated(tmp_path: Path) -> None:
    handler = apns_server("second_closed_after_reading")
    async with served(handler) as wire, started(account("apns", wire.port, tmp_path)) as sender:
        assert type(await sender.send(to_send("apns"))) is Sent
        assert type(await sender.send(to_send("apns"))) is InDoubt
        await asyncio.sleep(0.05)
        assert (wire.requests, wire.connections) == (2, 1)


# -- SMTP -------------------------------------------------------------------------------------------------------------

SMTP_PHASES = ("banner", "EHLO", "MAIL", "RCPT", "DATA", "long body", "short body", "dot")
_REPLIES = {"EHLO": b"250-x\r\n250 SIZE\r\n", "MAIL": b"250 ok\r\n", "RCPT": b"250 ok\r\n", "RSET": b"250 ok\r\n"}


_PIPELINING = b"250-x\r\n250-PIPELINING\r\n250 SIZE\r\n"


def smtp_server(at: str, fault: str, pipelining: bool = False) -> Handler:
    """A server that behaves up to a phase; `requests` counts MAIL, `finished_mails` final dots that arrived."""
    replies = {**_REPLIES, "EHLO": _PIPELINING} if pipelining else _REPLIES

    async def fail(wire: Wire, reader: Reader, writer: Writer) -> None:
        match fault:
            case "reset":
                reset(writer)
            case "hang":
                await asyncio.sleep(2 * TIMEOUT_S)  # nothing is read meanwhile but what fits into the buffers
                wire.after.append(await reader.read(-1))  # what still comes, to the end
            case "garbage":
                writer.write(b"\xff<html>\r\n")
                await writer.drain()
                await reader.read(-1)
            case "drip":  # each byte in time, the reply never
                for byte in b"250-" + b"x" * 20:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(TIMEOUT_S / 2)
            case "421":
                writer.write(b"421 4.3.2 going down\r\n")
                await writer.drain()
            case _:
                pass  # close

    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        if at == "banner":
            return await fail(wire, reader, writer)
        writer.write(b"220 x ESMTP\r\n")
        while line := await reader.readline():
            word = line[:4].decode().upper()
            wire.requests += word == "MAIL"
            if word == at:
                return await fail(wire, reader, writer)
            if word != "DATA":
                writer.write(replies.get(word, b"221 bye\r\n"))
                continue
            writer.write(b"354 go on\r\n")
            if at.endswith("body"):
                await reader.read(100)
                return await fail(wire, reader, writer)
            await reader.readuntil(b"\r\n.\r\n")
            wire.finished_mails += 1
            if at == "dot" and not (fault.startswith("second") and wire.finished_mails == 1):
                return await fail(wire, reader, writer)
            writer.write(b"250 2.0.0 Ok: queued as Q1\r\n")
            if at == "afterwards":
                await writer.drain()
                return None
        return None

    return handle


LONG = "x" * (6 << 20)
"""More than the kernel takes off our hands."""


@pytest.mark.parametrize("fault", ["reset", "close", "hang", "drip", "garbage", "421"])
@pytest.mark.parametrize("at", SMTP_PHASES)
@pytest.mark.parametrize("pipelining", [False, True])
async def test_smtp_fault(at: str, fault: str, pipelining: bool, tmp_path: Path) -> None:
    handler = smtp_server(at, fault, pipelining)
    async with served(handler, receive_buffer=8_192) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        made = await sender.send(to_send("smtp", text=LONG if at == "long body" else "short"))
        # The final dot is out: only a reply that is one tells. A short mail leaves at once, and its dot with it.
        expected = InDoubt if at in ("short body", "dot") and fault != "421" else Retry
        assert type(made) is expected, made
        if fault == "hang":
            await asyncio.wait_for(wire.ended.wait(), 5)
            if expected is Retry:
                assert b"\r\n.\r\n" not in b"".join(wire.after)  # called not sent, so it must not finish later
        assert wire.connections == 1
        assert wire.requests == (at not in ("banner", "EHLO"))
        assert wire.finished_mails == (at == "dot")


def smtp_cut(after: int) -> Handler:
    """A server with PIPELINING that resets its first connection once it has read so many bytes of it."""

    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        left = after if wire.connections == 1 else 1 << 30
        writer.write(b"220 x ESMTP\r\n")
        line, in_mail = b"", False
        while left and (byte := await reader.read(1)):
            left -= 1
            line += byte
            if not line.endswith(b"\r\n"):
                continue
            word = line[:4].decode().upper().strip()
            if in_mail:
                if line == b".\r\n":
                    in_mail = False
                    wire.finished_mails += 1
                    writer.write(b"250 2.0.0 Ok: queued as Q1\r\n")
            elif word == "DATA":
                in_mail = True
                writer.write(b"354 go on\r\n")
            else:
                writer.write(_PIPELINING if word == "EHLO" else _REPLIES.get(word, b"221 bye\r\n"))
            line = b""
        if not left:
            reset(writer)

    return handle


async def test_only_the_mail_whose_final_dot_was_written_is_in_doubt_wherever_the_connection_ends(
    tmp_path: Path,
) -> None:
    """A reset after every so many bytes of three mails: what is called not sent never reached its end at the server."""
    after, kinds = 1, set()
    while True:
        async with served(smtp_cut(after)) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
            made = [await sender.send(to_send("smtp", text=f"mail {n}")) for n in range(3)]
            finished = wire.finished_mails
            assert sum(type(each) is InDoubt for each in made) <= 1, (after, made)
            assert sum(type(each) is Retry for each in made) <= 1, (after, made)
            doubt = sum(type(each) is InDoubt for each in made)
            sent = sum(type(each) is Sent for each in made)
            assert sent <= finished <= sent + doubt, (after, made, finished)
            kinds |= {type(each) for each in made}
            if wire.connections == 1:
                break
        after += 7
    assert kinds == {Sent, InDoubt, Retry}


@pytest.mark.parametrize("pipelining", [False, True])
@pytest.mark.parametrize(("reset_reply", "connections"), [(b"250 ok\r\n", 1), (b"502 5.5.1 unknown\r\n", 2)])
async def test_connection_is_kept_only_if_the_server_took_the_reset(
    reset_reply: bytes, connections: int, pipelining: bool, tmp_path: Path
) -> None:
    replies = {"RCPT": b"550 5.1.1 no such user\r\n", "DATA": b"503 5.5.1 no recipient\r\n", "RSET": reset_reply}

    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        writer.write(b"220 x ESMTP\r\n")
        while line := await reader.readline():
            word = line[:4].decode().upper()
            ehlo = _PIPELINING if pipelining else _REPLIES["EHLO"]
            writer.write(ehlo if word == "EHLO" else {**_REPLIES, **replies}.get(word, b"221 bye\r\n"))

    async with served(handle) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        for _ in range(2):
            assert type(await sender.send(to_send("smtp"))) is Rejected
        assert wire.connections == connections


@pytest.mark.parametrize("data", [b"354 go on\r\n", b"554 5.5.1 no valid recipients\r\n"])
async def test_refused_recipient_of_a_pipelined_envelope_gets_nothing_and_the_connection_is_kept(
    data: bytes, tmp_path: Path
) -> None:
    """A server may say 354 although nobody is to get the mail (RFC 2920 §3.1): a lone dot ends it."""
    bodies: list[bytes] = []

    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        writer.write(b"220 x ESMTP\r\n")
        refused = False
        while line := await reader.readline():
            word = line[:4].decode().upper()
            if word == "RCPT":
                refused = b"gone@" in line
                writer.write(b"550 5.1.1 no such user\r\n" if refused else b"250 ok\r\n")
            elif word == "DATA":
                writer.write(data if refused else b"354 go on\r\n")
                if refused and data.startswith(b"554"):
                    continue
                bodies.append(b"")
                while (line := await reader.readline()) != b".\r\n":
                    bodies[-1] += line
                writer.write(b"554 5.5.1 no valid recipients\r\n" if refused else b"250 2.0.0 Ok: queued as Q1\r\n")
            else:
                writer.write(_PIPELINING if word == "EHLO" else _REPLIES.get(word, b"221 bye\r\n"))

    async with served(handle) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        refusal = await sender.send(to_send("smtp", address="gone@example.org"))
        assert type(refusal) is Rejected
        assert refusal.error is ErrorClass.PERMANENT_RECIPIENT
        assert await sender.send(to_send("smtp")) == Sent("Q1")
        assert wire.connections == 1
    assert [bool(body) for body in bodies] == ([False, True] if data.startswith(b"354") else [True])


def smtp_words(replies: dict[str, bytes], after_dot: bytes = b"250 2.0.0 Ok: queued as Q1\r\n") -> Handler:
    """A server that answers these commands so; the rest as usual."""

    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        writer.write(replies.get("banner", b"220 x ESMTP\r\n"))
        while line := await reader.readline():
            word = line[:4].decode().upper()
            wire.requests += word == "MAIL"
            wire.after.append(line)
            if word == "DATA":
                writer.write(replies.get("DATA", b"354 go on\r\n"))
                await reader.readuntil(b"\r\n.\r\n")
                wire.finished_mails += 1
                writer.write(after_dot)
            else:
                writer.write(replies.get(word, _REPLIES.get(word, b"221 bye\r\n")))

    return handle


@pytest.mark.parametrize("reply", [b"200 2.0.0 Ok", b"220 x", b"250-a\r\n250 b", b"251 2.1.5 forwarded", b"299 fine"])
async def test_any_2xx_after_the_final_dot_is_sent(reply: bytes, tmp_path: Path) -> None:
    handler = smtp_words({}, reply + b"\r\n")
    async with served(handler) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        for text in ("short", "x" * 40_000):
            assert type(await sender.send(to_send("smtp", text=text))) is Sent
        assert (wire.requests, wire.finished_mails, wire.connections) == (2, 2, 1)


@pytest.mark.parametrize("reply", [b"250 ok", b"251 will forward", b"252 2.5.0 cannot verify"])
@pytest.mark.parametrize("at", ["MAIL", "RCPT"])
async def test_any_2xx_reply_to_a_command_continues(at: str, reply: bytes, tmp_path: Path) -> None:
    handler = smtp_words({at: reply + b"\r\n"})
    async with served(handler) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        assert await sender.send(to_send("smtp")) == Sent("Q1")


@pytest.mark.parametrize("given", [None, "mail-7.shop.example", "[192.0.2.7]"])
async def test_ehlo_says_a_full_host_name(given: str | None, tmp_path: Path) -> None:
    async with served(smtp_words({})) as wire, started(account("smtp", wire.port, tmp_path, ehlo=given)) as sender:
        assert await sender.send(to_send("smtp")) == Sent("Q1")
        assert wire.after[0] == f"EHLO {given or 'shop.example'}\r\n".encode()


@pytest.mark.parametrize(
    "reply",
    [
        b"504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname",
        b"550 5.7.1 <localhost>: Helo command rejected: Host not found",
        b"450 4.7.1 <localhost>: Helo command rejected: Host not found",
        b"550 Invalid HELO name (see RFC 5321 4.1.1.1)",
        b"554 5.7.1 EHLO hostname invalid",
    ],
)
@pytest.mark.parametrize("at", ["EHLO", "MAIL", "RCPT"])
async def test_refused_ehlo_name_is_the_accounts(at: str, reply: bytes, tmp_path: Path) -> None:
    handler = smtp_words({at: reply + b"\r\n", "HELO": reply + b"\r\n"})
    async with served(handler) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        made = await sender.send(to_send("smtp"))
        assert isinstance(made, Retry)
        assert made.error is ErrorClass.ACCOUNT
        assert wire.finished_mails == 0


async def test_address_in_a_reply_does_not_make_it_the_accounts(tmp_path: Path) -> None:
    handler = smtp_words({"RCPT": b"550 5.1.1 <helo.command-rejected@fully-qualified-host.example>: no such user\r\n"})
    async with served(handler) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        assert await sender.send(to_send("smtp")) == Rejected(ErrorClass.PERMANENT_RECIPIENT, "550 5.1.1")


async def test_server_that_knows_no_ehlo_is_greeted_by_helo(tmp_path: Path) -> None:
    handler = smtp_words({"EHLO": b"502 what?\r\n", "HELO": b"250 x\r\n"})
    async with served(handler) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        assert await sender.send(to_send("smtp")) == Sent("Q1")


@pytest.mark.parametrize(
    ("keys", "ehlo", "words"),
    [
        ({"tls": "starttls"}, b"250-x\r\n250 SIZE\r\n", "no STARTTLS"),
        ({"username": "u", "password": "secret"}, b"250-x\r\n250 AUTH XOAUTH2\r\n", "offers xoauth2"),
        ({"username": "u", "password": "secret"}, b"250-x\r\n250 SIZE\r\n", "offers none"),
    ],
)
async def test_what_the_server_does_not_offer_is_said_and_nothing_goes_in_clear(
    keys: dict[str, Any], ehlo: bytes, words: str, tmp_path: Path
) -> None:
    handler = smtp_words({"EHLO": ehlo})
    async with served(handler) as wire, started(account("smtp", wire.port, tmp_path, **keys)) as sender:
        made = await sender.send(to_send("smtp"))
        assert isinstance(made, Retry)
        assert made.error is ErrorClass.ACCOUNT
        assert words in made.code
        assert (wire.requests, wire.finished_mails) == (0, 0)
        assert b"secret" not in b"".join(wire.after)


async def test_smtp_connection_that_the_server_closed_is_not_used_again(tmp_path: Path) -> None:
    async with served(smtp_server("afterwards", "")) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        for count in (1, 2):
            assert await sender.send(to_send("smtp")) == Sent("Q1")
            assert (wire.requests, wire.finished_mails, wire.connections) == (count, count, count)
            await asyncio.sleep(0.05)


async def test_smtp_mail_refused_early_is_not_finished(tmp_path: Path) -> None:
    async def handle(wire: Wire, reader: Reader, writer: Writer) -> None:
        writer.write(b"220 x ESMTP\r\n")
        while not (await reader.readline()).startswith(b"DATA"):
            writer.write(b"250 ok\r\n")
        writer.write(b"354 go on\r\n")
        await reader.read(1_000)
        writer.write(b"552 5.3.4 too large\r\n")
        wire.after.append(await reader.read(-1))

    async with served(handle, receive_buffer=8_192) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        made = await sender.send(to_send("smtp", text=LONG))
        assert made == Rejected(ErrorClass.PERMANENT_MESSAGE, "552 5.3.4")
        await asyncio.wait_for(wire.ended.wait(), 5)
        assert b"\r\n.\r\n" not in b"".join(wire.after)


async def test_smtp_long_mail_arrives_whole(tmp_path: Path) -> None:
    async with served(smtp_server("never", "")) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        for _ in range(2):
            assert await sender.send(to_send("smtp", text="x" * 40_000)) == Sent("Q1")
        assert (wire.connections, wire.requests, wire.finished_mails) == (1, 2, 2)


# -- do these tests count? --------------------------------------------------------------------------------------------


def twice(post: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A client that asks again when an answer is lost."""

    async def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            return await post(*args, **kwargs)
        except ResponseLostError:
            return await post(*args, **kwargs)

    return asked


@pytest.mark.parametrize("kind", [*accounts.HTTP_KINDS, "apns"])
async def test_client_that_repeats_a_lost_request_is_caught(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Http2Transport if kind == "apns" else HttpTransport
    monkeypatch.setattr(transport, "post", twice(transport.post))
    fault = "reset_after_reading"
    handler = apns_server(fault) if kind == "apns" else http_server(kind, fault)
    async with (
        served(handler) as wire,
        served(grant) as tokens,
        started(account(kind, wire.port, tmp_path, tokens=tokens.port)) as sender,
    ):
        assert type(await sender.send(to_send(kind))) is InDoubt
        assert wire.requests == 2


async def test_mailer_that_repeats_a_lost_mail_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(smtp_server("dot", "close")) as wire, started(account("smtp", wire.port, tmp_path)) as sender:
        once = sender.send

        async def send(message: ChannelMessage) -> SendResult:
            made = await once(message)
            return await once(message) if isinstance(made, InDoubt) else made

        monkeypatch.setattr(sender, "send", send)
        assert type(await sender.send(to_send("smtp"))) is InDoubt
        assert (wire.requests, wire.finished_mails) == (2, 2)

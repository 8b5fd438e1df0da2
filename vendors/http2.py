"""HTTP/2 for a provider: one request, no retry; an error says whether the request was sent.

    | the request                                        | is                |
    |----------------------------------------------------|-------------------|
    | not written to its end: no connection, no stream   | definitely not sent |
    | on a stream above a GOAWAY's last_stream_id        | definitely not sent |
    | on a stream reset with REFUSED_STREAM              | definitely not sent |
    | written, its response lost or late                 | in doubt          |

RFC 9113 §6.8 and §8.7 say so. One kept connection carries every stream; when it starts to close, a new one is opened.
May import h2 (the only module of the senders that does) and vendors.http. Never: a provider, a retry.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import FrameTooLargeError, H2Error
from h2.settings import SettingCodes, Settings

from runtime.clock import system_monotonic
from vendors.http import MAX_RESPONSE_BYTES, HttpResponse, NotSentError, ResponseLostError

IDLE_S = 30.0
"""A connection that was silent for longer is checked with a PING before use: middleboxes drop idle ones silently."""
PING_TIMEOUT_S = 2.0
_FRAME_HEADER = 9
_GOAWAY = 0x7

Headers = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Exchange:
    """One request and what has come back."""

    answered: asyncio.Future[HttpResponse]
    unsent: bytes
    """What flow control has not let out yet; while there is some, the peer cannot have acted."""
    written_at: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    def fail(self, why: str, *, not_sent: bool) -> None:
        if not self.answered.done():
            self.answered.set_exception(NotSentError(why) if not_sent else ResponseLostError(why))


class Http2Protocol(asyncio.Protocol):
    """The client's side of one connection."""

    def __init__(self) -> None:
        self._http2 = H2Connection(H2Configuration(client_side=True))
        self._http2.local_settings = Settings(client=True, initial_values={SettingCodes.ENABLE_PUSH: 0})
        self._transport: asyncio.Transport | None = None
        self._exchanges: dict[int, Exchange] = {}
        self._slots: deque[asyncio.Future[None]] = deque()
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._received = b""
        self.last_received = system_monotonic()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the peer's SETTINGS have arrived: before that the number of streams it takes is unknown."""
        self.retired = False
        """No new request: the peer said GOAWAY, or does not answer."""

    # -- asyncio ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._http2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.last_received = system_monotonic()
        self._received += data
        try:
            for frame in self._frames():
                # h2 ends the whole connection at a GOAWAY, although the streams up to last_stream_id continue.
                if frame[3] == _GOAWAY:
                    self._on_goaway(frame[_FRAME_HEADER:])
                    continue
                for event in self._http2.receive_data(frame):
                    self._on_event(event)
        except H2Error as exc:
            self._close(f"HTTP/2: {type(exc).__name__}")
            return
        self._write_bodies()
        self._free_slots()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail_all(type(exc).__name__ if exc else "connection closed")

    # -- the caller's side ------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether a new request may go out here."""
        return not self.retired and self._transport is not None and not self._transport.is_closing()

    async def slot(self) -> None:
        """Wait until the peer takes one more stream. Raises NotSentError when there will be none."""
        while self.usable and self._http2.open_outbound_streams >= self._http2.remote_settings.max_concurrent_streams:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._slots.append(waiting)
            try:
                await waiting
            except asyncio.CancelledError:
                self._free_slots()  # it may have been this one's turn
                raise
        if not self.usable:
            raise NotSentError("the connection is closing")

    def request(self, headers: Headers, body: bytes) -> tuple[int, Exchange]:
        """Write a request as far as flow control lets it; a slot must be free. Raises NotSentError."""
        try:
            stream_id = self._http2.get_next_available_stream_id()
            self._http2.send_headers(stream_id, headers, end_stream=not body)
        except H2Error as exc:
            self._retire()
            raise NotSentError(f"HTTP/2: {type(exc).__name__}") from exc
        exchange = Exchange(asyncio.get_running_loop().create_future(), body, written_at=system_monotonic())
        self._exchanges[stream_id] = exchange
        self._write_bodies()
        self._flush()
        return stream_id, exchange

    def abandon(self, stream_id: int) -> None:
        """The caller no longer waits for this response."""
        exchange = self._exchanges.pop(stream_id, None)
        if exchange is None:
            return
        if self.last_received < exchange.written_at:
            self._retire()  # not a byte since: what is written here next would be in doubt as well
        try:
            self._http2.reset_stream(stream_id, ErrorCodes.CANCEL)
        except H2Error:
            self._retire()
        self._free_slots()
        self._flush()

    async def ping(self) -> bool:
        """Whether the peer is still there."""
        token = len(self._pings).to_bytes(8, "big")
        answered = self._pings[token] = asyncio.get_running_loop().create_future()
        try:
            self._http2.ping(token)
            self._flush()
            await asyncio.wait_for(answered, PING_TIMEOUT_S)
        except (TimeoutError, H2Error, NotSentError):
            self._retire()
            return False
        finally:
            self._pings.pop(token, None)
        return self.usable

    def close(self) -> None:
        """Close the connection; what still waits for an answer loses it."""
        self._close("closed by us")

    # -- inside -----------------------------------------------------------------------------------------------------

    def _frames(self) -> list[bytes]:
        """Whole frames out of what has been received."""
        frames = []
        while len(self._received) >= _FRAME_HEADER:
            end = _FRAME_HEADER + int.from_bytes(self._received[:3], "big")
            if end > _FRAME_HEADER + self._http2.max_inbound_frame_size:
                raise FrameTooLargeError("a frame above what we allow, or no HTTP/2 at all")
            if len(self._received) < end:
                break
            frames.append(self._received[:end])
            self._received = self._received[end:]
        return frames

    def _on_event(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                if not self.ready.done():
                    self.ready.set_result(None)
            case ResponseReceived(stream_id=stream_id, headers=headers):
                if (exchange := self._exchanges.get(stream_id or 0)) is not None:
                    exchange.headers = {_text(name): _text(value) for name, value in headers or ()}
                    status = exchange.headers.pop(":status", "")
                    exchange.status = int(status) if status.isascii() and status.isdigit() else 0
            case DataReceived(stream_id=stream_id, data=data, flow_controlled_length=length):
                self._http2.acknowledge_received_data(length or 0, stream_id or 0)
                exchange = self._exchanges.get(stream_id or 0)
                if exchange is not None and len(exchange.body) < MAX_RESPONSE_BYTES:
                    exchange.body += data or b""
            case StreamEnded(stream_id=stream_id):
                exchange = self._exchanges.pop(stream_id or 0, None)
                if exchange is not None and not exchange.answered.done():
                    exchange.answered.set_result(HttpResponse(exchange.status, exchange.headers, bytes(exchange.body)))
            case StreamReset(stream_id=stream_id, error_code=code):
                exchange = self._exchanges.pop(stream_id or 0, None)
                if exchange is not None:
                    refused = code == ErrorCodes.REFUSED_STREAM
                    exchange.fail(f"stream reset ({_name(int(code or 0))})", not_sent=refused or bool(exchange.unsent))
            case PingAckReceived(ping_data=token):
                answered = self._pings.get(token or b"")
                if answered is not None and not answered.done():
                    answered.set_result(None)
            case _:
                pass  # bookkeeping that h2 has done

    def _on_goaway(self, payload: bytes) -> None:
        last_stream_id = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        why = f"GOAWAY ({_name(int.from_bytes(payload[4:8], 'big'))})"
        for stream_id in [stream_id for stream_id in self._exchanges if stream_id > last_stream_id]:
            self._exchanges.pop(stream_id).fail(why, not_sent=True)
        self._retire()

    def _retire(self) -> None:
        """Let streams in flight end, open no new one."""
        self.retired = True
        self._wake_all()
        if not self._exchanges and self._transport is not None:
            self._transport.close()

    def _write_bodies(self) -> None:
        """Send what flow control allows; a body's last piece ends its request."""
        for stream_id, exchange in list(self._exchanges.items()):
            while exchange.unsent:
                room = min(self._http2.local_flow_control_window(stream_id), self._http2.max_outbound_frame_size)
                if room <= 0:
                    break
                piece = exchange.unsent[:room]
                rest = exchange.unsent[room:]
                self._http2.send_data(stream_id, piece, end_stream=not rest)
                exchange.unsent = rest

    def _free_slots(self) -> None:
        room = self._http2.remote_settings.max_concurrent_streams - self._http2.open_outbound_streams
        while self._slots and room > 0:
            waiting = self._slots.popleft()
            if not waiting.done():
                waiting.set_result(None)
                room -= 1
        if self.retired and not self._exchanges and self._transport is not None:
            self._transport.close()

    def _wake_all(self) -> None:
        while self._slots:
            waiting = self._slots.popleft()
            if not waiting.done():
                waiting.set_result(None)

    def _flush(self) -> None:
        if self._transport is not None and (data := self._http2.data_to_send()) and not self._transport.is_closing():
            self._transport.write(data)

    def _close(self, why: str) -> None:
        self._fail_all(why)
        if self._transport is not None:
            self._transport.close()

    def _fail_all(self, why: str) -> None:
        self.retired = True
        exchanges = self._exchanges
        self._exchanges = {}
        for exchange in exchanges.values():
            exchange.fail(why, not_sent=bool(exchange.unsent))
        if not self.ready.done():
            self.ready.set_exception(NotSentError(why))
            self.ready.exception()  # marks it as retrieved: there may be no waiter left
        for answered in self._pings.values():
            if not answered.done():
                answered.set_exception(NotSentError(why))
        self._wake_all()


class Http2Transport:
    """Requests to one host over a kept connection."""

    def __init__(self, base_url: str, timeout_s: float) -> None:
        url = urlsplit(base_url)
        self._scheme = url.scheme
        self._authority = url.netloc
        self._prefix = url.path
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._timeout_s = timeout_s
        self._connecting = asyncio.Lock()
        self._connection: Http2Protocol | None = None

    async def post(self, path: str, *, headers: Headers, body: bytes) -> HttpResponse:
        """POST once. Raises NotSentError or ResponseLostError."""
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                connection = await self._usable_connection()
                await connection.slot()
        except TimeoutError as exc:
            raise NotSentError("no connection or no free stream in time") from exc
        pseudo = (
            (":method", "POST"),
            (":scheme", self._scheme),
            (":authority", self._authority),
            (":path", self._prefix + path),
        )
        stream_id, exchange = connection.request([*pseudo, *headers], body)
        try:
            async with asyncio.timeout_at(deadline.when()):
                return await exchange.answered
        except TimeoutError as exc:
            if exchange.unsent:
                raise NotSentError("the request could not be written in time") from exc
            raise ResponseLostError("TimeoutError") from exc
        finally:
            connection.abandon(stream_id)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _usable_connection(self) -> Http2Protocol:
        async with self._connecting:
            current = self._connection
            fresh = current is not None and system_monotonic() - current.last_received < IDLE_S
            if current is not None and current.usable and (fresh or await current.ping()):
                return current
            self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> Http2Protocol:
        tls = None
        if self._scheme == "https":
            tls = ssl.create_default_context()
            tls.set_alpn_protocols(["h2"])
        try:
            transport, connection = await asyncio.get_running_loop().create_connection(
                Http2Protocol, self._host, self._port, ssl=tls
            )
        except OSError as exc:  # ssl.SSLError is one
            raise NotSentError(type(exc).__name__) from exc
        negotiated = transport.get_extra_info("ssl_object")
        if negotiated is not None and negotiated.selected_alpn_protocol() != "h2":
            transport.abort()
            raise NotSentError("the host does not speak HTTP/2")
        try:
            await connection.ready
        except BaseException:
            transport.abort()
            raise
        return connection


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _name(code: int) -> str:
    try:
        return ErrorCodes(code).name
    except ValueError:
        return str(code)

"""Commands and replies over a connection that aiosmtplib has opened, several commands in one write (RFC 2920).

aiosmtplib reads one reply at a time and drops what arrives before it asks. So it connects, greets, starts TLS and logs in; then
its transport is taken over, and replies are kept in their order, one for each command.
May import asyncio. Never: the meaning of a reply, a mail's content.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

MAX_LINE_BYTES = 8_192
MAX_REPLY_BYTES = 4 * MAX_LINE_BYTES
_DRAIN_POLL_S = 0.01


class Reply(NamedTuple):
    """What a server says to one command; the lines of a longer one are joined by line feeds."""

    code: int
    text: str


class DialogueEnded(Exception):
    """The connection is closed or does not answer; the text is the name of aiosmtplib's error."""


class InvalidReply(Exception):
    """The server says something that is no SMTP reply."""


class Dialogue(asyncio.Protocol):
    """One connection, for one transaction at a time."""

    def __init__(self, transport: asyncio.Transport, *, pipelining: bool, timeout_s: float, dsn: bool = False) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self.pipelining, self.dsn = pipelining, dsn
        self._buffer = bytearray()
        self._replies: deque[Reply] = deque()
        self._outstanding = 0
        """Commands that have no reply yet, read or not."""
        self._failed: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """Set anew when it fires too early: one for every reply costs more than the reply's bookkeeping."""
        self._loop = asyncio.get_running_loop()
        transport.set_protocol(self)

    # -- the event loop's side ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self._failed is None and (reply := self._parse()) is not None:
                if self._outstanding <= len(self._replies):
                    raise InvalidReply  # unsolicited: it would be taken for the reply to the next command
                self._replies.append(reply)
            if len(self._buffer) > MAX_REPLY_BYTES:
                raise InvalidReply
        except InvalidReply as exc:
            self._fail(exc)
            self._transport.abort()
        self._wake()

    def eof_received(self) -> bool:
        self._fail(DialogueEnded("SMTPServerDisconnected"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(DialogueEnded("SMTPServerDisconnected"))
        if self._timer is not None:
            self._timer.cancel()

    def _parse(self) -> Reply | None:
        """The first whole reply of the buffer. Raises InvalidReply."""
        start = 0
        lines = []
        while (end := self._buffer.find(b"\n", start)) >= 0:
            line = bytes(self._buffer[start : end + 1])
            code = line[:3]
            if len(line) > MAX_LINE_BYTES or not (code.isdigit() and len(code) == 3):
                raise InvalidReply
            lines.append(line[4:].strip(b" \t\r\n"))
            start = end + 1
            if line[3:4] != b"-":
                del self._buffer[:start]
                return Reply(int(code), b"\n".join(lines).decode("utf-8", "surrogateescape"))
        return None

    def _fail(self, error: Exception) -> None:
        self._failed = self._failed or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done() and (self._replies or self._failed):
            self._waiter.set_result(None)

    # -- the sender's side ----------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether another transaction may begin: it is connected, and every command has had its reply."""
        return self._failed is None and not self._transport.is_closing() and not self._outstanding

    @property
    def outstanding(self) -> int:
        """Replies that are still to be read."""
        return self._outstanding

    def write(self, data: bytes, *, replies: int) -> None:
        """Write commands that get this many replies. Raises DialogueEnded when certainly nothing is written."""
        if self._failed is not None or self._transport.is_closing():
            raise DialogueEnded("SMTPServerDisconnected") from self._failed
        self._outstanding += replies
        self._transport.write(data)

    async def reply(self) -> Reply:
        """The next reply. Raises InvalidReply, and DialogueEnded, also when it takes longer than `timeout_s`."""
        if not self._replies and self._failed is None:
            await self._wait()
        if self._replies:
            self._outstanding -= 1
            return self._replies.popleft()
        assert self._failed is not None, "woken by a reply or a failure"
        raise self._failed

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        self._deadline = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look_at_the_clock)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if self._waiter is None or self._failed is not None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look_at_the_clock)
        else:
            self._fail(DialogueEnded("SMTPReadTimeoutError"))

    async def write_slowly(self, data: bytes) -> bool:
        """Write a long text to its end; whether the server said something before that.

        The one reply is to the text's end, written after this. Raises InvalidReply, and DialogueEnded when it did not get
        out whole, also when that takes longer than `timeout_s`.
        """
        self.write(data, replies=1)
        try:
            async with asyncio.timeout(self._timeout_s):
                while self._transport.get_write_buffer_size() and not self._replies and self._failed is None:  # noqa: ASYNC110
                    await asyncio.sleep(_DRAIN_POLL_S)
        except TimeoutError as exc:
            raise DialogueEnded("TimeoutError") from exc
        if self._failed is not None and not self._replies:
            raise self._failed
        return bool(self._replies)

    def abort(self) -> None:
        """Close without writing what still waits to be written."""
        self._transport.abort()

    def close(self) -> None:
        """Close it."""
        self._transport.close()

"""A provider that does nothing but take: `python -m bench.bare_provider --smtp-port 2525 --http-port 8025`.

SMTP with PIPELINING, FCM's messages:send and its access tokens, Twilio's Messages.json. It keeps when each recipient's messages arrived, and answers

    GET /arrivals   {"recipient": [seconds since the epoch, ...]}
    GET /count      how many messages have arrived
    DELETE /arrivals    forgets them

It costs as little as it can, for it shares the cores with what is measured.
May import the standard library. Never: a fault, a check of what comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import defaultdict
from urllib.parse import parse_qs

_END = b"\r\n.\r\n"
_OPTIONS = b"250-sink\r\n250-8BITMIME\r\n250 PIPELINING\r\n"
_REPLIES = {b"EHLO": _OPTIONS, b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_TOKEN = re.compile(rb'"token":\s*"([^"]+)"')


class Arrivals:
    """When each recipient's messages arrived."""

    def __init__(self) -> None:
        self.times: defaultdict[str, list[float]] = defaultdict(list)

    def note(self, recipient: bytes) -> None:
        self.times[recipient.decode("ascii", "replace")].append(round(time.time(), 4))


class _Peer(asyncio.Protocol):
    """What has come of one connection and is not taken yet."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport


class SmtpPeer(_Peer):
    """One SMTP connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._in_mail, self._recipient = False, b""
        self._transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        held, out = self._held + data, []
        while held:
            if self._in_mail:
                end = held.find(_END)
                if end < 0:
                    break
                held, self._in_mail = held[end + len(_END) :], False
                self._arrivals.note(self._recipient)
                out.append(b"250 ok\r\n")
                continue
            line, separator, rest = held.partition(b"\r\n")
            if not separator:
                break
            held, verb = rest, line[:4].upper()
            if verb == b"RCPT":
                self._recipient = line[line.find(b"<") + 1 : line.rfind(b">")]
            self._in_mail = verb == b"DATA"
            out.append(_REPLIES.get(verb, b"250 ok\r\n"))
        self._held = held
        if out:
            self._transport.write(b"".join(out))


class HttpPeer(_Peer):
    """One HTTP/1.1 connection, kept open."""

    def data_received(self, data: bytes) -> None:
        held, out = self._held + data, []
        while (end := held.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(held, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(held) < whole:
                break
            out.append(_response(self._answer(held[: held.find(b"\r\n")], held[end + 4 : whole])))
            held = held[whole:]
        self._held = held
        if out:
            self._transport.write(b"".join(out))

    def _answer(self, request: bytes, body: bytes) -> bytes:
        if request.startswith(b"GET /count"):
            return b"%d" % sum(map(len, self._arrivals.times.values()))
        if request.startswith(b"GET "):
            return json.dumps(self._arrivals.times).encode()
        if request.startswith(b"DELETE "):
            self._arrivals.times.clear()
            return b"{}"
        if request.startswith(b"POST /token"):
            return b'{"access_token": "bench", "expires_in": 3600, "token_type": "Bearer"}'
        if b"messages:send" in request:
            if token := _TOKEN.search(body):
                self._arrivals.note(token[1])
            return b'{"name": "projects/sink/messages/1"}'
        self._arrivals.note(parse_qs(body)[b"To"][0])
        return b'{"sid": "SM00000000000000000000000000000000", "status": "queued"}'


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def serve(smtp_port: int, http_port: int) -> None:
    """Take until the process ends."""
    arrivals, loop = Arrivals(), asyncio.get_running_loop()
    await loop.create_server(lambda: SmtpPeer(arrivals), "127.0.0.1", smtp_port)
    await loop.create_server(lambda: HttpPeer(arrivals), "127.0.0.1", http_port)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smtp-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.smtp_port, options.http_port))


if __name__ == "__main__":
    main()

"""The page where caught mail can be looked at, and the same as JSON.

`python -m local.mailbox --port N --maildir MD` reads a Maildir and never writes to it. Every mail is hostile
input: templates escape everything, HTML is shown in a frame without scripts, forms, links out or network, and a header
that cannot be decoded is shown as received.

The directory is indexed incrementally: a request costs a look at its modification time, new mail is read once (its
headers only), and nothing else is read again until a person opens it.

May import runtime (health, logs) and the simulator's reading of message ids. Never: sending, deleting,
a script on the page.
"""

from __future__ import annotations

import argparse
import asyncio
import email
import email.message
import ipaddress
import os
import re
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2  # noqa: TID251 # the page is ours; runtime/templates is for the users' templates
from aiohttp import web

from local.simulator.smtp import our_message_id
from runtime.health import add_health_routes
from runtime.logs import configure_logs, get_logger

PAGE_SIZE = 50
MAX_LIMIT = 1000
_HEAD_BYTES = 32 << 10
_MAX_SHOWN_CHARS = 500_000
_SETTLED_NS = 1_000_000_000
_NAME = re.compile(r"(\d+)\.(?:S(\d+)\.)?")
_HEADERS_SHOWN = (b"from", b"to", b"subject", b"date")

# A frame made from srcdoc inherits the page's policy, and both forbid everything but inline style and data: images.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_FRAME_HEAD = f'<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
_SECURITY_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Mail:
    """What the list shows of a mail. `id` is the unique part of its file name."""

    id: str
    seq: int | None
    sender: str
    to: str
    subject: str
    date: str
    message_id: str | None

    def as_json(self) -> dict[str, Any]:
        """The mail as the API lists it."""
        entry = asdict(self)
        entry["from"] = entry.pop("sender")
        return entry


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is neither the text nor the HTML."""

    name: str
    content_type: str
    size: int


@dataclass(slots=True)
class Content:
    """What a mail holds."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = field(default_factory=list)


# ---------------------------------------------------------------- reading mail


def _printable(text: str) -> str:
    """Text that every JSON reader and browser takes: no lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def decode_words(value: bytes) -> str:
    """A header's value with its encoded words decoded, or as it came when they are broken."""
    text = re.sub(rb"\r?\n[ \t]+", b" ", value).strip().decode("utf-8", "replace")
    if "=?" not in text:
        return text
    try:
        decoded = "".join(
            part if isinstance(part, str) else part.decode(charset or "ascii", "replace")
            for part, charset in decode_header(text)
        )
        return decoded or text
    except (HeaderParseError, LookupError, ValueError, AssertionError):
        return text


def header_values(head: bytes) -> dict[bytes, bytes]:
    """The first value of each header the list needs, still encoded."""
    values: dict[bytes, bytes] = {}
    block = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    for line in re.split(rb"\r?\n(?![ \t])", block):
        name, colon, value = line.partition(b":")
        name = name.strip().lower()
        if colon and name in _HEADERS_SHOWN:
            values.setdefault(name, value)
    return values


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read_mail(id_: str, head: bytes) -> Mail:
    """What the list shows, out of the file's name and the mail's first bytes."""
    values = header_values(head)
    name = _NAME.match(id_)
    date = _iso(datetime.fromtimestamp(int(name.group(1)) if name else 0, UTC))
    try:
        date = _iso(parsedate_to_datetime(decode_words(values.get(b"date", b""))))
    except (ValueError, TypeError, OverflowError, IndexError):
        pass  # no date or a wrong one: the time of its acceptance says enough
    return Mail(
        id=id_,
        seq=int(name.group(2)) if name and name.group(2) else None,
        sender=decode_words(values.get(b"from", b"")),
        to=decode_words(values.get(b"to", b"")),
        subject=decode_words(values.get(b"subject", b"")),
        date=date,
        message_id=our_message_id(head),
    )


def _part_text(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    try:
        return data.decode(part.get_content_charset() or "utf-8", "replace")
    except (LookupError, ValueError):
        return data.decode("utf-8", "replace")


def read_content(raw: bytes) -> Content:
    """Headers, first text, first HTML and the attachments of a mail; whatever cannot be parsed is left out."""
    content = Content()
    try:
        mail = email.message_from_bytes(raw)
        for name, value in mail.raw_items():
            content.headers.append((_printable(name), decode_words(str(value).encode("utf-8", "surrogateescape"))))
        for part in mail.walk():
            if part.is_multipart():
                continue
            content_type = part.get_content_type()
            is_file = part.get_content_disposition() == "attachment" or part.get_filename() is not None
            if content_type == "text/plain" and not is_file and content.text is None:
                content.text = _printable(_part_text(part))
            elif content_type == "text/html" and not is_file and content.html is None:
                content.html = _printable(_part_text(part))
            else:
                payload = part.get_payload(decode=True)
                size = len(payload) if isinstance(payload, bytes) else 0
                content.attachments.append(Attachment(_printable(part.get_filename() or ""), content_type, size))
    except (
        RecursionError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        HeaderParseError,
    ) as error:
        # a mail made to break the parser: its source can still be looked at
        content.attachments.append(
            Attachment(f"the rest cannot be parsed ({type(error).__name__})", "broken", len(raw))
        )
    return content


# ---------------------------------------------------------------- index


class MailIndex:
    """The mails of a Maildir, oldest first. `refresh` may run in any thread, one at a time."""

    def __init__(self, maildir: Path) -> None:
        self._maildir = maildir
        self._lock = threading.Lock()
        self._names: dict[str, set[str]] = {"new": set(), "cur": set()}
        self._scanned: dict[str, tuple[int, int]] = {}  # folder → its mtime, and when it was scanned
        self._files: dict[str, str] = {}  # id → path in the Maildir
        self._mails: dict[str, Mail] = {}
        self.newest_last: list[Mail] = []
        self.ready = False
        for folder in ("tmp", "new", "cur"):
            (maildir / folder).mkdir(parents=True, exist_ok=True)

    def refresh(self) -> None:
        """Take in what has changed since the last look. Raises OSError when the Maildir is gone."""
        with self._lock:
            changed = False
            for folder, known in self._names.items():
                path = self._maildir / folder
                scanned_ns = time.time_ns()
                mtime_ns = path.stat().st_mtime_ns
                last = self._scanned.get(folder)
                # a scan within the clock's tick of a change may have missed a later change of that tick
                if last is not None and last[0] == mtime_ns and last[1] - mtime_ns > _SETTLED_NS:
                    continue
                names = {name for name in os.listdir(path) if not name.startswith(".")}  # noqa: PTH208 # names only
                gone = known - names
                come = names - known
                self._names[folder] = names
                self._scanned[folder] = (mtime_ns, scanned_ns)
                changed = changed or bool(gone or come)
                for name in gone:
                    if self._files.get(_id(name)) == f"{folder}/{name}":
                        del self._files[_id(name)]
                for name in come:
                    self._files[_id(name)] = f"{folder}/{name}"
            if changed:
                self._read_new()
            self.ready = True

    def _read_new(self) -> None:
        for id_ in self._mails.keys() - self._files.keys():
            del self._mails[id_]
        for id_ in self._files.keys() - self._mails.keys():
            try:
                with (self._maildir / self._files[id_]).open("rb") as file:
                    self._mails[id_] = read_mail(id_, file.read(_HEAD_BYTES))
            except FileNotFoundError:
                # moved between the look at new/ and at cur/: the next look finds it
                self._scanned.clear()
        self.newest_last = sorted(self._mails.values(), key=lambda mail: (mail.seq or 0, mail.id))

    def get(self, id_: str) -> Mail | None:
        """One mail."""
        return self._mails.get(id_)

    def raw(self, id_: str) -> bytes | None:
        """A mail's source; only files the index knows are ever opened."""
        path = self._files.get(id_)
        try:
            return None if path is None else (self._maildir / path).read_bytes()
        except FileNotFoundError:
            return None

    def search(self, to: str, subject: str) -> list[Mail]:
        """Mails whose recipient and subject contain these, oldest first."""
        if not to and not subject:
            return self.newest_last
        to = to.lower()
        subject = subject.lower()
        return [
            mail
            for mail in self.newest_last
            if to in mail.to.lower() and (not subject or subject in mail.subject.lower())
        ]


def _id(file_name: str) -> str:
    """The part of a Maildir name that stays when a mail program sets flags."""
    return file_name.partition(":")[0]


def page_of(mails: list[Mail], offset: int, limit: int) -> list[Mail]:
    """A page, newest first, of mails that are oldest first."""
    end = len(mails) - offset
    return mails[max(0, end - limit) : max(0, end)][::-1]


# ---------------------------------------------------------------- pages


class Mailbox:
    """The pages and the API over an index."""

    def __init__(self, index: MailIndex) -> None:
        self._index = index
        self._refreshing = asyncio.Lock()
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        self._template = environment.get_template("mailbox.html")

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(middlewares=[_secure])
        add_health_routes(app, lambda: None if self._index.ready else "the Maildir is being indexed")
        app.router.add_get("/", self._list)
        app.router.add_get("/messages/{id}", self._message)
        app.router.add_get("/messages/{id}/raw", self._raw_page)
        app.router.add_get("/api/count", self._api_count)
        app.router.add_get("/api/messages", self._api_list)
        app.router.add_get("/api/messages/{id}", self._api_message)
        app.router.add_get("/api/messages/{id}/raw", self._api_raw)
        return app

    async def refresh(self) -> None:
        """Bring the index up to date."""
        async with self._refreshing:
            await asyncio.to_thread(self._index.refresh)

    async def _search(self, request: web.Request) -> tuple[list[Mail], int, int]:
        limit = _number(request, "limit", PAGE_SIZE)
        offset = _number(request, "offset", 0)
        await self.refresh()
        mails = self._index.search(request.query.get("to", "").strip(), request.query.get("subject", "").strip())
        return mails, min(limit, MAX_LIMIT), offset

    async def _find(self, request: web.Request) -> tuple[Mail, bytes] | None:
        await self.refresh()
        mail = self._index.get(request.match_info["id"])
        raw = None if mail is None else await asyncio.to_thread(self._index.raw, mail.id)
        return None if mail is None or raw is None else (mail, raw)

    def _page(self, request: web.Request, status: int = 200, **values: object) -> web.Response:
        search = {"to": request.query.get("to", ""), "subject": request.query.get("subject", "")}
        text = self._template.render(count=len(self._index.newest_last), search=search, **values)
        return web.Response(status=status, text=text, content_type="text/html")

    async def _list(self, request: web.Request) -> web.Response:
        mails, limit, offset = await self._search(request)
        entries = page_of(mails, offset, limit)

        def link(to: int) -> str:
            return "/?" + urlencode({**request.query, "offset": str(to)})

        return self._page(
            request,
            page="list",
            entries=entries,
            total=len(mails),
            first=offset + 1 if entries else 0,
            last=offset + len(entries),
            newer=link(max(0, offset - limit)) if offset else None,
            older=link(offset + limit) if offset + len(entries) < len(mails) else None,
        )

    async def _message(self, request: web.Request) -> web.Response:
        found = await self._find(request)
        if found is None:
            return self._page(request, 404, page="problem", problem="There is no such mail.")
        mail, raw = found
        content = await asyncio.to_thread(read_content, raw)
        frame = _FRAME_HEAD + content.html if content.html is not None else ""
        source = raw.decode("utf-8", "replace")
        if len(source) > _MAX_SHOWN_CHARS:
            source = source[:_MAX_SHOWN_CHARS] + "\n[the rest is in the raw source]"
        return self._page(request, page="message", mail=mail, content=content, frame=frame, source=source)

    async def _raw_page(self, request: web.Request) -> web.Response:
        found = await self._find(request)
        if found is None:
            return self._page(request, 404, page="problem", problem="There is no such mail.")
        return web.Response(body=found[1], content_type="text/plain", charset="utf-8")

    async def _api_count(self, request: web.Request) -> web.Response:
        mails, _, _ = await self._search(request)
        return web.json_response({"count": len(mails)})

    async def _api_list(self, request: web.Request) -> web.Response:
        mails, limit, offset = await self._search(request)
        entries = [mail.as_json() for mail in page_of(mails, offset, limit)]
        return web.json_response({"total": len(mails), "entries": entries})

    async def _api_message(self, request: web.Request) -> web.Response:
        found = await self._find(request)
        if found is None:
            return web.json_response({"error": "there is no such mail"}, status=404)
        mail, raw = found
        content = await asyncio.to_thread(read_content, raw)
        return web.json_response(
            mail.as_json()
            | {
                "text": content.text,
                "html": content.html,
                "headers": content.headers,
                "attachments": [asdict(attachment) for attachment in content.attachments],
            }
        )

    async def _api_raw(self, request: web.Request) -> web.Response:
        found = await self._find(request)
        if found is None:
            return web.json_response({"error": "there is no such mail"}, status=404)
        return web.Response(body=found[1], content_type="message/rfc822")


@web.middleware
async def _secure(request: web.Request, handler: Any) -> web.StreamResponse:
    response: web.StreamResponse = await handler(request)
    response.headers.update(_SECURITY_HEADERS)
    return response


def _number(request: web.Request, name: str, default: int) -> int:
    value = request.query.get(name, "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise web.HTTPBadRequest(text=f"{name} must be a whole number\n")
    return int(value)


async def serve(host: str, port: int, maildir: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port or the Maildir cannot be used."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    mailbox = Mailbox(MailIndex(maildir))
    runner = web.AppRunner(mailbox.app(), access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        await mailbox.refresh()
        get_logger(__name__).info("mailbox ready", port=port)
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A page to look at the mail of a Maildir.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--maildir", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    args = parser.parse_args()
    if not ipaddress.ip_address(args.host).is_loopback:
        parser.error("every mail is shown to every client: --host must be a loopback address")
    configure_logs("mailbox")
    try:
        asyncio.run(serve(args.host, args.port, args.maildir))
    except OSError as error:
        get_logger(__name__).error("the mailbox cannot run", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()

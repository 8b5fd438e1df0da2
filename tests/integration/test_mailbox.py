"""The mailbox: reading hostile mail, following a Maildir, the pages and the API."""

from __future__ import annotations

import email.message
import re
import time
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from local.mailbox.__main__ import Mailbox, MailIndex, decode_words, page_of, read_content, read_mail

Client = TestClient[web.Request, web.Application]


def mail(to: str = "u@x.test", subject: str = "hello", html: str | None = None, message_id: str = "m1") -> bytes:
    made = email.message.EmailMessage()
    made["From"], made["To"], made["Subject"] = "Shop <shop@x.test>", to, subject
    made["Message-ID"], made["Date"] = f"<{message_id}@heliograph>", "Fri, 02 Jan 2026 03:04:05 +0100"
    made.set_content("the text\n")
    if html is not None:
        made.add_alternative(html, subtype="html")
    return bytes(made)


def deliver(maildir: Path, seq: int, raw: bytes, folder: str = "new") -> str:
    name = f"1767319445.S{seq}.simulator"
    (maildir / folder / name).write_bytes(raw)
    return name


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    MailIndex(tmp_path / "mail")
    return tmp_path / "mail"


@pytest.fixture
async def client(maildir: Path) -> AsyncIterator[Client]:
    async with TestClient(TestServer(Mailbox(MailIndex(maildir)).app())) as started:
        yield started


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b" plain", "plain"),
        (b" =?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b" =?utf-8?b?R3LDvMOf?=\r\n =?utf-8?b?ZQ==?=", "Grüße"),
        (b" folded\r\n\tline", "folded line"),
        ("Grüße".encode(), "Grüße"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"=?nonsense?q?x?=", "=?nonsense?q?x?="),
        (b"=?utf-8?b?!?=", "=?utf-8?b?!?="),
    ],
)
def test_header_is_decoded_or_shown_as_it_came(value: bytes, expected: str) -> None:
    assert decode_words(value) == expected


def test_list_entry_has_seq_ids_and_dates() -> None:
    entry = read_mail("1767319445.S7.simulator", mail(message_id="abc"))
    assert (entry.seq, entry.message_id, entry.date) == (7, "abc", "2026-01-02T02:04:05Z")
    assert (entry.sender, entry.to, entry.subject) == ("Shop <shop@x.test>", "u@x.test", "hello")


def test_mail_without_headers_is_dated_by_its_file() -> None:
    entry = read_mail("1767319445.S7.simulator", b"\r\n\r\n")
    assert (entry.date, entry.to, entry.message_id) == ("2026-01-02T02:04:05Z", "", None)


def test_content_has_text_html_and_attachments() -> None:
    made = email.message.EmailMessage()
    made.set_content("text")
    made.add_alternative("<p>html</p>", subtype="html")
    made.add_attachment(b"12345", maintype="application", subtype="pdf", filename="a.pdf")
    content = read_content(bytes(made))
    assert (content.text, content.html) == ("text\n", "<p>html</p>\n")
    assert [(one.name, one.size) for one in content.attachments] == [("a.pdf", 5)]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff" * 100,
        b"Content-Type: text/plain; charset=no-such\r\n\r\nx",
        b"Content-Type: text/html; charset=\xff\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!",
        b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n" * 2000,
        b"Content-Disposition: attachment; filename*=bad'x'%FF\r\n\r\nx",
        b"Subject: " + b"=?" * 5000 + b"\r\n\r\n",
    ],
)
def test_mail_made_to_break_a_parser_is_still_shown(raw: bytes) -> None:
    read_mail("1.S1.simulator", raw)
    read_content(raw)


# ---------------------------------------------------------------- index


def test_index_follows_new_moved_and_removed_mail(maildir: Path) -> None:
    index = MailIndex(maildir)
    index.refresh()
    assert (index.ready, index.newest_last) == (True, [])
    name = deliver(maildir, 1, mail())
    deliver(maildir, 2, mail())
    index.refresh()
    assert [one.seq for one in index.newest_last] == [1, 2]
    (maildir / "new" / name).rename(maildir / "cur" / f"{name}:2,S")
    index.refresh()
    assert [one.seq for one in index.newest_last] == [1, 2]
    assert index.raw(name) == mail()
    (maildir / "cur" / f"{name}:2,S").unlink()
    index.refresh()
    assert [one.seq for one in index.newest_last] == [2]
    assert index.raw(name) is None


def test_mail_that_comes_within_the_clock_tick_of_a_look_is_seen(maildir: Path) -> None:
    index = MailIndex(maildir)
    for seq in range(1, 51):
        deliver(maildir, seq, mail())
        index.refresh()
        assert len(index.newest_last) == seq


def test_unchanged_directory_is_not_listed_again(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(maildir, 1, mail())
    index = MailIndex(maildir)
    index.refresh()
    time.sleep(1.1)
    index.refresh()
    monkeypatch.setattr("os.listdir", lambda _: pytest.fail("the directory was listed"))
    index.refresh()
    assert len(index.newest_last) == 1


def test_pages_run_from_the_newest_to_the_oldest() -> None:
    mails = [read_mail(f"1.S{seq}.x", b"") for seq in range(1, 8)]
    pages = [[one.seq for one in page_of(mails, offset, 3)] for offset in (0, 3, 6, 9)]
    assert pages == [[7, 6, 5], [4, 3, 2], [1], []]


@pytest.mark.slow
def test_index_of_100k_mails_stays_fast(maildir: Path) -> None:
    for seq in range(1, 100_001):
        deliver(maildir, seq, mail(to=f"u{seq}@x.test") if seq == 77 else b"To: a@b.test\r\n\r\n")
    index = MailIndex(maildir)
    index.refresh()
    started = time.monotonic()
    deliver(maildir, 100_001, mail())
    index.refresh()
    assert len(index.newest_last) == 100_001
    assert [one.seq for one in index.search("U77@", "")] == [77]
    assert time.monotonic() - started < 2


# ---------------------------------------------------------------- API and pages


async def test_api_lists_searches_and_pages(client: Client, maildir: Path) -> None:
    for seq in range(1, 4):
        deliver(maildir, seq, mail(to=f"u{seq}@x.test", subject=f"number {seq}", message_id=f"m{seq}"))
    listed = await (await client.get("/api/messages")).json()
    assert listed["total"] == 3
    assert listed["entries"][0] == {
        "id": "1767319445.S3.simulator",
        "seq": 3,
        "from": "Shop <shop@x.test>",
        "to": "u3@x.test",
        "subject": "number 3",
        "date": "2026-01-02T02:04:05Z",
        "message_id": "m3",
    }
    searched = await (await client.get("/api/messages", params={"to": "U2@", "subject": "NUMBER"})).json()
    assert [entry["seq"] for entry in searched["entries"]] == [2]
    paged = await (await client.get("/api/messages?limit=1&offset=1")).json()
    assert (paged["total"], [entry["seq"] for entry in paged["entries"]]) == (3, [2])
    assert await (await client.get("/api/count")).json() == {"count": 3}
    assert (await client.get("/api/messages?limit=x")).status == 400


async def test_api_shows_one_mail_and_its_source(client: Client, maildir: Path) -> None:
    raw = mail(html="<b>x</b>")
    name = deliver(maildir, 1, raw)
    shown = await (await client.get(f"/api/messages/{name}")).json()
    assert (shown["text"], shown["html"]) == ("the text\n", "<b>x</b>\n")
    assert ["Subject", "hello"] in shown["headers"]
    source = await client.get(f"/api/messages/{name}/raw")
    assert (source.content_type, await source.read()) == ("message/rfc822", raw)


@pytest.mark.parametrize("path", ["/api/messages/%s", "/api/messages/%s/raw", "/messages/%s", "/messages/%s/raw"])
@pytest.mark.parametrize("id_", ["nothing", "..%2F..%2Fetc%2Fpasswd", "..%00", "new%2F1767319445.S1.simulator"])
async def test_only_mail_of_the_index_can_be_opened(client: Client, maildir: Path, path: str, id_: str) -> None:
    deliver(maildir, 1, mail())
    assert (await client.get(path % id_)).status == 404


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


async def test_hostile_mail_is_escaped_wherever_it_is_shown(client: Client, maildir: Path) -> None:
    raw = b"To: %b\r\nSubject: %b\r\nX-%b: %b\r\nContent-Type: text/html\r\n\r\n%b" % ((HOSTILE.encode(),) * 5)
    name = deliver(maildir, 1, raw)
    for path in (
        "/",
        f"/messages/{name}",
        "/?to=" + HOSTILE.replace(" ", "+"),
        "/messages/" + HOSTILE.replace("/", ""),
    ):
        page = await (await client.get(path)).text()
        assert "<script" not in page
        assert "<img" not in page


async def test_html_is_framed_without_scripts_and_network(client: Client, maildir: Path) -> None:
    name = deliver(maildir, 1, mail(html="<p title='\"'>hi</p><script>alert(1)</script>"))
    response = await client.get(f"/messages/{name}")
    frame = re.search(r'<iframe sandbox="" [^>]*srcdoc="([^"]*)"', await response.text())
    assert frame is not None
    document = unescape(frame.group(1))
    assert "default-src 'none'" in document.partition("<p")[0]
    assert "<p title='\"'>hi</p>" in document
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_list_page_pages_and_keeps_the_search(client: Client, maildir: Path) -> None:
    for seq in range(1, 56):
        deliver(maildir, seq, mail(to=f"u{seq}@x.test"))
    first = await (await client.get("/?to=x.test")).text()
    assert "1–50 of 55" in first
    assert "/?to=x.test&amp;offset=50" in first
    second = await (await client.get("/?to=x.test&offset=50")).text()
    assert "51–55 of 55" in second
    assert "No mail matches" in await (await client.get("/?to=nobody")).text()


async def test_health_is_served(client: Client) -> None:
    assert (await client.get("/readyz")).status == 503
    await client.get("/")
    assert [(await client.get(path)).status for path in ("/livez", "/readyz", "/health", "/metrics")] == [200] * 4

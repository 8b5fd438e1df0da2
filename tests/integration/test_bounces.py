"""Mails that came back, in a real IMAP server and on a real broker: each is told and moved, none is lost, and forged ones say nothing."""

from __future__ import annotations

import imaplib
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from local.ports import PortBook
from runtime import ids
from runtime.references import reference_record
from schemas.codec import codec
from schemas.topics import RECEIPTS
from tests.integration.conftest import until
from tests.integration.pipeline import World, world
from tests.support.bounces import (
    ADDRESS,
    bounces_account,
    complaint,
    dsn,
    exim,
    failed,
    mail_of,
    qmail,
    ref_of,
    returned,
    vacation,
    verp,
    word_of,
)

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.kafka

FORGED = 1_000
"""pymap takes minutes for ten times as many: tests/unit/test_bounces.py has those."""
USER, PASSWORD, DONE = "bounces", "pw", "Heliograph"


class Imap:
    """A running pymap, and what a person would see of its mailbox."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextmanager
    def client(self) -> Iterator[imaplib.IMAP4]:
        client = imaplib.IMAP4("127.0.0.1", self.port, timeout=30)
        client.login(USER, PASSWORD)
        try:
            yield client
        finally:
            client.logout()

    def put(self, mails: list[bytes]) -> None:
        with self.client() as client:
            for mail in mails:
                assert client.append("INBOX", None, None, mail)[0] == "OK"

    def found(self, folder: str, criterion: str = "ALL") -> list[bytes]:
        """The Message-IDs of a folder's mails."""
        with self.client() as client:
            if client.select(f'"{folder}"', readonly=True)[0] != "OK":
                return []
            numbers = client.search(None, criterion)[1][0].split()
            found = []
            for number in numbers:
                answer: Any = client.fetch(number.decode(), "(BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])")
                found.append(bytes(answer[1][0][1]).strip())
            return found

    def count(self, folder: str, criterion: str = "ALL") -> int:
        with self.client() as client:
            if client.select(f'"{folder}"', readonly=True)[0] != "OK":
                return 0
            return len(client.search(None, criterion)[1][0].split())


@pytest.fixture
def imap(tmp_path: Path) -> Iterator[Imap]:
    book = PortBook()
    port = book.reserve("imap")
    command = [str(Path(sys.executable).parent / "pymap"), "--host", "127.0.0.1", "--port", str(port), "--no-tls"]
    with (tmp_path / "pymap.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "dict", "--demo-user", USER, "--demo-password", PASSWORD], stdout=log, stderr=log
        )
    running = Imap(port)

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "pymap.log").read_text()
        try:
            with running.client():
                return True
        except (OSError, imaplib.IMAP4.error):
            return False

    try:
        until(answers, what="pymap answers")
        yield running
    finally:
        server.terminate()
        server.wait(10)
        book.close()


@contextmanager
def bouncing(world: World, imap: Imap) -> Iterator[None]:
    """Roles that start meanwhile have an account whose bounces are in that mailbox."""
    with world.accounts([bounces_account(imap.port)]):
        yield


def sent_mails(world: World, count: int) -> list[Any]:
    """Mails that went out: what their sender wrote about them is there."""
    now, mails = int(time.time() * 1000), []
    for n in range(count):
        nid = ids.notification_id(now, "t", f"{uuid.uuid4()}")
        mails.append(mail_of(f"u{n}-{uuid.uuid4().hex[:8]}@example.org", notification_id=nid, user_id=None))
    world.publish(
        [
            reference_record(mail, "mail", mail["message_id"], ids.recipient(None, "email", mail["address"]), now)
            for mail in mails
        ]
    )
    return mails


def bounce_of(mail: Any, n: int) -> tuple[bytes, str | None]:
    """One of several kinds of mail about it, and the state that it comes to; None for none."""
    to = verp(word_of(mail["message_id"]))
    match n % 8:
        case 0:
            return dsn(to, failed("5.1.1", "550 5.1.1 unknown", mail["address"]), number=n), "bounced"
        case 1:
            return dsn(to, failed("5.2.2", "552 5.2.2 full", mail["address"]), number=n), "bounced"
        case 2:
            return exim(mail, to, None), "bounced"
        case 3:
            return qmail(mail, to), "bounced"
        case 4:
            return dsn(
                ADDRESS, failed("4.4.7", None, mail["address"]), back=returned(mail, ref_of(mail)), number=n
            ), "undelivered"
        case 5:
            return dsn(to, failed("4.4.1", "timed out", mail["address"], "delayed"), number=n), None
        case 6:
            return complaint(mail, ref_of(mail)), "complained"
        case _:
            return vacation(to), None


def test_every_kind_of_bounce_is_told_and_moved_and_what_is_not_ours_stays(world: World, imap: Imap) -> None:
    mails = sent_mails(world, 16)
    told = [bounce_of(mail, n) for n, mail in enumerate(mails)]
    others = [
        dsn(verp(word_of(mails[0]["message_id"], "another secret of twenty")), failed("5.1.1", "550 5.1.1 x")),
        dsn(ADDRESS, failed("5.1.1", "550 5.1.1 x")),
        b"Subject: hello\r\nTo: bounces@shop.example\r\n\r\nIs anybody there?\r\n",
        b"\xff\xfe no mail at all",
    ]
    imap.put([raw for raw, _ in told] + others)
    with bouncing(world, imap):
        world.run("bounces")
        until(lambda: imap.count(DONE, "SEEN") == len(told), what="all of ours are moved")
        until(lambda: imap.count("INBOX", "UNSEEN UNDELETED") == len(others), what="the others stay unseen")
    statuses = world.statuses({mail["notification_id"] for mail in mails})
    for mail, (_, state) in zip(mails, told, strict=True):
        assert [s["state"] for s in statuses.get(mail["notification_id"], [])] == ([] if state is None else [state])
    hard = statuses[mails[0]["notification_id"]][0]
    assert (hard["reason"], hard["recipient"]) == ("hard_bounce", ids.recipient(None, "email", mails[0]["address"]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_each_mail_is_told_under_one_id_and_none_is_lost(world: World, imap: Imap) -> None:
    rng = random.Random(16)
    mails = sent_mails(world, 400)
    told = [bounce_of(mail, n) for n, mail in enumerate(mails)]
    forged = [
        dsn(
            verp("".join(rng.choices("abcdefghijklmnopqrstuvwxyz234567", k=42))),
            failed("5.1.1", "550 5.1.1 x"),
            number=-n,
        )
        for n in range(100)
    ]
    everything = [raw for raw, _ in told] + forged
    rng.shuffle(everything)
    points = ("after_receipt", "before_mails_are_moved", "after_mails_are_moved")
    with bouncing(world, imap):
        fed, step = 0, len(everything) // 20
        for kill in range(20):
            imap.put(everything[fed : fed + step])
            fed += step
            role = world.run("bounces", **({"HELIOGRAPH_CRASH_AT": points[kill % 3]} if kill % 4 else {}))
            if kill % 4:
                role.wait(60)
            else:
                time.sleep(rng.uniform(1.5, 3.0))
                role.kill()
                role.wait()
        imap.put(everything[fed:])
        world.run("bounces")
        until(
            lambda: imap.count("INBOX", "UNSEEN UNDELETED") == len(forged), timeout_s=120, what="only forged ones stay"
        )
    ours, kept = imap.found(DONE), imap.found("INBOX", "UNDELETED")
    assert {raw for raw in ours + kept if raw} >= {_id(raw) for raw in everything if _id(raw)}, "no mail is lost"
    assert len(kept) == len(forged)
    assert len(ours) >= len(told), "a copy may be there twice"
    statuses = world.statuses({mail["notification_id"] for mail in mails})
    for mail, (_, state) in zip(mails, told, strict=True):
        found = statuses.get(mail["notification_id"], [])
        assert {s["state"] for s in found} == (set() if state is None else {state})
        assert len({s["event_id"] for s in found}) == (state is not None)
    receipts = [codec("ProviderReceipt").decode(record.value) for record in world.read_all(RECEIPTS)]
    mine = {mail["message_id"] for mail in mails}
    assert {r["message_id"] for r in receipts if r["provider"] == "mail"} >= mine
    assert len({r["event_id"] for r in receipts if r["message_id"] in mine}) == len(mails)


def _id(raw: bytes) -> bytes:
    lines = [line for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n") if line.lower().startswith(b"message-id:")]
    return lines[0].strip() if lines else b""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousand_forged_reports_say_nothing_and_the_true_one_behind_them_is_told(world: World, imap: Imap) -> None:
    rng = random.Random(17)
    (mail,) = sent_mails(world, 1)
    word = word_of(mail["message_id"])
    forged = []
    for n in range(FORGED):
        at = rng.randrange(26, 42)
        bad = word[:at] + rng.choice([c for c in "abcdefghijklmnopqrstuvwxyz234567" if c != word[at]]) + word[at + 1 :]
        forged.append(dsn(verp(bad), failed("5.1.1", "550 5.1.1 x", mail["address"]), number=n))
    imap.put(forged)
    imap.put([dsn(verp(word), failed("5.1.1", "550 5.1.1 x", mail["address"]), number=FORGED)])
    with bouncing(world, imap):
        world.run("bounces")
        until(lambda: imap.count(DONE) == 1, timeout_s=600, what="the true one is moved")
    found = world.statuses({mail["notification_id"]})[mail["notification_id"]]
    assert [s["state"] for s in found] == ["bounced"]
    assert imap.count("INBOX", "UNSEEN UNDELETED") == FORGED
    receipts = [codec("ProviderReceipt").decode(record.value) for record in world.read_all(RECEIPTS)]
    assert len([r for r in receipts if r["message_id"] == mail["message_id"]]) == 1

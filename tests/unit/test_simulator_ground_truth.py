"""The log of accepts and the Maildir that follows it: files only, no socket."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from local.simulator.ground_truth import Accept, GroundTruth, GroundTruthError, presentable
from local.simulator.maildir import MaildirDelivery, delivered_seqs


def accept(to: str = "a@b.c", kind: str = "smtp", body: str = "Subject: x\r\n\r\nü\r\n") -> Accept:
    return Accept(kind, to, "m1", body)


async def log(path: Path, *accepts: Accept) -> list[int]:
    truth = GroundTruth(path)
    appended = [truth.append(one) for one in accepts]
    seqs = [await seq for seq in appended]
    truth.close()
    return seqs


async def test_accepts_are_numbered_and_on_disk_when_told(tmp_path: Path) -> None:
    path = tmp_path / "accepted.jsonl"
    truth = GroundTruth(path)
    together = [truth.append(accept("x")), truth.append(accept("y"))]
    assert [await seq for seq in together] == [1, 2]
    assert [json.loads(line)["to"] for line in path.read_bytes().splitlines()] == ["x", "y"]
    assert await truth.append(accept("z")) == 3
    truth.close()


async def test_seq_continues_after_a_restart(tmp_path: Path) -> None:
    await log(tmp_path / "l", accept(), accept())
    assert await log(tmp_path / "l", accept()) == [3]


@pytest.mark.parametrize(
    "torn", [b'{"seq": 3, "at": "20', b"\x00\x00\x00", b'{"seq": 3, "at": "x", "kind": "smtp", "to\n']
)
async def test_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "l"
    await log(path, accept(), accept())
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    truth = GroundTruth(path)
    assert (truth.last_seq, truth.count("smtp"), path.read_bytes()) == (2, 2, whole)
    assert await truth.append(accept("next")) == 3
    assert json.loads(truth.read(3))["to"] == "next"
    truth.close()


async def test_damaged_middle_is_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / "l"
    await log(path, accept(), accept(), accept())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(GroundTruthError, match="line 2"):
        GroundTruth(path)


async def test_second_owner_is_refused(tmp_path: Path) -> None:
    truth = GroundTruth(tmp_path / "l")
    with pytest.raises(GroundTruthError, match="in use"):
        GroundTruth(tmp_path / "l")
    truth.close()


async def test_lines_are_chosen_by_kind_and_place(tmp_path: Path) -> None:
    path = tmp_path / "l"
    await log(path, accept("1"), accept("2", "fcm"), accept("3"), accept("4"))
    truth = GroundTruth(path)

    def to(**choice: object) -> str:
        return "".join(json.loads(line)["to"] for line in truth.lines(**choice))  # type: ignore[arg-type]

    assert to() == "1234"
    assert to(kind="smtp") == "134"
    assert to(kind="smtp", since_seq=1) == "34"
    assert to(kind="smtp", limit=2) == "13"
    assert to(kind="smtp", limit=0) == ""
    assert to(kind="apns") == ""
    assert to(since_seq=9) == ""
    assert to(until_seq=2) == "12"
    assert [truth.count(), truth.count("fcm"), truth.count("apns")] == [4, 1, 0]
    truth.close()


async def test_bytes_that_are_no_utf8_are_kept_and_shown_as_strict_json(tmp_path: Path) -> None:
    body = b"Subject: \xff \xf0\x9f\x98\x80\r\n"
    await log(tmp_path / "l", accept(body=body.decode("utf-8", "surrogateescape")))
    truth = GroundTruth(tmp_path / "l")
    line = truth.read(1)
    assert json.loads(line)["body"].encode("utf-8", "surrogateescape") == body
    assert json.loads(presentable(line))["body"] == body.decode("utf-8", "replace")
    truth.close()


async def test_full_disk_stops_every_accept(tmp_path: Path) -> None:
    truth = GroundTruth(Path("/dev/full"))
    with pytest.raises(GroundTruthError, match="cannot be written"):
        await truth.append(accept())
    with pytest.raises(GroundTruthError):
        await truth.append(accept())
    assert truth.broken
    truth.close()


# ---------------------------------------------------------------- Maildir


async def test_maildir_holds_the_exact_bytes_of_every_mail(tmp_path: Path) -> None:
    body = b"Subject: \xff\r\n\r\n.x\r\n"
    truth = GroundTruth(tmp_path / "l")
    delivery = MaildirDelivery(tmp_path / "m", truth)
    delivery.start()
    await truth.append(accept(body=body.decode("utf-8", "surrogateescape")))
    await truth.append(accept(kind="fcm"))
    delivery.close()
    truth.close()
    assert [file.read_bytes() for file in (tmp_path / "m" / "new").iterdir()] == [body]


async def test_delivery_follows_the_log_while_running(tmp_path: Path) -> None:
    truth = GroundTruth(tmp_path / "l")
    delivery = MaildirDelivery(tmp_path / "m", truth)
    delivery.start()
    await truth.append(accept())
    deadline = time.monotonic() + 10
    while delivered_seqs(tmp_path / "m") != {1}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    delivery.close()
    truth.close()


async def test_restart_completes_what_is_missing_and_doubles_nothing(tmp_path: Path) -> None:
    maildir = tmp_path / "m"
    for folder in ("tmp", "new", "cur"):
        (maildir / folder).mkdir(parents=True)
    await log(tmp_path / "l", accept("1"), accept("2", "fcm"), accept("3"), accept("4"))
    truth = GroundTruth(tmp_path / "l")
    first = MaildirDelivery(maildir, truth)
    first.start()
    first.close()
    truth.close()
    names = sorted(file.name for file in (maildir / "new").iterdir())
    assert delivered_seqs(maildir) == {1, 3, 4}
    (maildir / "new" / names[0]).rename(maildir / "cur" / f"{names[0]}:2,S")  # read by a mail program
    (maildir / "new" / names[1]).unlink()  # the crash came before its delivery
    (maildir / "tmp" / names[1]).write_bytes(b"half")
    truth = GroundTruth(tmp_path / "l")
    second = MaildirDelivery(maildir, truth)
    second.start()
    second.close()
    truth.close()
    assert delivered_seqs(maildir) == {1, 3, 4}
    assert sorted(file.name for file in (maildir / "new").iterdir()) == names[1:]
    assert list((maildir / "tmp").iterdir()) == []

"""Accepted mail in a Maildir, for people and mail programs to look at.

A mail's file name is a function of its line in the log, so delivery after a crash completes what is missing and
doubles nothing. Delivery follows the log in a thread of its own: looking at mail must not slow down accepting it.

May import ground_truth. Never: a mail that is not in the log.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from datetime import datetime
from pathlib import Path

from local.simulator.ground_truth import GroundTruth

log = logging.getLogger(__name__)

_GATHER_S = 0.05  # waking up for each mail would cost more than its delivery
_SEQ = re.compile(r"\d+\.S(\d+)\.")


def file_name(seq: int, at: str) -> str:
    """The Maildir name of one accept."""
    return f"{int(datetime.fromisoformat(at).timestamp())}.S{seq}.simulator"


def delivered_seqs(maildir: Path) -> set[int]:
    """The accepts that are in the Maildir, read or unread."""
    return {
        int(found.group(1))
        for folder in ("new", "cur")
        for entry in os.scandir(maildir / folder)
        if (found := _SEQ.match(entry.name)) is not None
    }


class MaildirDelivery:
    """Keeps a Maildir complete with the log's mails."""

    def __init__(self, maildir: Path, truth: GroundTruth, kind: str = "smtp") -> None:
        self._maildir = maildir
        self._truth = truth
        self._kind = kind
        self._wake = threading.Event()
        self._stop = False
        self._done_seq = 0
        self._failed: str | None = None
        self._thread = threading.Thread(target=self._run, name="maildir", daemon=True)
        for folder in ("tmp", "new", "cur"):
            (maildir / folder).mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Complete what an earlier run left, then follow the log."""
        present = delivered_seqs(self._maildir)
        for leftover in (self._maildir / "tmp").iterdir():
            leftover.unlink(missing_ok=True)
        until = self._truth.last_seq
        missing = [seq for seq in self._truth.seqs(self._kind) if seq not in present]
        for seq in missing:
            self._deliver(self._truth.read(seq))
        if missing:
            log.info("delivered %d mails that an earlier run had accepted only", len(missing))
        self._done_seq = until
        self._truth.on_commit(self._wake.set)
        self._thread.start()

    def problem(self) -> str | None:
        """Why mail is not delivered any more, None while all is well."""
        return self._failed

    def close(self) -> None:
        """Deliver what is in the log, then stop."""
        self._stop = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._wake.wait()
                if not self._stop:
                    time.sleep(_GATHER_S)
                self._wake.clear()
                stopping = self._stop
                until = self._truth.last_seq
                for line in self._truth.lines(self._kind, self._done_seq, until_seq=until):
                    self._deliver(line)
                self._done_seq = until
                if stopping:
                    return
        except OSError as error:
            self._failed = f"the Maildir cannot be written: {error}"
            log.error("the Maildir cannot be written: %s", error)

    def _deliver(self, line: bytes) -> None:
        entry = json.loads(line)
        name = file_name(entry["seq"], entry["at"])
        temporary = f"{self._maildir}/tmp/{name}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, entry["body"].encode("utf-8", "surrogateescape"))
        finally:
            os.close(handle)
        os.rename(temporary, f"{self._maildir}/new/{name}")  # noqa: PTH104 # paid per mail: Path costs as much again

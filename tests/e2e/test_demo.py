"""`heliograph demo` as a user runs it: twice on one state directory, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import smtplib
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.timeout(600),
]

LAST_LINE = re.compile(r"accepted (\d+) = settled (\d+) \+ in flight 0, residual 0")
UNIQUE = 2_340
"""Lines of examples/requests.jsonl but for the copies."""


def run_demo(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "console.cli", "demo", "--state-dir", str(state_dir), *arguments]
    # A proxy that nobody answers at: what is on this machine is never asked for through one.
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxies}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def left_running(state_dir: Path) -> list[str]:
    """Processes that were told about the state directory."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or ()), process.info["cwd"] or ""]
        if any(str(state_dir) in word for word in words):
            found.append(" ".join(words))
    return found


def test_the_demo_agrees_and_leaves_nothing_and_a_second_run_counts_anew(tmp_path: Path) -> None:
    for first in (True, False):
        done = run_demo(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        last = LAST_LINE.fullmatch(done.stdout.rstrip().splitlines()[-1])
        assert last is not None, done.stdout
        assert [int(count) for count in last.groups()] == [UNIQUE, UNIQUE]
        assert "\x1b" not in done.stdout
        assert "\r" not in done.stdout
        for reason in (
            "opted_out",
            "no_address",
            "unknown_recipient",
            "unknown_template",
            "missing_variable",
            "suppressed_address",
            "past_expiry",
            "dry_run",
            "template_error",
        ):
            assert reason in done.stdout
        assert re.search(r"^failover   .*simulator-vonage [1-9]", done.stdout, re.M)
        for kind in ("apns", "bulksms", "fcm", "onesignal", "smtp", "twilio", "webpush"):
            assert re.search(rf"^compared .*\b{kind} [1-9]", done.stdout, re.M)
        assert ("hard_bounce" in done.stdout) is first  # the mailbox that bounced is suppressed from then on
        assert left_running(tmp_path) == []
        assert not (tmp_path / "endpoints.json").exists()


def test_a_vendor_that_accepts_more_than_is_recorded_fails_the_demo(tmp_path: Path) -> None:
    """The comparison is no decoration: a mail nobody recorded, sent past the pipeline while the demo runs, is found."""
    seen = threading.Event()

    def intrude() -> None:
        deadline = time.monotonic() + 240
        log = tmp_path / "data" / "simulator" / "accepted.jsonl"
        while time.monotonic() < deadline and not seen.is_set():
            if (tmp_path / "endpoints.json").exists() and log.stat().st_size:
                endpoints = json.loads((tmp_path / "endpoints.json").read_text())
                host, _, port = endpoints["smtp"].partition(":")
                with smtplib.SMTP(host, int(port)) as smtp:
                    smtp.sendmail(
                        "a@example.org", ["b@example.org"], "Message-ID: <stranger@example.org>\r\n\r\nHi\r\n"
                    )
                seen.set()
            time.sleep(0.1)

    intruder = threading.Thread(target=intrude)
    intruder.start()
    done = run_demo(tmp_path)
    finished = seen.is_set()
    seen.set()
    intruder.join()
    assert finished
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 accepts at a vendor belong to no message: stranger" in done.stderr
    assert LAST_LINE.fullmatch(done.stdout.rstrip().splitlines()[-1])

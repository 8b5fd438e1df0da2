"""`heliograph doctor` on a stack that is well, where nothing answers, and on broken set-ups: each is named with a cure that cures."""

from __future__ import annotations

import base64
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from runtime import topics
from runtime.kafka.admin import Admin
from runtime.settings import KafkaSettings
from schemas.topics import RECEIPTS, REPLAY_ITEMS, REPLAYS
from tests.e2e.conftest import Stack
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]


def doctor(directory: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return command(directory, "doctor", *arguments, **env)


def command(directory: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command of ours, run in a directory without settings."""
    return subprocess.run(
        [sys.executable, "-m", "console.cli", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **env},
    )


def findings(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_stack_that_is_well_has_no_problem_and_shows_no_secret(running: Stack, tmp_path: Path) -> None:
    done = doctor(tmp_path, "--state-dir", str(running.state_dir), "--json")
    found = findings(done)
    assert (done.returncode, [f for f in found if f["level"] == "problem"]) == (0, [])
    assert {f["check"] for f in found} == {
        "settings",
        "providers",
        "schemas",
        "kafka",
        "topics",
        "copies",
        "lag",
        "postgres",
        "clock",
        "postgres tables",
        "clickhouse",
        "clickhouse tables",
        "clickhouse views",
        "clickhouse rows",
        "dead letters",
        "roles",
        "disk",
        "api key",
    }
    assert running.endpoints["api_key"] not in done.stdout
    assert running.endpoints["postgres"].split(":")[2].split("@")[0] not in done.stdout
    lines = doctor(tmp_path, "--state-dir", str(running.state_dir)).stdout.splitlines()
    assert len(lines) == len(found)
    assert all(line.startswith(("ok ", "warning ")) for line in lines)


def test_a_wrong_key_and_wrong_settings_are_problems_beside_a_stack_that_is_well(
    running: Stack, tmp_path: Path
) -> None:
    done = doctor(
        tmp_path, "--state-dir", str(running.state_dir), "--json", "--api-key", "hg_no", HELIOGRAPH_KAFFKA="1"
    )
    problems = {f["check"]: f["what"] for f in findings(done) if f["level"] == "problem"}
    assert done.returncode == 1
    assert problems.keys() == {"settings", "api key"}
    assert "HELIOGRAPH_KAFFKA" in problems["settings"]
    assert "hg_no" not in done.stdout


def test_a_topic_that_somebody_set_otherwise_is_a_warning_with_the_command_that_helps(
    running: Stack, tmp_path: Path
) -> None:
    admin = Admin(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]))
    admin.alter_configs({RECEIPTS: {"retention.ms": "86400000"}})
    try:
        until(lambda: topics.diff(admin, "local") != [], 30, "the topic differs")
        done = doctor(tmp_path, "--state-dir", str(running.state_dir), "--json")
    finally:
        topics.apply(admin, "local")
    (warning,) = [f for f in findings(done) if f["check"] == "topics"]
    assert (warning["level"], warning["what"]) == ("warning", f"{RECEIPTS} set otherwise")
    assert warning["fix"] == "run `heliograph topics apply`"
    assert done.returncode == 0


def test_nothing_running_is_a_problem_for_every_store_and_no_traceback(tmp_path: Path) -> None:
    done = doctor(
        tmp_path,
        "--json",
        HELIOGRAPH_POSTGRES__DSN="postgresql://u:hush-hush@127.0.0.1:1/d",
        HELIOGRAPH_CLICKHOUSE__URL="http://u:hush-hush@127.0.0.1:1",
        HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1",
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert {f["check"] for f in findings(done) if f["level"] == "problem"} == {"kafka", "postgres", "clickhouse"}
    assert "hush-hush" not in done.stdout


def test_settings_that_make_no_sense_are_problems_and_no_traceback(tmp_path: Path) -> None:
    done = doctor(
        tmp_path,
        "--json",
        HELIOGRAPH_POSTGRES__DSN="no=such=dsn secretword",
        HELIOGRAPH_CLICKHOUSE__URL="nonsense",
        HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS="",
        HELIOGRAPH_KAFKA__OPTIONS='{"no.such.option": "1"}',
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert {f["check"] for f in findings(done) if f["level"] == "problem"} == {"kafka", "postgres", "clickhouse"}
    assert "secretword" not in done.stdout


# -- broken set-ups ---------------------------------------------------------------------------------------------------


@dataclass
class Setup:
    """A stack as its operator examines it: with what doctor is given on a deployment, or by `local` as the stack of this machine."""

    running: Stack
    directory: Path
    local: bool = False
    more: tuple[str, ...] = ()
    """Further arguments."""
    env: dict[str, str] = field(default_factory=dict)
    api_key: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    """Addresses of the processes that doctor is told of."""

    def __post_init__(self) -> None:
        known = self.running.endpoints
        self.api_key, self.roles = known["api_key"], known["metrics"]
        self.env |= {
            "HELIOGRAPH_CONFIG": str(self.config),
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": known["kafka"],
            "HELIOGRAPH_POSTGRES__DSN": known["postgres"],
            "HELIOGRAPH_CLICKHOUSE__URL": known["clickhouse"],
            "HELIOGRAPH_CLICKHOUSE__DATABASE": known["clickhouse_database"],
            "HELIOGRAPH_PARTITIONS": "local",
        }

    @property
    def config(self) -> Path:
        return next(self.running.state_dir.rglob("heliograph.toml"))

    def problems(self) -> dict[str, str]:
        """Check → what is wrong, and the cure."""
        known = self.running.endpoints
        if self.local:
            done = doctor(self.directory, "--state-dir", str(self.running.state_dir), "--json", *self.more)
        else:
            given = ("--api", known["api"], "--api-key", self.api_key, "--roles", ",".join(self.roles.values()))
            done = doctor(self.directory, "--json", *given, *self.more, **self.env)
        found = {f["check"]: f"{f['what']}: {f['fix']}" for f in findings(done) if f["level"] == "problem"}
        assert done.returncode == (1 if found else 0), done.stderr
        return found

    def command(self, *arguments: str) -> str:
        done = command(self.directory, *arguments, "--state-dir", str(self.running.state_dir))
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def admin(self) -> Admin:
        return Admin(KafkaSettings(bootstrap_servers=self.running.endpoints["kafka"]))

    @property
    def library(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.running.endpoints["kafka"]})


Story = Iterator[tuple[str, str, str]]
"""Breaks something; gives (check, what is said, its cure); then carries that cure out."""


def mistyped_setting(setup: Setup) -> Story:
    setup.env["HELIOGRAPH_KAFFKA__BOOTSTRAP_SERVERS"] = "k:1"
    yield "settings", "HELIOGRAPH_KAFFKA", "correct them"
    del setup.env["HELIOGRAPH_KAFFKA__BOOTSTRAP_SERVERS"]


def wrong_dsn(setup: Setup) -> Story:
    right = setup.env["HELIOGRAPH_POSTGRES__DSN"]
    setup.env["HELIOGRAPH_POSTGRES__DSN"] = right.rpartition("/")[0] + "/nosuch"
    yield "postgres", 'database "nosuch" does not exist', "correct HELIOGRAPH_POSTGRES__DSN"
    setup.env["HELIOGRAPH_POSTGRES__DSN"] = right


def kafka_elsewhere(setup: Setup) -> Story:
    right = setup.env["HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS"]
    setup.env["HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS"] = "127.0.0.1:9"
    yield "kafka", "127.0.0.1:9", "correct HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS"
    setup.env["HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS"] = right


def clickhouse_database_elsewhere(setup: Setup) -> Story:
    right = setup.env["HELIOGRAPH_CLICKHOUSE__DATABASE"]
    setup.env["HELIOGRAPH_CLICKHOUSE__DATABASE"] = "nosuch"
    yield "clickhouse tables", "database nosuch has none", "correct HELIOGRAPH_CLICKHOUSE__DATABASE"
    setup.env["HELIOGRAPH_CLICKHOUSE__DATABASE"] = right


def clickhouse_password(setup: Setup) -> Story:
    with guarded(setup.env["HELIOGRAPH_CLICKHOUSE__URL"], "right") as url:
        before = setup.env["HELIOGRAPH_CLICKHOUSE__URL"]
        setup.env |= {"HELIOGRAPH_CLICKHOUSE__URL": url, "HELIOGRAPH_CLICKHOUSE__PASSWORD": "wrong-one"}
        yield (
            "clickhouse",
            "Authentication failed",
            "correct HELIOGRAPH_CLICKHOUSE__USERNAME and HELIOGRAPH_CLICKHOUSE__PASSWORD",
        )
        setup.env["HELIOGRAPH_CLICKHOUSE__PASSWORD"] = "right"
        assert setup.problems() == {}
        setup.env["HELIOGRAPH_CLICKHOUSE__URL"] = before


def wrong_profile(setup: Setup) -> Story:
    setup.env["HELIOGRAPH_PARTITIONS"] = "default"
    yield "topics", "with another number of partitions", "set HELIOGRAPH_PARTITIONS"
    setup.env["HELIOGRAPH_PARTITIONS"] = "local"


def one_odd_topic(setup: Setup) -> Story:
    """Somebody made it by hand. Nothing is replayed meanwhile, and all of it is read."""
    library = setup.library  # it works for as long as it is held
    for future in library.create_partitions([NewPartitions(REPLAY_ITEMS, 7)]).values():
        future.result()
    yield "topics", f"{REPLAY_ITEMS} with another number of partitions", "delete it and run that"
    delete_topic(setup, REPLAY_ITEMS)
    setup.command("topics", "apply")


def missing_topic(setup: Setup) -> Story:
    delete_topic(setup, REPLAYS)
    yield "topics", f"{REPLAYS} missing", "run `heliograph topics apply`"
    setup.command("topics", "apply")


def delete_topic(setup: Setup, topic: str) -> None:
    library = setup.library
    for future in library.delete_topics([topic]).values():
        future.result()
    until(lambda: topic not in setup.admin.partition_counts(), 30, "the topic is gone")


def missing_key_file(setup: Setup) -> Story:
    text = setup.config.read_text()
    copy = setup.directory / "heliograph.toml"
    copy.write_text(text.replace("apns-key.p8", "nosuch.p8"))
    setup.env["HELIOGRAPH_CONFIG"] = str(copy)
    yield "providers", "nosuch.p8 is not Apple's .p8 file", "correct the [[providers]] entry simulator-apns"
    copy.write_text(text)


def refused_token(setup: Setup) -> Story:
    setup.more = ("--probe-providers",)
    tell_vendor(setup, ["another"])
    yield (
        "probes",
        "simulator-twilio (twilio) refuses it: 401 20003",
        "correct the credentials in the [[providers]] entry simulator-twilio",
    )
    text = setup.config.read_text()
    setup.config.write_text(text.replace('auth_token = "simulator"', 'auth_token = "another"'))
    until(lambda: setup.problems() == {}, 60, "every process has the new token")
    tell_vendor(setup, [])
    setup.config.write_text(text)


def tell_vendor(setup: Setup, tokens: list[str]) -> None:
    url = setup.running.endpoints["simulator"] + "/twilio/auth_tokens"
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(tokens).encode(), method="PUT"), timeout=10).close()


def unknown_api_key(setup: Setup) -> Story:
    setup.api_key = "hg_no"
    yield "api key", "refuses it (401)", "`heliograph keys create`"
    setup.api_key = setup.command("keys", "create", "--tenant", "default", "--name", "doctor").strip()


def edited_view(setup: Setup) -> Story:
    client = clickhouse_connect.get_client(
        dsn=setup.running.endpoints["clickhouse"], database=setup.running.endpoints["clickhouse_database"]
    )
    client.command("CREATE OR REPLACE VIEW v_slo AS SELECT 1 AS x")
    client.close()
    said = "v_slo differs from its file: it was changed in ClickHouse"
    yield "clickhouse views", said, "run `heliograph migrate`"
    assert "applied view v_slo" in setup.command("migrate").splitlines()
    assert "ClickHouse is up to date" in setup.command("migrate").splitlines()


def role_of_a_deployment_that_nobody_started(setup: Setup) -> Story:
    """Its address is not known, as nobody named it: what waits for it is seen."""
    running = setup.running
    pids = running.endpoints["pids"]
    os.kill(pids["supervisor"], signal.SIGSTOP)
    started = None
    try:
        os.kill(pids["sender-sms"], signal.SIGTERM)
        until(lambda: " Z " in Path(f"/proc/{pids['sender-sms']}/stat").read_text(), 60, "the sender has ended")
        sms = {"to": {"phone": "+4915112345678"}, "content": {"text": "x"}}
        assert running.call("POST", "/v1/notifications", sms)[0] == 202
        del setup.roles["sender-sms"]
        yield "lag", "and nobody is in the group", "start `heliograph run sender --channel sms`"
        started = subprocess.Popen(
            [sys.executable, "-m", "console.cli", "run", "sender", "--channel", "sms"],
            cwd=setup.directory,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **setup.env},
            stderr=subprocess.DEVNULL,
        )
        until(lambda: setup.problems() == {}, 60, "the sender has read everything")
    finally:
        if started is not None:
            started.terminate()
            started.wait(30)
        os.kill(pids["supervisor"], signal.SIGCONT)


def role_that_hangs(setup: Setup) -> Story:
    pid = setup.running.endpoints["pids"]["sink"]
    os.kill(pid, signal.SIGSTOP)
    yield "roles", "sink is not ready: it does not answer", "see "
    os.kill(pid, signal.SIGKILL)  # the supervisor starts it again


@contextmanager
def guarded(target: str, password: str) -> Iterator[str]:
    """A ClickHouse that wants a password, in front of the stack's, which takes any."""

    class Gate(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            scheme, _, given = self.headers.get("Authorization", "").partition(" ")
            if scheme != "Basic" or base64.b64decode(given).decode().partition(":")[2] != password:
                words = b"Code: 516. DB::Exception: default: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)"
                self.answer(403, words, {"X-ClickHouse-Exception-Code": "516"})
                return
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "authorization")
            }
            asked = urllib.request.Request(target + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(asked, timeout=30) as answered:
                    self.answer(answered.status, answered.read(), dict(answered.headers))
            except urllib.error.HTTPError as exc:
                self.answer(exc.code, exc.read(), dict(exc.headers))

        do_GET = do_POST

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


DEPLOYMENT: list[Callable[[Setup], Story]] = [
    mistyped_setting,
    wrong_dsn,
    kafka_elsewhere,
    clickhouse_database_elsewhere,
    clickhouse_password,
    wrong_profile,
    missing_key_file,
    unknown_api_key,
]
LONG: list[tuple[Callable[[Setup], Story], bool]] = [
    (role_of_a_deployment_that_nobody_started, False),
    (one_odd_topic, True),
    (missing_topic, True),
    (refused_token, True),
    (role_that_hangs, True),
]
"""And whether it is the stack of this machine."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("broken", "local"),
    [
        *((broken, False) for broken in DEPLOYMENT),
        *(pytest.param(broken, local, marks=pytest.mark.slow) for broken, local in LONG),
        (edited_view, True),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_broken_setup_is_named_with_a_cure_that_cures(
    running: Stack, tmp_path: Path, broken: Callable[[Setup], Story], local: bool
) -> None:
    setup = Setup(running, tmp_path, local)
    story = broken(setup)
    check, what, cure = next(story)
    try:
        found: dict[str, str] = {}

        def named() -> bool:
            found.clear()
            found.update(setup.problems())
            return check in found

        until(named, 60, f"a problem of {check}", lambda: found)
        assert found.keys() == {check}, found
        assert what in found[check]
        assert cure in found[check]
        assert "wrong-one" not in found[check]
    finally:
        next(story, None)  # also for the tests that follow on this stack
    until(lambda: setup.problems() == {}, 90, "all is well", lambda: setup.problems())

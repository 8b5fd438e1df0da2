"""The local stack's decisions, files and supervision, with small Python processes in place of servers and roles."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer

from local import AlreadyRunningError, ArtifactError, LocalStackError, PortError, StartError, stack
from local.cli import process_counts
from local.ports import PortBook, cache_dir
from local.processes import (
    Backoff,
    Child,
    ChildSpec,
    Identity,
    cap_log,
    last_line,
    start_time_of,
    wait_until_gone,
)
from local.servers.kafka import Jar, KafkaServer, ensure_jars, packaged_lock, parse_lock
from local.supervisor.__main__ import parse_arguments
from local.supervisor.children import Supervisor
from local.supervisor.layout import ROLES, SHARED, Stack, StackOptions, merge_providers, to_toml
from local.supervisor.state import StateFiles, end_leftovers, write_atomically
from runtime.errors import HeliographError

# --- Backoff ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("previous_s", "uptime_s", "expected_s"),
    [
        pytest.param(None, 0.1, 0.2, id="first death"),
        pytest.param(0.2, 0.1, 0.4, id="second death doubles"),
        pytest.param(4.0, 29.9, 5.0, id="never above the maximum"),
        pytest.param(5.0, 29.9, 5.0, id="stays at the maximum"),
        pytest.param(5.0, 30.0, 0.2, id="half a minute up starts over"),
    ],
)
def test_backoff_after_a_death(previous_s: float | None, uptime_s: float, expected_s: float) -> None:
    assert Backoff().delay_s(previous_s, uptime_s) == expected_s


# --- Ports ------------------------------------------------------------------------------------------------------------


def test_ports_of_one_book_differ_and_lie_below_the_ephemeral_range(tmp_path: Path) -> None:
    book = PortBook(tmp_path, free=lambda port: True)
    ports = [book.reserve(f"role-{number}") for number in range(50)]
    book.close()
    assert len(set(ports)) == 50
    assert all(20_000 <= port < 32_768 for port in ports)


def test_port_of_another_stack_is_refused_until_that_one_ends(tmp_path: Path) -> None:
    first, second = PortBook(tmp_path, free=lambda port: True), PortBook(tmp_path, free=lambda port: True)
    first.reserve("kafka", 25_000)
    with pytest.raises(PortError, match="--kafka-port 25000 is in use: stop what listens there, or give another"):
        second.reserve("kafka", 25_000)
    first.close()
    assert second.reserve("kafka", 25_000) == 25_000
    second.close()


@pytest.mark.parametrize("port", [0, 80, 32_768, 70_000])
def test_fixed_port_outside_the_usable_range_is_refused_with_the_range(tmp_path: Path, port: int) -> None:
    with pytest.raises(PortError, match="give a port from 1024 to 32767"):
        PortBook(tmp_path, free=lambda port: True).reserve("api", port)


def test_no_free_port_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="no free port for api"):
        PortBook(tmp_path, free=lambda port: False).reserve("api")


def test_cache_directory_follows_its_variable_then_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("HELIOGRAPH_CACHE_DIR", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "heliograph"
    monkeypatch.setenv("HELIOGRAPH_CACHE_DIR", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


# --- Kafka's jars -----------------------------------------------------------------------------------------------------

CONTENT = b"a jar"
JAR = Jar("org.example:thing:1.0", hashlib.sha256(CONTENT).hexdigest())


def _serve(content: bytes, calls: list[str]) -> Callable[[Jar, Path], Path]:
    def fetch(jar: Jar, scratch: Path) -> Path:
        calls.append(jar.coordinate)
        path = scratch / jar.file_name
        path.write_bytes(content)
        return path

    return fetch


def test_jar_is_fetched_once_and_found_the_second_time(tmp_path: Path) -> None:
    calls: list[str] = []
    first = ensure_jars([JAR], tmp_path, _serve(CONTENT, calls))
    second = ensure_jars([JAR], tmp_path, _serve(CONTENT, calls))
    assert first == second
    assert (first / "thing-1.0.jar").read_bytes() == CONTENT
    assert calls == ["org.example:thing:1.0"]


def test_jar_with_another_checksum_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"org\.example:thing:1\.0 has SHA-256 .* but kafka\.lock pins"):
        ensure_jars([JAR], tmp_path, _serve(b"altered", []))
    assert list(tmp_path.rglob("*.jar")) == []


def test_jar_damaged_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    path = ensure_jars([JAR], tmp_path, _serve(CONTENT, [])) / JAR.file_name
    path.write_bytes(b"damaged")
    ensure_jars([JAR], tmp_path, _serve(CONTENT, []))
    assert path.read_bytes() == CONTENT


def test_no_network_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    def fetch(jar: Jar, scratch: Path) -> Path:
        raise OSError("no route\nto host")

    with pytest.raises(ArtifactError, match="no route to host; check the network and try again") as caught:
        ensure_jars([JAR], tmp_path, fetch)
    assert "\n" not in str(caught.value)


def test_concurrent_first_starts_fetch_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def slow(jar: Jar, scratch: Path) -> Path:
        time.sleep(0.05)
        return _serve(CONTENT, calls)(jar, scratch)

    threads = [threading.Thread(target=ensure_jars, args=([JAR], tmp_path, slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["org.example:thing:1.0"]


def test_packaged_lock_pins_one_broker_version_and_a_log_binding() -> None:
    coordinates = {jar.coordinate for jar in packaged_lock()}
    versions = {c.rpartition(":")[2] for c in coordinates if c.startswith("org.apache.kafka:")}
    assert versions == {"4.3.1"}
    assert any("log4j-slf4j-impl" in c for c in coordinates)


@pytest.mark.parametrize("text", ["", "# nothing\n", "abc  org.example:thing:1.0", f"{'0' * 64}  org.example:thing"])
def test_lock_that_says_nothing_or_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError):
        parse_lock(text)


def test_broker_listens_on_loopback_only_and_creates_no_topics_by_itself(tmp_path: Path) -> None:
    settings = KafkaServer(tmp_path, 25_000, 25_001).settings(tmp_path / "storage").splitlines()
    assert "listeners=PLAINTEXT://127.0.0.1:25000,CONTROLLER://127.0.0.1:25001" in settings
    assert "auto.create.topics.enable=false" in settings
    assert "group.initial.rebalance.delay.ms=0" in settings


def test_directory_outside_ascii_is_written_as_java_reads_it(tmp_path: Path) -> None:
    settings = KafkaServer(tmp_path, 25_000, 25_001).settings(Path("/home/zoë/\\😀"))
    assert "log.dirs=/home/zo\\u00eb/\\\\\\ud83d\\ude00\n" in settings


def test_directory_that_kafka_would_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="use a path without"):
        KafkaServer(tmp_path / "a,b", 25_000, 25_001).prepare()


def test_state_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalStackError, match="give another --state-dir"):
        stack.up(tmp_path / "file" / "state")


# --- Settings of the roles --------------------------------------------------------------------------------------------

SIMULATED = [{"name": "simulator-smtp", "channel": "email"}, {"name": "simulator-twilio", "channel": "sms"}]


def test_providers_of_the_user_replace_the_simulator_in_their_channel_only() -> None:
    own = [{"name": "a", "channel": "email"}, {"name": "b", "channel": "email"}]
    assert [p["name"] for p in merge_providers(own, SIMULATED)] == ["a", "b", "simulator-twilio"]


def test_no_providers_of_the_user_leaves_the_simulators() -> None:
    assert merge_providers([], SIMULATED) == SIMULATED


ACCOUNT = {"name": "a", "kind": "twilio", "account_sid": "AC1", "auth_token": "t", "from": "+15005550006"}


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"providers": [{**ACCOUNT, "channel": "fax"}]}, "no role sends on this channel"),
        ({"providers": [{**ACCOUNT, "channel": "email"}]}, "no twilio for email"),
        ({"providers": "twilio"}, "PROVIDERS"),
        ({"providers": [1]}, "PROVIDERS"),
        ({"api": {"drain_s": "long"}}, "DRAIN_S"),
        ({"api": 3}, "HELIOGRAPH_API"),
        ({"callbacks": 3}, "callbacks is a table"),
    ],
)
def test_settings_that_a_role_would_refuse_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the supervisor puts its roles' settings there
    monkeypatch.setattr(Supervisor, "run", lambda _: pytest.fail("it starts"))
    config = tmp_path / "own.toml"
    config.write_text(to_toml(tables))
    book = PortBook(tmp_path, free=lambda port: True)
    try:
        with pytest.raises(HeliographError, match=reason):
            Stack(StackOptions(tmp_path, config), book).run()
    finally:
        book.close()


def test_written_settings_read_back_as_they_were() -> None:
    tables = {
        "log_level": "debug",
        "sender": {"window": 16, "drain_timeout_s": 1.5},
        "kafka": {"options": {"a.b": "c", "quote": 'say "hi"\n\x7f'}},
        "providers": [{"name": "é", "breaker": {"failures": 3}, "on": True}, {"name": "b", "tags": ["x", 1]}],
    }
    assert tomllib.loads(to_toml(tables)) == tables


# --- Files ------------------------------------------------------------------------------------------------------------


def test_log_over_its_cap_moves_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "role.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        cap_log(path, cap_bytes=50)
        writer.write(b"after\n")
    assert path.read_bytes() == b"after\n"
    assert (tmp_path / "role.log.1").read_bytes() == b"x" * 100


def test_last_line_ignores_what_was_logged_before_this_start(tmp_path: Path) -> None:
    path = tmp_path / "role.log"
    path.write_text("old failure\n")
    assert last_line(path) == "old failure"
    assert last_line(path, path.stat().st_size) == ""
    assert last_line(tmp_path / "none.log") == ""


def test_second_supervisor_of_a_directory_is_refused_and_the_first_is_known(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    assert files.holder() is None
    handle = files.take_lock()
    try:
        with pytest.raises(AlreadyRunningError, match="heliograph down"):
            files.take_lock()
        assert files.holder() == Identity(os.getpid(), start_time_of(os.getpid()) or "")
    finally:
        os.close(handle)


def test_secret_files_are_private(tmp_path: Path) -> None:
    write_atomically(tmp_path / "secrets.json", "{}")
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_command_line_gives_ports_by_name(tmp_path: Path) -> None:
    options = parse_arguments(["--state-dir", str(tmp_path), "--kafka-port", "9092", "--initialiser", "a:b"])
    assert options.ports == {"kafka": 9092}
    assert options.initialisers == ("a:b",)


def test_roles_are_those_of_the_contract() -> None:
    assert sorted(ROLES) == sorted(
        [
            "api",
            "relay",
            "router-critical",
            "router-normal",
            "router-bulk",
            "timers",
            "sender-email",
            "sender-sms",
            "sender-push",
            "sender-webhook",
            "sink",
            "callbacks",
            "hooks",
            "bounces",
        ]
    )


def test_down_where_nothing_ever_ran_succeeds(tmp_path: Path) -> None:
    assert stack.down(tmp_path / "never") is False


def test_up_with_an_ephemeral_port_fails_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="--kafka-port 40000 cannot be used"):
        stack.up(tmp_path / "state", ports={"kafka": 40_000})
    assert not (tmp_path / "state").exists()


# --- Children ---------------------------------------------------------------------------------------------------------


def _fake(tmp_path: Path, name: str, body: str = "", **more: object) -> ChildSpec:
    """A child that says it is ready by a file, then runs `body`, then waits for SIGTERM and logs its end."""
    ready = tmp_path / f"{name}.ready"
    code = f"""
        import os, pathlib, signal, sys, time
        def end(*_):
            with open({str(tmp_path / "order")!r}, "a") as file: file.write({name!r} + "\\n")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        {body or "pass"}
        pathlib.Path({str(ready)!r}).write_text(str(os.getpid()))
        while True: time.sleep(0.02)
    """

    def is_ready() -> bool:
        return ready.exists()

    return ChildSpec(
        name=name,
        command=lambda: (sys.executable, "-S", "-c", textwrap.dedent(code)),
        is_ready=is_ready,
        log=tmp_path / f"{name}.log",
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def life() -> Iterator[Callable[[Supervisor], Life]]:
    lives: list[Life] = []

    def begin(supervisor: Supervisor) -> Life:
        lives.append(Life(supervisor))
        return lives[-1]

    yield begin
    for one in lives:
        one.end()


class Life:
    """A supervisor that runs in a thread of the test."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "not in time"
            time.sleep(0.01)

    def end(self) -> int | None:
        self.supervisor.request_stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.code


def _nothing() -> None:
    return None


def test_infrastructure_comes_before_initialisation_and_roles_and_ends_after_them(
    tmp_path: Path, life: Callable[[Supervisor], Life]
) -> None:
    seen: list[bool] = []
    supervisor = Supervisor(
        [_fake(tmp_path, "store")],
        [_fake(tmp_path, "role")],
        lambda: seen.append((tmp_path / "store.ready").exists() and not (tmp_path / "role.ready").exists()),
        lambda supervisor, reason: None,
    )
    running = life(supervisor)
    running.until(lambda: supervisor.phase == "ready")
    assert running.end() == 0
    assert seen == [True]
    assert (tmp_path / "order").read_text().split() == ["role", "store"]


def test_killed_child_starts_again_and_healthy_ones_are_not_touched(
    tmp_path: Path, life: Callable[[Supervisor], Life]
) -> None:
    pids: list[dict[str, int | None]] = []
    supervisor = Supervisor(
        [_fake(tmp_path, "store")],
        [_fake(tmp_path, "role")],
        _nothing,
        lambda supervisor, reason: pids.append({child.name: child.pid for child in supervisor.children}),
    )
    running = life(supervisor)
    running.until(lambda: supervisor.phase == "ready")
    store, role = supervisor.children
    before, other = store.pid, role.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    # It is told a moment after it is so.
    running.until(lambda: store.starts == 2 and store.pid is not None and pids[-1]["store"] == store.pid)
    assert role.pid == other
    assert store.pid != before


def test_child_that_dies_at_every_start_fails_the_start_with_its_last_line_and_its_log(
    tmp_path: Path, life: Callable[[Supervisor], Life]
) -> None:
    reasons: list[str | None] = []
    supervisor = Supervisor(
        [_fake(tmp_path, "store")],
        [_fake(tmp_path, "role", "sys.exit('no such setting')")],
        _nothing,
        lambda supervisor, reason: reasons.append(reason),
    )
    running = life(supervisor)
    running.until(lambda: running.code is not None)
    assert running.code == 1
    assert reasons[-1] == f"role does not start: no such setting (log: {tmp_path / 'role.log'})"
    assert all(child.pid is None for child in supervisor.children)


def test_child_that_never_becomes_ready_fails_the_start_in_time(
    tmp_path: Path, life: Callable[[Supervisor], Life]
) -> None:
    reasons: list[str | None] = []
    spec = _fake(tmp_path, "role", "print('waiting for Godot', flush=True); time.sleep(60)", ready_timeout_s=1.0)
    supervisor = Supervisor([], [spec], _nothing, lambda supervisor, reason: reasons.append(reason))
    running = life(supervisor)
    running.until(lambda: running.code is not None)
    assert reasons[-1] == f"role is not ready after 1 s: waiting for Godot (log: {tmp_path / 'role.log'})"


def test_initialisation_that_fails_ends_the_start_with_its_reason(
    tmp_path: Path, life: Callable[[Supervisor], Life]
) -> None:
    def fail() -> None:
        raise ValueError("no topics")

    reasons: list[str | None] = []
    supervisor = Supervisor([_fake(tmp_path, "store")], [], fail, lambda supervisor, reason: reasons.append(reason))
    running = life(supervisor)
    running.until(lambda: running.code is not None)
    assert reasons[-1] == "initialisation failed: ValueError: no topics"


def test_preparation_that_fails_names_its_child(tmp_path: Path, life: Callable[[Supervisor], Life]) -> None:
    def prepare() -> None:
        raise StartError("the disk is full")

    reasons: list[str | None] = []
    supervisor = Supervisor(
        [_fake(tmp_path, "store", prepare=prepare)], [], _nothing, lambda supervisor, reason: reasons.append(reason)
    )
    running = life(supervisor)
    running.until(lambda: running.code is not None)
    assert reasons[-1] == "the disk is full"


def test_program_that_does_not_exist_counts_as_a_death(tmp_path: Path) -> None:
    spec = ChildSpec("ghost", lambda: ("/no/such/program",), lambda: False, tmp_path / "ghost.log")
    child = Child(spec)
    child.start(0.0)
    assert child.pid is None
    assert child.deaths_before_ready == 1
    assert not child.is_due(0.1)
    assert child.is_due(0.2)
    assert "cannot start ghost" in child.last_log_line()


def test_stray_of_an_earlier_supervisor_is_ended_and_a_stranger_with_its_number_is_not(tmp_path: Path) -> None:
    leftover, unrelated = Child(_fake(tmp_path, "kafka")), Child(_fake(tmp_path, "stranger"))
    leftover.start(0.0)
    unrelated.start(0.0)
    assert leftover.identity is not None
    assert unrelated.pid is not None
    files = StateFiles(tmp_path)
    files.write_status("ready", None, {"kafka": leftover.identity, "sink": Identity(unrelated.pid, "another birth")})
    try:
        assert end_leftovers(files) == ["kafka"]
        assert wait_until_gone([leftover.identity.pid], 5.0)
        assert start_time_of(unrelated.pid) is not None
    finally:
        unrelated.signal(signal.SIGKILL)
        assert unrelated.wait(5.0)
        assert leftover.wait(5.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_killed_supervisor_takes_its_children_with_it(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        textwrap.dedent(f"""
        import pathlib, sys, time
        from local.processes import Child, ChildSpec
        spec = ChildSpec("c", lambda: (sys.executable, "-S", "-c", "import time; time.sleep(60)"), lambda: True,
                         pathlib.Path({str(tmp_path / "c.log")!r}))
        child = Child(spec)
        child.start(0.0)
        print(child.pid, flush=True)
        time.sleep(60)
        """)
    )
    root = str(Path(stack.__file__).resolve().parents[2])
    parent = Child(
        ChildSpec(
            "parent",
            lambda: (sys.executable, str(tmp_path / "parent.py")),
            lambda: True,
            tmp_path / "parent.log",
            environment=lambda: {**os.environ, "PYTHONPATH": root},
        )
    )
    parent.start(0.0)
    deadline = time.monotonic() + 20
    while not last_line(tmp_path / "parent.log"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    grandchild = int(last_line(tmp_path / "parent.log"))
    assert start_time_of(grandchild) is not None
    parent.signal(signal.SIGKILL)
    assert parent.wait(5.0)
    assert wait_until_gone([grandchild], 5.0)


def test_status_file_that_is_not_json_says_what_to_do(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    files.status.write_text("{")
    with pytest.raises(Exception, match="remove it and try again"):
        files.recorded()
    files.status.write_text(json.dumps({"pids": {"kafka": {"pid": 1, "birth": "x"}}}))
    assert files.recorded() == {"kafka": Identity(1, "x")}


@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        ([], {}),
        (["sender-email=2"], {"sender-email": 2}),
        (["2"], dict.fromkeys(SHARED, 2)),
        (["2", "sink=1"], {**dict.fromkeys(SHARED, 2), "sink": 1}),
    ],
)
def test_processes_are_of_a_role_or_of_all_that_share_their_work(texts: list[str], counts: dict[str, int]) -> None:
    assert process_counts(texts) == counts


@pytest.mark.parametrize(
    "text", ["", "0", "5", "-1", "sender-email", "sender-email=", "api=2", "nothing=2", "sink=two", "=2"]
)
def test_wrong_number_of_processes_is_refused_with_what_may_be_given(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="give"):
        process_counts([text])


def test_second_process_of_a_role_has_a_name_a_port_and_a_directory_of_its_own(tmp_path: Path) -> None:
    password = StateFiles(tmp_path).data("postgres") / "password"
    password.parent.mkdir(parents=True)
    password.write_text("secret")
    with closing(PortBook(tmp_path, free=lambda port: True)) as book:
        laid_out = Stack(StackOptions(tmp_path, processes={"sink": 2}), book)
        specs = {spec.name: spec for spec in laid_out._roles()}
    assert specs.keys() - ROLES.keys() == {"sink-2"}
    assert specs["sink-2"].command() == specs["sink"].command()
    first, second = (_environment(specs[name]) for name in ("sink", "sink-2"))
    different = {name for name in second if first.get(name) != second[name]}
    assert different == {"HELIOGRAPH_METRICS__PORT", "HELIOGRAPH_VIEWS__DIRECTORY"}


@pytest.mark.parametrize("bounces", [True, False])
def test_bounces_are_read_only_where_an_account_has_a_mailbox(tmp_path: Path, bounces: bool) -> None:
    password = StateFiles(tmp_path).data("postgres") / "password"
    password.parent.mkdir(parents=True)
    password.write_text("secret")
    config = tmp_path / "own.toml"
    config.write_text(
        to_toml(
            {"providers": [{"name": "mail", "channel": "email", **({"bounces": {"host": "x"}} if bounces else {})}]}
        )
    )
    with closing(PortBook(tmp_path, free=lambda port: True)) as book:
        laid_out = Stack(StackOptions(tmp_path, config=config), book)
        names = {spec.name for spec in laid_out._roles()}
    assert ("bounces" in names) is bounces


def _environment(spec: ChildSpec) -> Mapping[str, str]:
    assert spec.environment is not None
    return spec.environment()

"""The process that keeps a local stack alive: infrastructure first, then initialisation, then the roles.

`python -m console.local.supervisor --state-dir DIR` runs until SIGTERM or SIGINT. A child that dies is started again
after a short wait, on the same ports; a healthy child is never touched, because every role retries by itself. Roles end
before the broker does, else their group memberships outlive them. Files in DIR:

    endpoints.json    where everything listens (public contract); exists only while the stack is up
    supervisor.json   phase, reason of a failure, and every child's pid with its birth, so that strays can be told apart
    supervisor.lock   held while the supervisor lives
    secrets.json      made at the first start, kept for the next
    heliograph.toml   the settings file of every role
    logs/ data/

May import console.local, runtime.settings, runtime.errors. Never: what an initialiser does, and anything
a role needs to know but its settings.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import importlib
import json
import logging
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as clock_time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import console
from console.local import AlreadyRunningError, LocalStackError, StartError
from console.local.kafka_server import KafkaServer
from console.local.ports import LOOPBACK, PortBook
from console.local.postgres_server import PostgresServer
from console.local.processes import Child, ChildSpec, Identity, birth_of, cap_log
from console.local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC
from runtime.errors import HeliographError
from runtime.settings import load_settings, read_toml

TENANT = "default"
CLICKHOUSE_DATABASE = "heliograph"
PORT_NAMES = ("api", "kafka", "postgres", "clickhouse", "smtp", "mailbox", "simulator")
"""Ports a person may fix, by the name of their option."""
ROLES: Mapping[str, tuple[str, ...]] = {
    "api": ("api",),
    "relay": ("relay",),
    "router-critical": ("router", "--lane", "critical"),
    "router-normal": ("router", "--lane", "normal"),
    "router-bulk": ("router", "--lane", "bulk"),
    "timers": ("timers",),
    "sender-email": ("sender", "--channel", "email"),
    "sender-sms": ("sender", "--channel", "sms"),
    "sender-push": ("sender", "--channel", "push"),
    "sink": ("sink",),
    "callbacks": ("callbacks",),
}
"""Role names, and what follows `heliograph run`."""
STARTS_BEFORE_GIVING_UP = 3
ROLE_STOP_S = 15.0
INFRASTRUCTURE_STOP_S = 20.0
_PROBE_EVERY_S = 0.1
_CAP_LOGS_EVERY_S = 60.0
_log = logging.getLogger(__name__)

Phase = Literal["starting", "ready", "stopping", "failed"]


class StoppedEarlyError(LocalStackError):
    """The stack was told to stop before it was ready."""


class Supervisor:
    """Starts children in order, keeps them alive, stops them in order. `run` is its whole life."""

    def __init__(
        self,
        infrastructure: Sequence[ChildSpec],
        roles: Sequence[ChildSpec],
        initialise: Callable[[], None],
        on_change: Callable[[Supervisor, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.infrastructure = [Child(spec) for spec in infrastructure]
        self.roles = [Child(spec) for spec in roles]
        self.phase: Phase = "starting"
        self._initialise = initialise
        self._on_change = on_change
        self._clock = clock
        self._stopping = False
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="stack")
        self._probes: dict[str, tuple[int, Future[bool]]] = {}
        self._probed_at: dict[str, float] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)

    @property
    def children(self) -> list[Child]:
        """All children, infrastructure first."""
        return [*self.infrastructure, *self.roles]

    def request_stop(self, *_: object) -> None:
        """Begin the orderly end; safe in a signal handler."""
        self._stopping = True

    def run(self) -> int:
        """0 after an orderly stop, 1 when the stack could not start; everything it started has ended."""
        reason: str | None = None
        try:
            self._bring_up(self.infrastructure)
            self._wait_for(self._pool.submit(self._initialise), "initialisation")
            self._bring_up(self.roles)
            self._enter("ready")
            next_cap = self._clock() + _CAP_LOGS_EVERY_S
            while not self._stopping:
                self._tick(1.0)
                if self._clock() >= next_cap:
                    next_cap = self._clock() + _CAP_LOGS_EVERY_S
                    for child in self.children:
                        cap_log(child.spec.log)
        except StoppedEarlyError:
            _log.info("stopped before it was ready")
        except LocalStackError as exc:
            reason = str(exc)
            _log.error("%s", reason)
        finally:
            self._stop_all()
        if reason is not None:
            self._enter("failed", reason)
            return 1
        return 0

    def watch_signals(self) -> None:
        """Stop on SIGTERM and SIGINT, look at once when a child ends. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request_stop)

        def child_ended(_number: int, _frame: FrameType | None) -> None:
            return None  # the wake-up pipe below is what matters

        signal.signal(signal.SIGCHLD, child_ended)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def _enter(self, phase: Phase, reason: str | None = None) -> None:
        self.phase = phase
        _log.info("phase %s", phase)
        self._on_change(self, reason)

    def _bring_up(self, children: Sequence[Child]) -> None:
        preparing = {child.name: self._pool.submit(child.spec.prepare) for child in children}
        deadlines: dict[str, float] = {}
        while not all(child.ready for child in children):
            self._refuse_if_stopping()
            for child in children:
                future = preparing.get(child.name)
                if future is not None and future.done():
                    del preparing[child.name]
                    self._raise_failure(future, child.name)
                    self._start(child)
                    deadlines[child.name] = self._clock() + child.spec.ready_timeout_s
                self._refuse_if_hopeless(child, deadlines.get(child.name))
            self._tick(0.02 if preparing else _PROBE_EVERY_S / 2)

    def _refuse_if_stopping(self) -> None:
        if self._stopping:
            raise StoppedEarlyError("stopped before it was ready")

    def _refuse_if_hopeless(self, child: Child, deadline: float | None) -> None:
        if child.ready or deadline is None:
            return
        if child.deaths_before_ready >= STARTS_BEFORE_GIVING_UP:
            raise StartError(f"{child.name} does not start: {child.last_words()} (log: {child.spec.log})")
        if self._clock() > deadline:
            raise StartError(
                f"{child.name} is not ready after {child.spec.ready_timeout_s:.0f} s:"
                f" {child.last_words()} (log: {child.spec.log})"
            )

    def _wait_for(self, future: Future[None], what: str) -> None:
        while not future.done():
            self._refuse_if_stopping()
            self._tick(_PROBE_EVERY_S / 2)
        self._raise_failure(future, what)

    @staticmethod
    def _raise_failure(future: Future[None], what: str) -> None:
        failure = future.exception()
        if failure is None:
            return
        if isinstance(failure, LocalStackError):
            raise failure
        if isinstance(failure, HeliographError):
            raise StartError(f"{what} failed: {failure}") from failure
        _log.error("%s failed", what, exc_info=failure)
        text = " ".join(str(failure).split())[:300]
        raise StartError(f"{what} failed: {type(failure).__name__}: {text}") from failure

    def _start(self, child: Child) -> None:
        child.start(self._clock())
        _log.info("%s started, pid %s, start %s", child.name, child.pid, child.starts)
        self._on_change(self, None)

    def _tick(self, timeout_s: float) -> None:
        """One look at everything: who died, who is due again, who became ready."""
        now = self._clock()
        for child in self.children:
            if child.reap(now):
                _log.warning("%s died: %s", child.name, child.last_words())
            if child.is_due(now) and not self._stopping:
                self._start(child)
            self._probe(child, now)
        # while someone is down or not ready yet the next look must be soon
        soon = any(not child.ready and (child.starts > 0) for child in self.children)
        ready, _, _ = select.select(
            [self._wake_read], [], [], min(timeout_s, _PROBE_EVERY_S / 2) if soon else timeout_s
        )
        if ready:
            os.read(self._wake_read, 4096)

    def _probe(self, child: Child, now: float) -> None:
        if child.ready or child.pid is None:
            return
        start, future = self._probes.get(child.name, (0, None))
        if future is not None:
            if not future.done():
                return
            del self._probes[child.name]
            if start == child.starts and future.exception() is None and future.result():
                child.ready = True
                _log.info("%s is ready", child.name)
                return
        if now - self._probed_at.get(child.name, 0.0) >= _PROBE_EVERY_S:
            self._probed_at[child.name] = now
            self._probes[child.name] = (child.starts, self._pool.submit(child.spec.is_ready))

    def _stop_all(self) -> None:
        self._stopping = True
        self._enter("stopping")
        _stop(self.roles, ROLE_STOP_S)
        _stop(self.infrastructure, INFRASTRUCTURE_STOP_S)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _stop(children: Iterable[Child], timeout_s: float) -> None:
    children = list(children)
    for child in children:
        child.signal(child.spec.stop_signal)
    deadline = time.monotonic() + timeout_s
    for child in children:
        if not child.wait(deadline - time.monotonic()):
            _log.warning("%s did not end in %.0f s: killed", child.name, timeout_s)
            child.signal(signal.SIGKILL)
            child.wait(5.0)


# --- The files of a state directory -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Paths in a state directory, and how its files are read and written."""

    directory: Path

    @property
    def endpoints(self) -> Path:
        """The public contract."""
        return self.directory / "endpoints.json"

    @property
    def status(self) -> Path:
        """Phase, reason, and the pids."""
        return self.directory / "supervisor.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor."""
        return self.directory / "supervisor.lock"

    @property
    def secrets(self) -> Path:
        """What must be the same at the next start."""
        return self.directory / "secrets.json"

    @property
    def settings(self) -> Path:
        """The roles' settings file."""
        return self.directory / "heliograph.toml"

    def log(self, name: str) -> Path:
        """A role's log."""
        return self.directory / "logs" / f"{name}.log"

    def data(self, name: str) -> Path:
        """A server's data."""
        return self.directory / "data" / name

    def read(self, path: Path) -> dict[str, Any]:
        """A JSON file, {} when there is none."""
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise LocalStackError(f"{path} cannot be read: {exc}; remove it and try again") from exc
        return content if isinstance(content, dict) else {}

    def take_lock(self) -> int:
        """Lock the directory for this process's life. Raises AlreadyRunningError."""
        make_directory(self.directory)
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(handle)
            raise AlreadyRunningError(
                f"a stack already runs in {self.directory}: use it, or `heliograph down --state-dir {self.directory}`"
            ) from exc
        me = json.dumps({"pid": os.getpid(), "birth": birth_of(os.getpid())}).encode()
        os.truncate(handle, 0)
        os.pwrite(handle, me, 0)
        return handle

    def holder(self) -> Identity | None:
        """The supervisor that lives here, None when there is none.

        Read from the lock's content, never by trying the lock: whoever tries it would look like a supervisor to others.
        """
        try:
            held = json.loads(self.lock.read_text("ascii"))
            identity = Identity(int(held["pid"]), str(held["birth"]))
        except (OSError, ValueError, KeyError):
            return None
        return identity if identity.is_running() else None

    def write_status(self, phase: Phase, reason: str | None, running: Mapping[str, Identity]) -> None:
        """Replace supervisor.json."""
        pids = {name: {"pid": it.pid, "birth": it.birth} for name, it in running.items()}
        write_atomically(self.status, json.dumps({"phase": phase, "reason": reason, "pids": pids}, indent=2) + "\n")

    def recorded(self) -> dict[str, Identity]:
        """The processes that the last supervisor recorded, itself included, whether they still run or not."""
        pids = self.read(self.status).get("pids", {})
        return {name: Identity(int(entry["pid"]), str(entry["birth"])) for name, entry in pids.items()}


def make_directory(path: Path) -> None:
    """Make a directory with its parents. Raises LocalStackError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise LocalStackError(f"cannot make {path}: {exc.strerror}; give another --state-dir") from exc


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a part."""
    unfinished = path.with_name(path.name + ".new")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    unfinished.replace(path)


# --- Settings of the roles --------------------------------------------------------------------------------------------


def merge_providers(own: Sequence[dict[str, Any]], simulated: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The user's providers in their order, then the simulator's for every channel the user says nothing about."""
    taken = {provider.get("channel") for provider in own}
    return [*own, *(provider for provider in simulated if provider["channel"] not in taken)]


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML of settings: top-level values, then tables, then arrays of tables; what is deeper is written inline."""
    plain, sections = [], []
    for key, value in tables.items():
        if isinstance(value, dict):
            sections.append("\n".join([f"[{_toml_key(key)}]", *_toml_lines(value)]))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            sections.extend("\n".join([f"[[{_toml_key(key)}]]", *_toml_lines(item)]) for item in value)
        else:
            plain.append(f"{_toml_key(key)} = {_toml_value(value)}")
    return "\n\n".join(["\n".join(plain), *sections] if plain else sections) + "\n"


def _toml_lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items()]


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _toml_value(key)


def _toml_value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case datetime() | date() | clock_time():
            return value.isoformat()
        case dict():
            return "{" + ", ".join(_toml_lines(value)) + "}"
        case list():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
        case _:
            raise LocalStackError(f"a setting of type {type(value).__name__} cannot be written to heliograph.toml")


# --- The stack --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a person may choose about a stack."""

    state_dir: Path
    config: Path | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    initialisers: tuple[str, ...] | None = None
    """`module:function` of each; None for those of console.local.initialise."""


class Stack:
    """The whole local stack of one state directory: its ports, settings and children. The lock must be held."""

    def __init__(self, options: StackOptions, book: PortBook) -> None:
        self.files = StateFiles(options.state_dir)
        self._options = options
        self._tables = read_toml(options.config) if options.config else {}
        ports = {name: book.reserve(name, options.ports.get(name)) for name in PORT_NAMES}
        kafka_controller = book.reserve("kafka-controller")
        self._apns_port = book.reserve("apns")
        self._callbacks = self._callback_tables(book.reserve("callbacks-public"))
        self._role_ports = {role: ports["api"] if role == "api" else book.reserve(role) for role in ROLES}
        self._ports = ports
        self._kafka = KafkaServer(self.files.data("kafka"), ports["kafka"], kafka_controller)
        self._postgres = PostgresServer(self.files.data("postgres"), ports["postgres"])
        self._secrets = self._load_secrets()
        self._environment = _base_environment(os.environ)
        self._supervisor_birth = birth_of(os.getpid()) or ""

    def run(self) -> int:
        """The supervisor's life; its exit code."""
        providers = merge_providers(self._tables.get("providers", []), self._simulated_providers())
        tables = {**self._tables, "callbacks": self._callbacks, "providers": providers}
        write_atomically(self.files.settings, to_toml(tables))
        supervisor = Supervisor(self._infrastructure(), self._roles(), self._initialise, self._publish)
        supervisor.watch_signals()
        try:
            return supervisor.run()
        finally:
            self.files.endpoints.unlink(missing_ok=True)

    def endpoints(self, pids: Mapping[str, int]) -> dict[str, Any]:
        """The content of endpoints.json."""
        return {
            "api": self._url("api"),
            "kafka": self._kafka.bootstrap_servers,
            "postgres": self._postgres.dsn,
            "clickhouse": self._url("clickhouse"),
            "clickhouse_database": CLICKHOUSE_DATABASE,
            "smtp": f"{LOOPBACK}:{self._ports['smtp']}",
            "mailbox": self._url("mailbox"),
            "simulator": self._url("simulator"),
            "tenant": TENANT,
            "api_key": "",
            **self._secrets["published"],
            "pids": dict(pids),
            "metrics": {role: f"http://{LOOPBACK}:{port}/metrics" for role, port in self._role_ports.items()},
        }

    def _callback_tables(self, port: int) -> dict[str, Any]:
        """Where providers report: here, unless the user's own settings say otherwise."""
        own = self._tables.get("callbacks", {})
        if not isinstance(own, dict):
            raise LocalStackError("wrong settings: callbacks is a table, [callbacks]")
        port = own.get("port", port)
        return {"host": LOOPBACK, "port": port, "public_url": f"http://{LOOPBACK}:{port}", **own}

    def _url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self._ports[name]}"

    def _publish(self, supervisor: Supervisor, reason: str | None) -> None:
        running = {child.name: child.identity for child in supervisor.children if child.identity is not None}
        running["supervisor"] = Identity(os.getpid(), self._supervisor_birth)
        if supervisor.phase == "ready":  # first, because whoever reads "ready" in the status reads the endpoints next
            pids = {name: identity.pid for name, identity in running.items()}
            write_atomically(self.files.endpoints, json.dumps(self.endpoints(pids), indent=2) + "\n")
        self.files.write_status(supervisor.phase, reason, running)

    def _load_secrets(self) -> dict[str, Any]:
        found = self.files.read(self.files.secrets)
        if "key_pepper" not in found:
            # kept, because a new pepper would revoke every API key of the state directory
            found = {"key_pepper": secrets.token_urlsafe(32), "published": {}}
            write_atomically(self.files.secrets, json.dumps(found, indent=2) + "\n")
        return found

    def _initialise(self) -> None:
        # this process reads its settings exactly as a role does
        os.environ.update(self._role_environment("initialise"))
        settings = load_settings()
        # imported only now: it reaches down to every store's client, which must not delay the start of the stores
        from console.local.initialise import INITIALISERS, Initialisation, Initialiser

        wanted = INITIALISERS if self._options.initialisers is None else self._options.initialisers
        for name in wanted:
            module, _, function = name.partition(":")
            initialiser: Initialiser = getattr(importlib.import_module(module), function)
            result = initialiser(Initialisation(settings, TENANT, dict(self._secrets["published"])))
            if result:
                self._secrets["published"].update(result)
                write_atomically(self.files.secrets, json.dumps(self._secrets, indent=2) + "\n")

    def _infrastructure(self) -> list[ChildSpec]:
        data, ports = self.files.data, self._ports
        simulator = ("--data-dir", str(data("simulator")), "--maildir", str(data("maildir")))
        return [
            self._spec(
                "kafka", self._kafka.command, self._kafka.is_ready, prepare=self._kafka.prepare, ready_timeout_s=90.0
            ),
            self._spec(
                "postgres",
                self._postgres.command,
                self._postgres.is_ready,
                prepare=self._postgres.prepare,
                before_start=self._postgres.clear_strays,
                stop_signal=signal.SIGINT,  # the fast shutdown: SIGTERM waits for every client to leave
            ),
            self._python(
                "clickhouse",
                ports["clickhouse"],
                ("console.local.clickhouse_server", "--path", str(data("clickhouse")), "--port"),
            ),
            self._python(
                "simulator",
                ports["simulator"],
                (
                    "console.local.simulator",
                    *simulator,
                    "--smtp-port",
                    str(ports["smtp"]),
                    "--apns-port",
                    str(self._apns_port),
                    "--http-port",
                ),
            ),
            self._python(
                "mailbox",
                ports["mailbox"],
                ("console.local.mailbox", "--maildir", str(data("maildir")), "--port"),
            ),
        ]

    def _roles(self) -> list[ChildSpec]:
        return [
            self._spec(
                role,
                partial(_role_command, words),
                _answers_ready(self._role_ports[role]),
                environment=partial(self._role_environment, role),
            )
            for role, words in ROLES.items()
        ]

    def _python(self, name: str, port: int, words: Sequence[str]) -> ChildSpec:
        return self._spec(name, lambda: (sys.executable, "-P", "-m", *words, str(port)), _answers_ready(port))

    def _spec(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        is_ready: Callable[[], bool],
        *,
        environment: Callable[[], Mapping[str, str]] | None = None,
        **more: Any,
    ) -> ChildSpec:
        return ChildSpec(
            name=name,
            command=command,
            is_ready=is_ready,
            log=self.files.log(name),
            environment=environment or (lambda: self._environment),
            directory=self._options.state_dir,
            **more,
        )

    def _role_environment(self, role: str) -> dict[str, str]:
        return {
            **self._environment,
            "HELIOGRAPH_CONFIG": str(self.files.settings),
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "HELIOGRAPH_POSTGRES__DSN": self._postgres.dsn,
            "HELIOGRAPH_CLICKHOUSE__URL": self._url("clickhouse"),
            "HELIOGRAPH_CLICKHOUSE__DATABASE": CLICKHOUSE_DATABASE,
            "HELIOGRAPH_PARTITIONS": "local",
            "HELIOGRAPH_API__HOST": LOOPBACK,
            "HELIOGRAPH_API__PORT": str(self._ports["api"]),
            "HELIOGRAPH_API__KEY_PEPPER": self._secrets["key_pepper"],
            "HELIOGRAPH_METRICS__HOST": LOOPBACK,
            "HELIOGRAPH_METRICS__PORT": str(self._role_ports.get(role, 0)),
        }

    def _simulated_providers(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "simulator-smtp",
                "channel": "email",
                "kind": "smtp",
                "host": LOOPBACK,
                "port": self._ports["smtp"],
                "tls": "none",
                "from_address": "Heliograph <no-reply@heliograph.localhost>",
            },
            {
                "name": "simulator-twilio",
                "channel": "sms",
                "kind": "twilio",
                "base_url": self._url("simulator"),
                "account_sid": "AC" + "0" * 32,
                "auth_token": "simulator",
                "from": "+15005550006",
                "callback_url": f"{self._callbacks['public_url']}/callbacks/twilio",
            },
            {
                "name": "simulator-fcm",
                "channel": "push",
                "kind": "fcm",
                "base_url": self._url("simulator"),
                "credentials_file": str(self.files.data("simulator") / "fcm-credentials.json"),
                "project_id": "simulator",
            },
            {
                "name": "simulator-apns",
                "channel": "push",
                "kind": "apns",
                "base_url": f"http://{LOOPBACK}:{self._apns_port}",
                "key_file": str(self.files.data("simulator") / APNS_KEY_FILE),
                "key_id": APNS_KEY_ID,
                "team_id": APNS_TEAM_ID,
                "topic": APNS_TOPIC,
            },
        ]


def _base_environment(own: Mapping[str, str]) -> dict[str, str]:
    # what the user's shell says about stores and public addresses is about others than ours
    places = ("KAFKA__", "POSTGRES__", "CLICKHOUSE__", "CALLBACKS__", "CONFIG")
    others = tuple(f"HELIOGRAPH_{place}" for place in places)
    base = {key: value for key, value in own.items() if not key.startswith(others)}
    paths = [str(Path(console.__file__).resolve().parent.parent), *filter(None, [base.get("PYTHONPATH")])]
    return {**base, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _role_command(words: Sequence[str]) -> Sequence[str]:
    return (sys.executable, "-P", "-m", "console.cli", "run", *words)


def _answers_ready(port: int) -> Callable[[], bool]:
    def is_ready() -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return is_ready


def end_strays(files: StateFiles, timeout_s: float = 10.0) -> list[str]:
    """Kill what an earlier supervisor left behind, newest layer first; the names of what was still there."""
    left = {name: identity for name, identity in files.recorded().items() if identity.is_running()}
    left.pop("supervisor", None)
    for identity in left.values():
        identity.send(signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    while any(identity.is_running() for identity in left.values()):
        if time.monotonic() > deadline:
            names = ", ".join(f"{name} (pid {it.pid})" for name, it in left.items() if it.is_running())
            raise LocalStackError(f"processes of an earlier stack do not end: {names}; end them and try again")
        time.sleep(0.02)
    return sorted(left)


def serve(options: StackOptions) -> int:
    """Lock the state directory and run its stack. The exit code: 0 after an orderly stop."""
    files = StateFiles(options.state_dir)
    handle = files.take_lock()
    book = PortBook()
    try:
        strays = end_strays(files)
        if strays:
            _log.warning("ended what an earlier stack left behind: %s", ", ".join(strays))
        return Stack(options, book).run()
    except HeliographError as exc:
        # `up` waits for this file, not for the exit code: it may be another process than the one that asked for the start
        files.write_status("failed", str(exc), {})
        raise
    finally:
        book.close()
        os.close(handle)


def parse_arguments(arguments: Sequence[str] | None) -> StackOptions:
    """The command line of the supervisor."""
    parser = argparse.ArgumentParser(prog="python -m console.local.supervisor", description="Keep a local stack alive.")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--initialiser", action="append", metavar="MODULE:FUNCTION")
    for name in PORT_NAMES:
        parser.add_argument(f"--{name}-port", type=int)
    options = parser.parse_args(arguments)
    chosen = {name: getattr(options, f"{name}_port") for name in PORT_NAMES}
    return StackOptions(
        state_dir=options.state_dir.absolute(),
        config=options.config.absolute() if options.config else None,
        ports={name: port for name, port in chosen.items() if port is not None},
        initialisers=tuple(options.initialiser) if options.initialiser else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stack until SIGTERM; a failure is one line in supervisor.json and on stderr."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        return serve(options)
    except HeliographError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    # at once: a download that is under way in a thread would hold up the end of a stack that was stopped early
    os._exit(exit_code)

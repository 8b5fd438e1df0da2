"""What a local stack consists of: its processes, their ports and settings, and the order in which they start.

May import local, runtime.settings, runtime.errors, schemas.channels, vendors.registry. Never: what an initialiser does, and anything a role needs to know but
its settings.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as clock_time
from functools import partial
from pathlib import Path
from typing import Any

import local
from local import LocalStackError
from local.ports import LOOPBACK, PortBook
from local.processes import ChildSpec, Identity, start_time_of
from local.servers.kafka import KafkaServer
from local.servers.postgres import PostgresServer
from local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC, HOOK_ACCOUNTS, WRONG_SECRET
from local.supervisor.children import Supervisor
from local.supervisor.state import StateFiles, write_atomically
from runtime.settings import load_settings, read_toml
from schemas.channels import CHANNELS
from schemas.events import LANES
from vendors.registry import channel_of, create_senders

TENANT = "default"
CLICKHOUSE_DATABASE = "heliograph"
PORT_NAMES = ("api", "kafka", "postgres", "clickhouse", "smtp", "mailbox", "simulator")
"""Ports a person may fix, by the name of their option."""
CRITICAL = LANES[0]
ROLES: Mapping[str, tuple[str, ...]] = {
    "api": ("api",),
    "relay": ("relay",),
    "router-critical": ("router", "--lane", "critical"),
    "router-normal": ("router", "--lane", "normal"),
    "router-bulk": ("router", "--lane", "bulk"),
    "timers": ("timers",),
    **{f"sender-{channel}": ("sender", "--channel", channel) for channel in CHANNELS},
    "sink": ("sink",),
    "callbacks": ("callbacks",),
    "hooks": ("hooks",),
    "bounces": ("bounces",),
}
"""Role names, and what follows `heliograph run`. `bounces` is started only where an account has a mailbox for it."""
SHARED = tuple(role for role in ROLES if role.startswith(("router-", "sender-")) or role in ("timers", "sink", "hooks"))
"""Roles whose processes share partitions. Two of the others would need a load balancer, or one would wait for the other's end."""
_APART = {f"{role}-{CRITICAL}": role for role in ROLES if role.startswith("sender-")}
COUNTED = (*SHARED, *_APART)
"""Whose number of processes may be asked for: SHARED, and senders of the critical lane alone, which run only where asked for and
whose channel's sender then leaves that lane to them."""


def merge_providers(own: Sequence[dict[str, Any]], simulated: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The user's providers in their order, then the simulator's for every channel the user says nothing about."""
    taken = {provider.get("channel") for provider in own}
    return [*own, *(provider for provider in simulated if provider["channel"] not in taken)]


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML of settings: top-level values, then tables, then arrays of tables; what is deeper is written inline."""
    plain = []
    sections = []
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


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a person may choose about a stack."""

    state_dir: Path
    config: Path | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    initialisers: tuple[str, ...] | None = None
    """`module:function` of each; None for those of local.initialise."""
    processes: Mapping[str, int] = field(default_factory=dict)
    """How many of a role of COUNTED; one of SHARED where nothing is said, none of the others."""
    failover: bool = False
    """Three simulated accounts of e-mail and of SMS in place of one: of SMS the first is refused by its vendor."""


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
        self._commands = dict(_processes(options.processes))
        if not _reads_bounces(self._tables.get("providers", [])):
            del self._commands["bounces"]
        self._role_ports = {name: ports["api"] if name == "api" else book.reserve(name) for name in self._commands}
        self._ports = ports
        self._kafka = KafkaServer(self.files.data("kafka"), ports["kafka"], kafka_controller)
        self._postgres = PostgresServer(self.files.data("postgres"), ports["postgres"])
        self._secrets = self._load_secrets()
        self._environment = _base_environment(os.environ)
        self._supervisor_start_time = start_time_of(os.getpid()) or ""

    def run(self) -> int:
        """The supervisor's life; its exit code."""
        self._check_settings()
        providers = merge_providers(self._tables.get("providers", []), self._simulated_providers())
        tables = {
            **self._tables,
            "api": self._api_tables(),
            "callbacks": self._callbacks,
            "outbound": self._outbound_tables(),
            "providers": providers,
        }
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

    def _api_tables(self) -> dict[str, Any]:
        """It ends at once: no load balancer shares calls out here, and whoever stops the stack waits for it."""
        return {"drain_s": 0.0, **self._own_table("api")}

    def _callback_tables(self, port: int) -> dict[str, Any]:
        """Where providers report: here, unless the user's own settings say otherwise."""
        own = self._own_table("callbacks")
        port = own.get("port", port)
        return {"host": LOOPBACK, "port": port, "public_url": f"http://{LOOPBACK}:{port}", "drain_s": 0.0, **own}

    def _outbound_tables(self) -> dict[str, Any]:
        """The simulator's push service and its receivers of webhooks are on this machine."""
        own = self._own_table("outbound")
        return {**own, "allow": [LOOPBACK, *own.get("allow", [])]}

    def _own_table(self, name: str) -> dict[str, Any]:
        own = self._tables.get(name, {})
        if not isinstance(own, dict):
            raise LocalStackError(f"wrong settings: {name} is a table, [{name}]")
        return own

    def _url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self._ports[name]}"

    def _publish(self, supervisor: Supervisor, reason: str | None) -> None:
        running = {child.name: child.identity for child in supervisor.children if child.identity is not None}
        running["supervisor"] = Identity(os.getpid(), self._supervisor_start_time)
        if supervisor.phase == "ready":  # first, because whoever reads "ready" in the status reads the endpoints next
            pids = {name: identity.pid for name, identity in running.items()}
            write_atomically(self.files.endpoints, json.dumps(self.endpoints(pids), indent=2) + "\n")
        self.files.write_status(supervisor.phase, reason, running)

    def _load_secrets(self) -> dict[str, Any]:
        found = self.files.read(self.files.secrets)
        # Kept: a new pepper would revoke every API key of the state directory, a new VAPID key every browser's subscription.
        made = {
            "key_pepper": secrets.token_urlsafe(32),
            "hooks_key": secrets.token_urlsafe(32),
            "vapid_key": _private_key(),
            "published": {},
            **found,
        }
        if made != found:
            write_atomically(self.files.secrets, json.dumps(made, indent=2) + "\n")
        return made

    def _check_settings(self) -> None:
        """Refuse now what a role would refuse of the user's file once everything it needs has started. Raises SettingsError."""
        if self._options.config is not None:
            os.environ["HELIOGRAPH_CONFIG"] = str(self._options.config)
            for provider in load_settings().providers:
                create_senders(provider.channel, [provider])

    def _initialise(self) -> None:
        # this process reads its settings exactly as a role does
        os.environ.update(self._role_environment("initialise"))
        settings = load_settings()
        # imported only now: it reaches down to every store's client, which must not delay the start of the stores
        from local.initialise import INITIALISERS, Initialisation, Initialiser

        wanted = INITIALISERS if self._options.initialisers is None else self._options.initialisers
        for name in wanted:
            module, _, function = name.partition(":")
            initialiser: Initialiser = getattr(importlib.import_module(module), function)
            result = initialiser(Initialisation(settings, TENANT, dict(self._secrets["published"])))
            if result:
                self._secrets["published"].update(result)
                write_atomically(self.files.secrets, json.dumps(self._secrets, indent=2) + "\n")

    def _infrastructure(self) -> list[ChildSpec]:
        data = self.files.data
        ports = self._ports
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
                before_start=self._postgres.clear_leftovers,
                stop_signal=signal.SIGINT,  # the fast shutdown: SIGTERM waits for every client to leave
            ),
            self._python(
                "clickhouse",
                ports["clickhouse"],
                ("local.servers.clickhouse", "--path", str(data("clickhouse")), "--port"),
            ),
            self._python(
                "simulator",
                ports["simulator"],
                (
                    "local.simulator",
                    *simulator,
                    "--smtp-port",
                    str(ports["smtp"]),
                    "--apns-port",
                    str(self._apns_port),
                    "--http-port",
                ),
            ),
            self._python("mailbox", ports["mailbox"], ("local.mailbox", "--maildir", str(data("maildir")), "--port")),
        ]

    def _roles(self) -> list[ChildSpec]:
        return [
            self._spec(
                name,
                partial(_role_command, words),
                _answers_ready(self._role_ports[name]),
                environment=partial(self._role_environment, name),
            )
            for name, words in self._commands.items()
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

    def _role_environment(self, name: str) -> dict[str, str]:
        # Two processes of a role cannot keep their views in one directory.
        views = {} if name in ROLES else {"HELIOGRAPH_VIEWS__DIRECTORY": str(self.files.data("views") / name)}
        return {
            **self._environment,
            **views,
            "HELIOGRAPH_CONFIG": str(self.files.settings),
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "HELIOGRAPH_POSTGRES__DSN": self._postgres.dsn,
            "HELIOGRAPH_CLICKHOUSE__URL": self._url("clickhouse"),
            "HELIOGRAPH_CLICKHOUSE__DATABASE": CLICKHOUSE_DATABASE,
            "HELIOGRAPH_PARTITIONS": "local",
            "HELIOGRAPH_API__HOST": LOOPBACK,
            "HELIOGRAPH_API__PORT": str(self._ports["api"]),
            "HELIOGRAPH_API__KEY_PEPPER": self._secrets["key_pepper"],
            "HELIOGRAPH_HOOKS__KEY": self._secrets["hooks_key"],
            "HELIOGRAPH_METRICS__HOST": LOOPBACK,
            "HELIOGRAPH_METRICS__PORT": str(self._role_ports.get(name, 0)),
        }

    def _simulated_providers(self) -> list[dict[str, Any]]:
        before, after = self._failover_providers() if self._options.failover else ((), ())
        return [
            *before,
            {
                "name": "simulator-smtp",
                "channel": channel_of("smtp"),
                "kind": "smtp",
                "host": LOOPBACK,
                "port": self._ports["smtp"],
                "tls": "none",
                "from_address": "Heliograph <no-reply@heliograph.localhost>",
            },
            {
                "name": "simulator-twilio",
                "channel": channel_of("twilio"),
                "kind": "twilio",
                "base_url": self._url("simulator"),
                "account_sid": "AC" + "0" * 32,
                "auth_token": "simulator",
                "from": "+15005550006",
                "callback_url": f"{self._callbacks['public_url']}/callbacks/twilio",
            },
            *after,
            {
                "name": "simulator-fcm",
                "channel": channel_of("fcm"),
                "kind": "fcm",
                "base_url": self._url("simulator"),
                "credentials_file": str(self.files.data("simulator") / "fcm-credentials.json"),
                "project_id": "simulator",
            },
            {
                "name": "simulator-apns",
                "channel": channel_of("apns"),
                "kind": "apns",
                "base_url": f"http://{LOOPBACK}:{self._apns_port}",
                "key_file": str(self.files.data("simulator") / APNS_KEY_FILE),
                "key_id": APNS_KEY_ID,
                "team_id": APNS_TEAM_ID,
                "topic": APNS_TOPIC,
            },
            *(
                {"name": f"simulator-{kind}", "channel": channel_of(kind), "kind": kind, **keys}
                for kind, keys in HOOK_ACCOUNTS.items()
            ),
            {
                "name": "simulator-onesignal",
                "channel": channel_of("onesignal"),
                "kind": "onesignal",
                "base_url": self._url("simulator"),
                "app_id": "00000000-0000-4000-8000-000000000000",
                "api_key": "simulator",
            },
            {
                "name": "simulator-webpush",
                "channel": channel_of("webpush"),
                "kind": "webpush",
                "private_key": self._secrets["vapid_key"],
                "subject": "mailto:push@heliograph.example",
                "hosts": [LOOPBACK],
            },
        ]

    def _failover_providers(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Accounts that are asked before those that every stack has, and after them."""
        sms = {"channel": channel_of("vonage"), "base_url": self._url("simulator"), "key": "simulator"}
        email = {"channel": channel_of("sendgrid"), "base_url": self._url("simulator"), "api_key": "simulator"}
        sender = {"from_address": "Heliograph <no-reply@heliograph.localhost>"}
        before = [
            {**sms, "name": "simulator-vonage", "kind": "vonage", "secret": WRONG_SECRET, "from": "Heliograph"},
            {**sms, "name": "simulator-bulksms", "kind": "bulksms", "secret": "simulator", "from": "Heliograph"},
        ]
        after = [
            {**email, **sender, "name": "simulator-sendgrid", "kind": "sendgrid"},
            {**email, **sender, "name": "simulator-mailgun", "kind": "mailgun", "domain": "heliograph.localhost"},
        ]
        return before, after


def _private_key() -> str:
    """A key of P-256 as base64url: below 2^255 every number but 0 is one."""
    value = secrets.randbits(255) or 1
    return base64.urlsafe_b64encode(value.to_bytes(32)).decode().rstrip("=")


def _reads_bounces(providers: object) -> bool:
    """Whether an account has a mailbox of bounces; what is no account at all is refused elsewhere."""
    entries = providers if isinstance(providers, list) else []
    return any(isinstance(entry, dict) and entry.get("bounces") for entry in entries)


def _processes(wanted: Mapping[str, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name, what follows `heliograph run`) of every process: the second of a role is `sender-email-2`."""
    commands = dict(ROLES)
    for apart in wanted.keys() & _APART.keys():
        whole = ROLES[_APART[apart]]
        commands[apart] = (*whole, "--lane", CRITICAL)
        commands[_APART[apart]] = (*whole, *(word for lane in LANES if lane != CRITICAL for word in ("--lane", lane)))
    for role, words in commands.items():
        yield role, words
        yield from ((f"{role}-{n}", words) for n in range(2, wanted.get(role, 1) + 1))


def _base_environment(own: Mapping[str, str]) -> dict[str, str]:
    # what the user's shell says about stores and public addresses is about others than ours
    places = ("KAFKA__", "POSTGRES__", "CLICKHOUSE__", "CALLBACKS__", "OUTBOUND__", "CONFIG")
    others = tuple(f"HELIOGRAPH_{place}" for place in places)
    base = {key: value for key, value in own.items() if not key.startswith(others)}
    paths = [str(Path(local.__file__).resolve().parent.parent), *filter(None, [base.get("PYTHONPATH")])]
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

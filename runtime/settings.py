"""Settings of every process: `HELIOGRAPH_` environment variables (nesting `__`) over `heliograph.toml` over defaults.

Read once in main by `load_settings()` and passed down; frozen; secrets are SecretStr.
May import pydantic-settings. Never: a client, a default that is a secret, a read at import.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from runtime.errors import SettingsError
from schemas.channels import CHANNELS
from schemas.identity import check_tenant

PREFIX = "HELIOGRAPH_"
DEFAULT_FILE = "heliograph.toml"
# Read elsewhere: by this function, by commands that call the API, by the tests and by the local stack.
_OTHER_VARIABLES = {"CONFIG", "API_KEY", "TEST_STACK", "TEST_REGISTRY", "CACHE_DIR"}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_SECRET_OPTIONS = re.compile(r"password|secret|\.pem$|jaas\.config|oauthbearer\.config|token")
"""By name, of librdkafka's: sasl.password, ssl.key.password, ssl.keystore.password, ssl.key.pem, sasl.oauthbearer.*, ..."""


class KafkaSettings(_Section):
    """`options` are librdkafka's own (security.protocol, sasl.*, ...) and reach every client but Faust's.

    Those that are secrets are hidden wherever settings are shown.
    """

    bootstrap_servers: str = "127.0.0.1:9092"
    options: dict[str, str | SecretStr] = {}

    @field_validator("options", mode="after")
    @classmethod
    def _hide_secrets(cls, options: dict[str, str | SecretStr]) -> dict[str, str | SecretStr]:
        return {
            name: SecretStr(value) if isinstance(value, str) and _SECRET_OPTIONS.search(name) else value
            for name, value in options.items()
        }

    def client_options(self) -> dict[str, str]:
        """The options as a client takes them, secrets included."""
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self.options.items()
        }


class SchemaRegistrySettings(_Section):
    """`url` None: schema ids are those of schemas/manifest.json."""

    url: str | None = None
    username: str | None = None
    password: SecretStr = SecretStr("")


class PostgresSettings(_Section):
    dsn: SecretStr = SecretStr("postgresql://heliograph@127.0.0.1:5432/heliograph")
    pool_size: Annotated[int, Field(ge=1, le=100)] = 8


class AnalystSettings(_Section):
    """A user of ClickHouse who only reads the public views; `heliograph migrate` makes it."""

    username: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")] | None = None
    password: SecretStr = SecretStr("")
    # Whose rows it reads; all tenants' unless given.
    tenants: tuple[str, ...] = ()
    # The most that one of its queries may take.
    max_execution_s: Annotated[int, Field(ge=1)] = 60
    max_memory_bytes: Annotated[int, Field(ge=1_000_000)] = 4_000_000_000
    max_result_rows: Annotated[int, Field(ge=1)] = 1_000_000

    @model_validator(mode="after")
    def _has_a_password(self) -> AnalystSettings:
        if self.username is not None and not self.password.get_secret_value():
            raise ValueError("username and password are given together")
        return self


class ClickHouseSettings(_Section):
    url: str = "http://127.0.0.1:8123"
    database: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "heliograph"
    username: str = "default"
    password: SecretStr = SecretStr("")
    # For https: whom to trust (default: the system's authorities), and who we are where the server asks for it.
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    verify: bool = True
    analyst: AnalystSettings = AnalystSettings()

    @model_validator(mode="after")
    def _analyst_is_another(self) -> ClickHouseSettings:
        if self.analyst.username == self.username:
            raise ValueError("analyst.username is our own username, which would lose its rights: give another one")
        return self

    @property
    def internal_database(self) -> str:
        """Where the views are that only other views and our own queries read."""
        return f"{self.database}_internal"


class ApiSettings(_Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    # How long a 202 may wait for the broker's acknowledgement before it becomes a 503.
    publish_timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    # How long after SIGTERM calls are still taken, while /readyz says 503: longer than whoever shares them out looks at it.
    drain_s: Annotated[float, Field(ge=0, le=60)] = 5.0
    # API keys are stored as HMAC-SHA-256 under this; changing it revokes them all.
    key_pepper: SecretStr = SecretStr("")
    # Notifications and other calls per API key and process; twice that at once after a pause.
    rate_limit_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None


def _listed(value: Any) -> Any:
    """A list, where a variable of the environment has its items behind commas."""
    return [entry for item in value.split(",") if (entry := item.strip())] if isinstance(value, str) else value


_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-]{1,253}(?::[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")


class LiveSettings(_Section):
    """Live status. `allowed_origins` are those of other sites whose pages may watch, with a stream token."""

    # Streams at once in one process; more are refused with 503.
    max_watchers: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    allowed_origins: Annotated[tuple[str, ...] | str, BeforeValidator(_listed)] = ()

    @field_validator("allowed_origins", mode="after")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "an origin is a scheme and a host, as in https://shop.example.com or http://localhost:3000"
                )
        return tuple(origin.lower() for origin in origins)


class CallbackSettings(_Section):
    """Where providers report deliveries. `public_url` is the address that they are given, and that they sign."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8088
    public_url: str | None = None
    # How long a callback may wait for the broker's acknowledgement before it is a 503; vendors wait 15 s in all.
    publish_timeout_s: Annotated[float, Field(gt=0, le=15)] = 5.0
    # As api.drain_s.
    drain_s: Annotated[float, Field(ge=0, le=60)] = 5.0


class HookSettings(_Section):
    """Facts that customers are told. Without `key` there are no webhooks: it seals their signing secrets where they are stored."""

    # One, or two with white space between them while one replaces the other: the first seals, both open.
    key: SecretStr = SecretStr("")
    # Seconds before each try of a fact that was refused; the last of them for an endpoint that stays away.
    schedule_s: Annotated[tuple[Annotated[float, Field(ge=0, le=604_800)], ...], Field(min_length=2, max_length=20)] = (
        0.0,
        5.0,
        300.0,
        1_800.0,
        7_200.0,
        18_000.0,
        36_000.0,
        50_400.0,
        72_000.0,
        86_400.0,
    )


class MetricsSettings(_Section):
    """Where a role that serves no other HTTP answers /livez, /readyz and /metrics; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0


class RouterSettings(_Section):
    engine: Literal["faust", "loop"] = "faust"
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 500


class SenderSettings(_Section):
    """`window` is the number of messages in flight per process, `commit_interval_ms` the least time between two commits of few
    messages; after many it is half of that.

    `read_ahead_mib` is what it holds of the topics' records at most, read ahead, parked and in flight.
    """

    window: Annotated[int, Field(ge=1, le=4_000)] = 512
    commit_interval_ms: Annotated[int, Field(ge=1, le=1_000)] = 10
    max_retries: Annotated[int, Field(ge=0, le=5)] = 5
    drain_timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    read_ahead_mib: Annotated[int, Field(ge=16, le=65_536)] = 64


class SinkSettings(_Section):
    flush_interval_ms: Annotated[int, Field(ge=10, le=60_000)] = 500
    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 200_000


class DeadLetterSettings(_Section):
    """The dead-letter brake: halts at `min_count` in `window_s`, if more than `max_ratio` are unusable; 1 switches it off."""

    max_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    min_count: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    window_s: Annotated[float, Field(ge=1, le=3_600)] = 60.0


class ViewSettings(_Section):
    """Where views keep their data: `rocksdb` restarts in seconds and holds more than memory does.

    `directory` is on a disk of this process: two processes of one role on a machine need two.
    """

    backend: Literal["memory", "rocksdb"] = "memory"
    directory: Path = Path("views")


_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


class OutboundSettings(_Section):
    """Requests to URLs that users give go to public addresses; `allow` opens others: host names, addresses, networks.

    For tests and the local stack. What is behind an entry may then be asked for by whoever may give a URL.
    """

    allow: Annotated[tuple[str, ...] | str, BeforeValidator(_listed)] = ()

    @field_validator("allow", mode="after")
    @classmethod
    def _are_hosts_or_networks(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        for entry in allow:
            if _network(entry) is None and (not _HOST.fullmatch(entry.lower()) or entry[-1:].isdigit()):
                raise ValueError(
                    "an entry is a host name, an address or a network: localhost, 127.0.0.1, ::1, 10.0.0.0/8"
                )
        return allow

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        """The entries that are networks, or addresses."""
        return [network for entry in self.allow if (network := _network(entry)) is not None]

    @property
    def hosts(self) -> frozenset[str]:
        """The entries that are names, in lower case."""
        return frozenset(entry.lower() for entry in self.allow if _network(entry) is None)


def _network(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(entry)
    except ValueError:
        return None


class BreakerSettings(_Section):
    """Open after `failures` in a row, one probe every `reset_s`; after failing for `give_up_s` no message waits for it."""

    failures: Annotated[int, Field(ge=1)] = 10
    reset_s: Annotated[float, Field(gt=0)] = 30.0
    give_up_s: Annotated[float, Field(gt=0)] = 3_600.0


def _served(channel: str) -> str:
    if channel not in CHANNELS:
        raise PydanticCustomError("channel", f"no role sends on this channel; the channels are {', '.join(CHANNELS)}")
    return channel


class ProviderSettings(BaseModel):
    """What every provider account has; a provider's own keys are kept as they are and checked by its own module."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    channel: Annotated[str, AfterValidator(_served)]
    kind: str
    rate_per_second: Annotated[float, Field(gt=0)] | None = None
    max_in_flight: Annotated[int, Field(ge=1, le=4_000)] = 64
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    breaker: BreakerSettings = BreakerSettings()
    # What the account charges for a message it takes; only analytics look at it. One without the other says nothing.
    price_per_message: Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=6)] | None = None
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    # For whom the account sends: an opt-out that its vendor reports holds for all of them.
    tenants: tuple[Annotated[str, AfterValidator(check_tenant)], ...] = ()
    # Whether its vendor is asked after a message that it may have, before that is sent again.
    reconcile: bool = False

    @model_validator(mode="after")
    def _price_has_its_currency(self) -> ProviderSettings:
        if (self.price_per_message is None) != (self.currency is None):
            raise ValueError("price_per_message and currency are given together")
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Without the provider's own keys: some are secrets, and only its own module knows which."""
        return ((name, value) for name, value in super().__repr_args__() if name in type(self).model_fields)


class Settings(BaseSettings):
    """All settings of a process. An unknown key is refused."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()
    postgres: PostgresSettings = PostgresSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    api: ApiSettings = ApiSettings()
    live: LiveSettings = LiveSettings()
    callbacks: CallbackSettings = CallbackSettings()
    hooks: HookSettings = HookSettings()
    metrics: MetricsSettings = MetricsSettings()
    router: RouterSettings = RouterSettings()
    sender: SenderSettings = SenderSettings()
    sink: SinkSettings = SinkSettings()
    views: ViewSettings = ViewSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    outbound: OutboundSettings = OutboundSettings()
    providers: tuple[ProviderSettings, ...] = ()
    partitions: Literal["local", "default"] = "default"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    crash_at: str | None = None
    """Test aid: the process kills itself at this named point (see runtime/process.py)."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's values come in as init arguments; the environment wins over them.
        return (env_settings, init_settings)


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables, with the providers' `*_file` paths made absolute (they are relative to the file)."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}; name a readable file") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not valid TOML: {exc}") from exc
    except RecursionError as exc:
        raise SettingsError(f"{path} is not valid TOML: nested too deep") from exc
    providers = tables.get("providers", [])
    for provider in providers if isinstance(providers, list) else ():  # anything else is refused with its place
        for table in (provider, *provider.values()) if isinstance(provider, dict) else ():
            for key, value in table.items() if isinstance(table, dict) else ():
                if key.endswith("_file") and isinstance(value, str):
                    table[key] = str((path.parent / value).resolve())
    return tables


def load_settings() -> Settings:
    """Read the environment and the file of `HELIOGRAPH_CONFIG` (else ./heliograph.toml where it exists).

    Raises SettingsError with one line per wrong setting that names it and says what is allowed.
    """
    named = os.environ.get(f"{PREFIX}CONFIG")
    path = Path(named or DEFAULT_FILE)
    tables = read_toml(path) if named or path.exists() else {}
    known = {name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX).split("__")[0] not in known:
            raise SettingsError(f"wrong settings: {variable} is not a setting; check its spelling")
    try:
        settings = Settings(**tables)
    except ValidationError as exc:
        problems = "; ".join(_problem(error) for error in exc.errors(include_url=False, include_input=False))
        raise SettingsError(f"wrong settings: {problems}") from exc
    except (SourceError, RecursionError) as exc:
        # A section may be given whole, as JSON; the library's words for it do not quote the value.
        reason = str(exc) if isinstance(exc, SourceError) else "a value is nested too deep"
        raise SettingsError(f"wrong settings: {reason}; a {PREFIX} variable of a section is JSON") from exc
    names = [provider.name for provider in settings.providers]
    if len(set(names)) != len(names):
        raise SettingsError("wrong settings: two [[providers]] have the same name; every name must be unique")
    return settings


def _problem(error: Any) -> str:
    where = "__".join(str(part) for part in error["loc"])
    return f"{PREFIX}{where.upper()} ({'.'.join(str(part) for part in error['loc'])} in {DEFAULT_FILE}): {error['msg']}"

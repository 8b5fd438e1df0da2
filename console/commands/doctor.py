"""`heliograph doctor`: what is wrong with an installation, one line per finding, each with what to do.

The checks are pure: what was measured goes in, findings come out. `examine` measures; a store that does not answer is one
finding, and what needs it is left out. Nothing is changed anywhere, and no secret is printed.

May import every layer, lazily. Never: a repair.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from console.commands.client import Api, ApiKey
from console.commands.doctor_accounts import built_accounts, check_accounts
from console.commands.doctor_probes import probe_all
from console.commands.doctor_running import (
    RoleReport,
    ask_roles,
    check_brakes,
    check_conditions,
    check_hooks,
    check_new_dead_letters,
    check_parked,
    check_roles,
    check_same_providers,
)
from console.commands.findings import Finding, Level, some
from console.commands.lag import consumer_groups, lag_of
from console.commands.output import plain, show
from console.commands.redaction import redacted, secrets_of
from console.commands.stack import DEFAULT_STATE_DIR, read_endpoints, stack_settings
from runtime import topics
from runtime.errors import HeliographError, SettingsError, UnavailableError
from runtime.settings import ProviderSettings, Settings, load_settings

if TYPE_CHECKING:
    from runtime.kafka.admin import Admin

T = TypeVar("T")

SLOW_MS = 500.0
"""A round trip above this makes every request of the API slow."""
SKEW_WARNING_S, SKEW_PROBLEM_S = 1.0, 30.0
"""Ids carry the time: a second is the most by which a status may seem older than its request, half a minute expires codes."""
LAG_WARNING = 10_000
LAG_WARNING_S = 60.0
DISK_WARNING, DISK_PROBLEM = 5 << 30, 1 << 30
"""Kafka's log segments alone take 1 GiB apiece."""
_TIMEOUT_S = 5.0
_NOBODY = "/v1/users/heliograph-doctor-asks"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a store or service answered to a probe: how fast, or why not."""

    latency_ms: float = 0.0
    error: str | None = None


# -- checks: pure -----------------------------------------------------------------------------------------------------


def check_connection(name: str, where: str, result: ProbeResult, fix: str) -> Finding:
    """Whether a store answers, and how fast."""
    if result.error is not None:
        # Errors for people end with advice of their own.
        return Finding(Level.PROBLEM, name, result.error.split("; is it running")[0], fix)
    said = f"{where} answers in {result.latency_ms:.0f} ms"
    if result.latency_ms > SLOW_MS:
        return Finding(Level.WARNING, name, said, "run the processes nearer to it, or look at its load")
    return Finding(Level.OK, name, said)


def check_topics(differences: Sequence[topics.TopicDifference], total: int) -> list[Finding]:
    """The cluster against schemas/topics.yaml, one finding per kind of difference."""
    odd = list(dict.fromkeys(d.topic for d in differences if d.what == "partitions"))
    profile = "set HELIOGRAPH_PARTITIONS to the profile the topics were made with"
    alone = (
        "it was not made by `heliograph topics apply`: with the producers stopped and everything of it read, delete it and run that"
        if len(odd) == 1
        else "they were not made by `heliograph topics apply`: with the producers stopped and all of them read, delete them and run that"
    )
    advice = {
        "missing": (Level.PROBLEM, "run `heliograph topics apply`"),
        # One profile is wrong for all of them, or somebody made a few by hand: setting another would break all the others.
        "partitions": (Level.PROBLEM, profile if 2 * len(odd) > total else alone),
        "config": (Level.WARNING, "run `heliograph topics apply`"),
    }
    found = []
    for kind, (level, fix) in advice.items():
        names = list(dict.fromkeys(d.topic for d in differences if d.what == kind))
        if names:
            what = {"missing": "missing", "partitions": "with another number of partitions", "config": "set otherwise"}
            found.append(Finding(level, "topics", f"{some(names)} {what[kind]}", fix))
    return found or [Finding(Level.OK, "topics", f"{total} as schemas/topics.yaml wants them")]


def check_copies(replication: Mapping[str, int], min_insync: Mapping[str, int], *, local: bool) -> Finding:
    """How many copies of a record there are when it is acknowledged; `local` is a stack of one machine."""
    single = [topic for topic, copies in replication.items() if min(copies, min_insync.get(topic, 1)) < 2]
    if not single:
        return Finding(Level.OK, "copies", "an acknowledged record is on two brokers at least")
    said = f"acks=all means one copy: {some(single)} acknowledge a record that one broker has"
    if local:
        return Finding(Level.OK, "copies", f"{said}, as one broker cannot do better")
    alone = [topic for topic in single if replication[topic] < 3]
    fix = (
        "give the topics three replicas (kafka-reassign-partitions.sh), then `heliograph topics apply`"
        if alone
        else "run `heliograph topics apply`"
    )
    return Finding(Level.WARNING, "copies", said, fix)


def check_migrations(store: str, packaged: Mapping[str, str], applied: Mapping[str, str]) -> Finding:
    """Packaged migrations (name → checksum, "" where the store keeps none) against those that ran in a store."""
    check = f"{store} tables"
    missing = [name for name in packaged if name not in applied]
    changed = [name for name, checksum in packaged.items() if checksum and applied.get(name, checksum) != checksum]
    unknown = sorted(set(applied) - set(packaged))
    if changed:
        return Finding(
            Level.PROBLEM,
            check,
            f"{some(changed)} ran in another form",
            "put it back, and change tables in a new migration",
        )
    if missing:
        return Finding(Level.PROBLEM, check, f"{some(missing)} not applied", "run `heliograph migrate`")
    if unknown:
        return Finding(
            Level.WARNING, check, f"{some(unknown)} from a newer version", "run the version that made them, or newer"
        )
    return Finding(Level.OK, check, f"up to date, {len(packaged)} migrations")


_VIEW_SAYS = {
    "missing": "missing",
    "outdated": "differs from its file",
    "edited": "differs from its file: it was changed in ClickHouse",
    "removed": "has no file any more",
}


def check_views(differences: Mapping[str, str], total: int, *, superseded: bool) -> Finding:
    """SQL views against their files: name → missing, outdated, edited or removed (sinks/schema_files.py).

    `superseded`: another version made its own after this one.
    """
    check = "clickhouse views"
    if not differences:
        return Finding(Level.OK, check, f"{total} as their files say")
    if superseded:
        said = f"{some(list(differences))} made by another version since"
        return Finding(Level.WARNING, check, said, "run that version, or `heliograph migrate` to put this one's back")
    said = "; ".join(
        f"{some(names)} {words}"
        for kind, words in _VIEW_SAYS.items()
        if (names := [name for name, difference in differences.items() if difference == kind])
    )
    level = Level.WARNING if set(differences.values()) == {"removed"} else Level.PROBLEM
    return Finding(level, check, said, "run `heliograph migrate`")


def check_schemas(faults: Sequence[str], records: int) -> Finding:
    """schemas/manifest.json against the schemas and their examples."""
    if faults:
        return Finding(Level.PROBLEM, "schemas", some(faults), "the installation is damaged: install it again")
    return Finding(Level.OK, "schemas", f"{records} records, one id each, every example encodes")


def check_registry(differing: Sequence[str]) -> Finding:
    """Subjects of the Schema Registry that are not as ours."""
    if differing:
        names = list(dict.fromkeys(differing))
        return Finding(Level.PROBLEM, "registry", f"{some(names)} not as here", "run `heliograph schemas register`")
    return Finding(Level.OK, "registry", "every subject as here")


def check_clock(before_s: float, store_s: float, after_s: float) -> Finding:
    """This machine's clock against a store's, read between two readings of ours."""
    # Only what the round trip cannot explain is skew.
    skew = before_s - store_s if store_s < before_s else store_s - after_s if store_s > after_s else 0.0
    if skew <= SKEW_WARNING_S:
        return Finding(Level.OK, "clock", f"within {SKEW_WARNING_S:g} s of PostgreSQL's")
    direction = "ahead of" if store_s < before_s else "behind"
    level = Level.PROBLEM if skew > SKEW_PROBLEM_S else Level.WARNING
    return Finding(
        level, "clock", f"{skew:.1f} s {direction} PostgreSQL's", "run a time service (NTP) on both machines"
    )


def check_lag(group: str, lag: int, behind_s: float | None, members: int | None) -> Finding:
    """How far a consumer group is behind, in seconds of its oldest record, and whether anybody is in it; None: not known."""
    if not lag:
        return Finding(Level.OK, "lag", f"{group} has read everything")
    what = f"{group} is {lag:,} records behind" + (f", the oldest {behind_s:.0f} s" if behind_s is not None else "")
    if members == 0:
        return Finding(
            Level.PROBLEM, "lag", f"{what}, and nobody is in the group", f"start `heliograph run {role_of(group)}`"
        )
    if lag > LAG_WARNING or (behind_s or 0.0) > LAG_WARNING_S:
        return Finding(
            Level.WARNING,
            "lag",
            what,
            "see that its role runs and is ready; then start more of it, up to its partitions",
        )
    return Finding(Level.OK, "lag", what)


def role_of(group: str) -> str:
    """What to start for a consumer group."""
    kind, _, which = group.removeprefix("heliograph-").partition("-")
    return {"router": f"router --lane {which}", "sender": f"sender --channel {which}", "hygiene": "relay"}.get(
        kind, kind
    )


def clickhouse_cure(error: str, otherwise: str) -> str:
    """What to do about a ClickHouse that refuses or does not answer."""
    if "authentication failed" in error.lower() or "REQUIRED_PASSWORD" in error:
        return "correct HELIOGRAPH_CLICKHOUSE__USERNAME and HELIOGRAPH_CLICKHOUSE__PASSWORD"
    return otherwise


def check_completeness(records: int, missing: int) -> Finding:
    """Whether ClickHouse has the requests that its sink has committed; `records` is how many those are, as far as they are kept."""
    if missing:
        said = f"at least {missing:,} of {records:,} requests that the sink has stored are not in ClickHouse"
        return Finding(Level.PROBLEM, "clickhouse rows", said, "run `heliograph sink rebuild`")
    return Finding(Level.OK, "clickhouse rows", f"a sample of the {records:,} committed requests is there")


def check_no_tables(database: str, records: int, missing: int) -> Finding:
    """A ClickHouse without tables: `missing` of the `records` requests that the sink has stored, 0 where it has stored none."""
    elsewhere = "or correct HELIOGRAPH_CLICKHOUSE__DATABASE"
    if not missing:
        what, cure = f"database {database} has none", f"run `heliograph migrate`, {elsewhere}"
    else:
        what = f"database {database} has none, and {missing:,} of {records:,} requests that the sink has stored are not in it"
        cure = f"run `heliograph sink rebuild`, which makes them too, {elsewhere}"
    return Finding(Level.PROBLEM, "clickhouse tables", what, cure)


def check_held_back(held: Mapping[tuple[str, int], int]) -> list[Finding]:
    """Partitions that nobody reads on because somebody's transaction is open."""
    return [
        Finding(
            Level.WARNING,
            "transactions",
            f"{count:,} records of {topic}, partition {number}, wait behind an open transaction",
            "end it (kafka-transactions.sh find-hanging, abort), or wait for the broker's transaction.max.timeout.ms",
        )
        for (topic, number), count in sorted(held.items())
    ]


def check_disk(directory: Path, free_bytes: int) -> Finding:
    """Room for the state."""
    what = f"{free_bytes / (1 << 30):.1f} GiB free for {directory}"
    if free_bytes < DISK_PROBLEM:
        return Finding(Level.PROBLEM, "disk", what, "make room: Kafka and the stores stop on a full disk")
    if free_bytes < DISK_WARNING:
        return Finding(Level.WARNING, "disk", what, "make room soon")
    return Finding(Level.OK, "disk", what)


def check_api_key(status: int | None, where: str) -> Finding:
    """What the API answered to a request with the key; None is no answer."""
    if status is None:
        return Finding(Level.PROBLEM, "api key", f"{where} does not answer", "start it, or correct --api")
    if status in (200, 404):
        return Finding(Level.OK, "api key", f"{where} takes it")
    if status in (401, 403):
        return Finding(Level.PROBLEM, "api key", f"{where} refuses it ({status})", "make one: `heliograph keys create`")
    return Finding(Level.PROBLEM, "api key", f"{where} answers {status}", "see the log of the API")


# -- measuring: the shell ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """What is examined; `endpoints` is empty without a local stack."""

    settings: Settings
    state_dir: Path
    endpoints: Mapping[str, Any]
    api: str | None = None
    api_key: str | None = None
    roles: Sequence[str] = ()
    """Addresses of processes to ask beside the local stack's."""
    probe_providers: bool = False
    """Whether vendors are asked."""


def target_of(
    settings: Settings,
    state_dir: Path,
    endpoints: Mapping[str, Any],
    api: str | None,
    api_key: str | None,
    roles: Sequence[str] = (),
    *,
    probe_providers: bool = False,
) -> Target:
    """The settings, moved to a local stack's own stores and providers where one is given."""
    if not endpoints:
        return Target(settings, state_dir, {}, api, api_key, roles, probe_providers)
    local = stack_settings(settings, state_dir, endpoints)
    url, key = api or endpoints["api"], api_key or endpoints["api_key"]
    return Target(local, state_dir, endpoints, url, key, roles, probe_providers)


def _timed(probe: Callable[[], T]) -> tuple[ProbeResult, T | None]:
    started = time.perf_counter()
    try:
        result = probe()
    except HeliographError as exc:
        return ProbeResult(error=str(exc)), None
    return ProbeResult((time.perf_counter() - started) * 1_000), result


def examine(target: Target) -> Iterator[Finding]:
    """Every finding, as soon as it is known."""
    built, refused = built_accounts(target.settings.providers)
    yield from check_accounts(target.settings, built, refused)
    if target.probe_providers:
        yield from probe_all(target.settings.providers)
    yield check_schemas(*_schemas())
    if target.settings.schema_registry.url is not None:
        yield from _registry(target.settings)
    down: list[str] = []
    for store, examined in (
        ("kafka", _kafka(target.settings, bool(target.endpoints))),
        ("postgres", _postgres(target.settings)),
        ("clickhouse", _clickhouse(target.settings, down)),
    ):
        for finding in examined:
            # What follows from a store that is away, or has lost its tables, is no second problem.
            if finding.level is Level.PROBLEM and finding.check in (store, f"{store} tables"):
                down.append(finding.check)
            yield finding
    reports = ask_roles({**target.endpoints.get("metrics", {}), **{url: url for url in target.roles}})
    if "clickhouse" not in down:
        yield from _told_by_clickhouse(target.settings, reports)
    accounts = [provider for provider in target.settings.providers if provider.name in built]
    yield from _running(target, down, accounts, reports)
    for directory in _directories(target):
        yield check_disk(directory, shutil.disk_usage(directory).free)
    if target.api and target.api_key:
        status = _status(target.api, target.api_key)
        if status != 503 or not down:  # what follows from a store that is away is no second problem
            yield check_api_key(status, target.api)


def _running(
    target: Target, down: Sequence[str], accounts: Sequence[ProviderSettings], reports: Sequence[RoleReport]
) -> Iterator[Finding]:
    """What processes say: those of a local stack, and those whose addresses were given; `accounts` are those to compare."""
    from runtime.provider_files import fingerprint

    if not reports:
        return
    logs = f"{target.state_dir / 'logs'}/ROLE.log" if target.endpoints else "its log"
    yield from check_roles(reports, logs, down)
    yield from check_brakes(reports)
    yield from check_parked(reports)
    yield from check_hooks(reports)
    own = {provider.name: fingerprint(provider) for provider in accounts}
    yield from check_same_providers(own, reports)


def _told_by_clickhouse(settings: Settings, reports: Sequence[RoleReport]) -> Iterator[Finding]:
    """What processes said there. Nothing before the first migration: that is a finding already."""
    from sinks.clickhouse import connect, select

    where = settings.clickhouse
    _, client = _timed(lambda: connect(where, timeout_s=_TIMEOUT_S))
    if client is None:
        return
    try:
        _, conditions = _timed(lambda: select(where, client, "conditions"))
        _, letters = _timed(lambda: select(where, client, "new_dead_letters"))
    finally:
        client.close()
    if conditions is not None:
        yield from check_conditions(conditions, reports)
    if letters is not None:
        yield check_new_dead_letters(letters)


def _schemas() -> tuple[list[str], int]:
    from schemas.codec import codec, iter_examples, manifest, read_versions

    faults: list[str] = []
    owners: dict[int, str] = {}
    for name in manifest():
        for schema_id, _ in read_versions(name):
            if schema_id in owners:
                faults.append(f"{name} and {owners[schema_id]} share the id {schema_id}")
            owners[schema_id] = name
    for topic, case, name, record in iter_examples():
        try:
            codec(name).decode(codec(name).encode(record))
        except (ValueError, TypeError, KeyError) as exc:
            faults.append(f"{topic}/{case} is no {name} ({type(exc).__name__})")
    return faults, len(manifest())


def _registry(settings: Settings) -> Iterator[Finding]:
    from runtime.registry import connect, diff

    def ask() -> list[str]:
        with connect(settings.schema_registry) as client:
            return [difference.subject for difference in diff(client)]

    result, differing = _timed(ask)
    if differing is None:
        yield Finding(
            Level.PROBLEM, "registry", result.error or "", "start it, or correct HELIOGRAPH_SCHEMA_REGISTRY__URL"
        )
    else:
        yield check_registry(differing)


def _copies(admin: Admin, local: bool) -> Iterator[Finding]:
    from schemas.topics import catalogue

    def ask() -> tuple[dict[str, int], dict[str, int]]:
        replication = {name: copies for name, copies in admin.replication().items() if name in catalogue()}
        configs = admin.configs(list(replication))
        return replication, {name: int(config.get("min.insync.replicas", "1")) for name, config in configs.items()}

    asked, copies = _timed(ask)
    if copies is None:
        yield Finding(Level.WARNING, "copies", asked.error or "", "see what the account may do in Kafka")
    elif copies[0]:
        yield check_copies(*copies, local=local)


def _kafka(settings: Settings, local: bool) -> Iterator[Finding]:
    from runtime.kafka.admin import Admin
    from schemas.topics import catalogue

    where, fix = settings.kafka.bootstrap_servers, "start Kafka, or correct HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS"
    result, admin = _timed(lambda: Admin(settings.kafka, timeout_s=_TIMEOUT_S))
    if admin is None:
        yield check_connection("kafka", where, result, "correct HELIOGRAPH_KAFKA__OPTIONS")
        return
    result, counts = _timed(admin.partition_counts)
    if counts is not None:
        result, _ = _timed(admin.partition_counts)  # the first one paid for the connection
    yield check_connection("kafka", where, result, fix)
    if counts is None:
        return
    asked, differences = _timed(lambda: topics.diff(admin, settings.partitions))
    if differences is None:
        yield Finding(Level.PROBLEM, "topics", asked.error or "", "see what the account may do in Kafka")
    else:
        yield from check_topics(differences, len(catalogue()))
        yield from _copies(admin, local)
    asked, held = _timed(lambda: admin.held_back([name for name in catalogue() if name in counts]))
    yield from (
        check_held_back(held)
        if held is not None
        else [Finding(Level.WARNING, "transactions", asked.error or "", "try again")]
    )
    for group, read in consumer_groups().items():
        if set(read) <= set(counts):
            asked, lag = _timed(partial(_check_lag, admin, group, read))
            yield lag or Finding(Level.WARNING, "lag", asked.error or "", "try again")


def _check_lag(admin: Admin, group: str, read: Sequence[str]) -> Finding:
    return check_lag(*lag_of(admin, group, read))


def _postgres(settings: Settings) -> Iterator[Finding]:
    import psycopg

    from producers.reference.schema import unavailable

    fix = "start PostgreSQL, or correct HELIOGRAPH_POSTGRES__DSN"

    def connect() -> psycopg.Connection[Any]:
        try:
            return psycopg.connect(
                settings.postgres.dsn.get_secret_value(), autocommit=True, connect_timeout=int(_TIMEOUT_S)
            )
        except psycopg.Error as exc:
            raise unavailable(exc) from exc

    result, connection = _timed(connect)
    if connection is None:
        yield check_connection("postgres", "PostgreSQL", result, fix)
        return
    with connection:
        result, _ = _timed(lambda: connection.execute("SELECT 1"))
        yield check_connection("postgres", f"{connection.info.host}:{connection.info.port}", result, fix)
        before = time.time()
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        yield check_clock(before, row[0] if row else before, time.time())
        try:
            rows = connection.execute("SELECT migration_id FROM _yoyo_migration").fetchall()
        except psycopg.errors.UndefinedTable:
            rows = []
        yield check_migrations("postgres", _postgres_migrations(), {str(name): "" for (name,) in rows})


def _postgres_migrations() -> dict[str, str]:
    from importlib.resources import files

    names = (path.name for path in files("producers.reference").joinpath("migrations").iterdir())
    return {name.removesuffix(".sql"): "" for name in sorted(names) if name.endswith(".sql")}


def _clickhouse(settings: Settings, down: Sequence[str]) -> Iterator[Finding]:
    from sinks.clickhouse import connect, store_errors
    from sinks.completeness import compare
    from sinks.schema import compare_views
    from sinks.schema_files import migrations, sql_views

    where = settings.clickhouse
    fix = "start ClickHouse, or correct HELIOGRAPH_CLICKHOUSE__URL"
    # The database may not be there before the first migration.
    result, client = _timed(lambda: connect(where, database="default", timeout_s=_TIMEOUT_S))
    if client is None:
        yield check_connection("clickhouse", where.url, result, clickhouse_cure(result.error or "", fix))
        return

    def query(sql: str) -> list[Any]:
        with store_errors(where):
            return list(client.query(sql).result_rows)

    try:
        result, _ = _timed(lambda: query("SELECT 1"))
        yield check_connection("clickhouse", where.url, result, fix)
        table = f"`{where.database}`.schema_migrations"
        _, rows = _timed(lambda: query(f"SELECT number, name, checksum FROM {table} FINAL"))
        views_answer, report = _timed(lambda: compare_views(where, client))
    finally:
        client.close()
    applied = {f"{number:04d}_{name}": str(checksum) for number, name, checksum in rows or ()}
    packaged = {f"{m.number:04d}_{m.name}": m.checksum for m in migrations()}
    # None where a store does not answer: that is a finding already.
    compared = None if "kafka" in down else _timed(lambda: compare(settings))[1]
    if not applied:
        # That its views are missing as well follows from it.
        yield check_no_tables(where.database, compared.records if compared else 0, compared.missing if compared else 0)
        return
    yield check_migrations("clickhouse", packaged, applied)
    if report is None:
        yield Finding(Level.PROBLEM, "clickhouse views", views_answer.error or "they cannot be read", fix)
    else:
        yield check_views(report.differences, len(sql_views()), superseded=report.superseded)
    if compared is not None:
        yield check_completeness(compared.records, compared.missing)


def _status(api: str, api_key: str) -> int | None:
    """The HTTP status of a question about nobody, with the key; None when nobody answers."""
    from runtime.http.client import ApiClient

    async def ask() -> int:
        async with ApiClient(api, api_key, timeout_s=_TIMEOUT_S) as client:
            return (await client.call("GET", _NOBODY, expect=range(600))).status

    try:
        return asyncio.run(ask())
    except UnavailableError:
        return None


def _directories(target: Target) -> list[Path]:
    wanted = [target.state_dir]
    if target.settings.views.backend == "rocksdb":
        wanted.append(target.settings.views.directory)
    return [directory for directory in wanted if directory.is_dir()]


# -- the command ------------------------------------------------------------------------------------------------------


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    state_dir: Annotated[
        Path, typer.Option(help="A local stack's directory; what runs there is examined.")
    ] = DEFAULT_STATE_DIR,
    api: Api = None,
    api_key: ApiKey = None,
    roles: Annotated[
        str,
        typer.Option(metavar="URL,...", help="Addresses of processes of a deployment: their metrics ports, the API."),
    ] = "",
    probe_providers: Annotated[
        bool,
        typer.Option(
            "--probe-providers", help="Ask each account's vendor whether it takes the credentials; sends nothing."
        ),
    ] = False,
) -> None:
    """Say what is wrong with this installation and what to do; exit status 1 when there is a problem."""
    found: list[Finding] = []
    urls = [url.strip() for url in roles.split(",") if url.strip()]
    for finding in _all(state_dir, api, api_key, urls, probe_providers=probe_providers):
        found.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        show([asdict(finding) for finding in found], True)
    raise typer.Exit(1 if any(finding.level is Level.PROBLEM for finding in found) else 0)


def _all(
    state_dir: Path, api: str | None, api_key: str | None, roles: Sequence[str], *, probe_providers: bool
) -> Iterator[Finding]:
    try:
        endpoints: Mapping[str, Any] = read_endpoints(state_dir)
    except HeliographError:
        endpoints = {}
    try:
        settings = load_settings()
    except SettingsError as exc:
        yield redacted(Finding(Level.PROBLEM, "settings", str(exc), "correct them; docs/operations.md lists all"), [])
        if not endpoints:
            return  # every other check would examine something that nobody asked for
        settings = Settings.model_construct()
    else:
        yield Finding(Level.OK, "settings", f"the local stack in {state_dir}" if endpoints else "valid")
    target = target_of(settings, state_dir, endpoints, api, api_key, roles, probe_providers=probe_providers)
    secrets = {*secrets_of(target.settings), *secrets_of(dict(endpoints)), target.api_key or ""}
    for finding in examine(target):
        yield redacted(finding, secrets)


_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


def _print(finding: Finding) -> None:
    level = typer.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
    fix = f": {finding.fix}" if finding.fix else ""
    typer.echo(f"{level} {finding.check:<17} {plain(finding.what + fix)}")
    sys.stdout.flush()  # the next store may take seconds to not answer

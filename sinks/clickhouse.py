"""ClickHouse over HTTP: connections, and the named SQL of queries/ and inserts/.

The only importer of clickhouse_connect below the console. Its errors leave as UnavailableError, where trying again may help,
or StoreError, where it does not.
May import runtime settings and errors, and schema_files. Never: Kafka, the meaning of a column.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError
from clickhouse_connect.driver.httputil import get_pool_manager
from urllib3 import PoolManager

from runtime.errors import HeliographError, SettingsError, UnavailableError
from runtime.logs import get_logger
from runtime.settings import ClickHouseSettings
from sinks.schema_files import helper_views, in_database

log = get_logger("clickhouse")

UNKNOWN_TABLE, UNKNOWN_DATABASE = 60, 81
# The store is well and says no: the statement, its values or our rights are at fault, and stay so.
_PERMANENT = frozenset(
    {6, 16, 20, 26, 27, 36, 38, 41, 43, 44, 46, 47, 48, 53, 57, 62, 69, 70, 80, 117, 184, 192, 193, 194, 497, 514, 516}
)
# AVRO_EXCEPTION (STD_EXCEPTION before there was that), what throwIf throws, and what a broken length leads to.
_UNREADABLE = frozenset({748, 1001, 395, 27, 32, 33, 117, 131, 190, 241})


class StoreError(HeliographError):
    """ClickHouse answers, and refuses: the same again would be refused again."""


class TablesMissingError(UnavailableError):
    """ClickHouse answers, and has no such database or table: it was never migrated, or lost what it had."""


class UnreadableError(StoreError):
    """ClickHouse cannot read the rows it was given, or refuses one of them; none is stored."""


@contextmanager
def store_errors(settings: ClickHouseSettings) -> Iterator[None]:
    """Turn the driver's errors into ours, in one line that names the setting to look at."""
    try:
        yield
    except OperationalError as exc:
        raise UnavailableError(_unreachable(settings, exc)) from exc
    except DatabaseError as exc:
        if exc.code in (UNKNOWN_DATABASE, UNKNOWN_TABLE):
            raise TablesMissingError(
                f"ClickHouse at {settings.url} lacks the tables of database {settings.database}: run the migrations"
            ) from exc
        if exc.code in _PERMANENT:
            raise StoreError(f"ClickHouse at {settings.url} refuses: {_first_line(exc)}") from exc
        raise UnavailableError(_unreachable(settings, exc)) from exc
    except (ClickHouseError, OSError) as exc:
        raise UnavailableError(_unreachable(settings, exc)) from exc


def _unreachable(settings: ClickHouseSettings, error: Exception) -> str:
    advice = "is it running, and is HELIOGRAPH_CLICKHOUSE__URL right?"
    return f"cannot use ClickHouse at {settings.url}: {_cause(error)}; {advice}"


def _cause(error: BaseException) -> str:
    """The innermost cause, which says the same as long as the trouble is the same."""
    deepest = error
    while (below := deepest.__cause__ or deepest.__context__) is not None:
        deepest = below
    if isinstance(deepest, OSError) and deepest.strerror:
        return deepest.strerror
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def connect(
    settings: ClickHouseSettings, *, database: str | None = None, timeout_s: float = 30, connections: int = 4
) -> Client:
    """A client that any thread may use; `database` None is the settings' one. Raises UnavailableError or SettingsError."""
    address = urlsplit(settings.url)
    # Both log every failed try, and the caller logs it once.
    for chatty in ("urllib3.connectionpool", "clickhouse_connect"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with store_errors(settings):
        return clickhouse_connect.get_client(
            host=address.hostname or "127.0.0.1",
            port=address.port or (8443 if address.scheme == "https" else 8123),
            interface=address.scheme or "http",
            username=settings.username,
            password=settings.password.get_secret_value(),
            database=database or settings.database,
            connect_timeout=5,
            send_receive_timeout=timeout_s,
            query_retries=1,
            autogenerate_session_id=False,  # a session runs one query at a time
            pool_mgr=_pool(settings, connections),
        )


def _pool(settings: ClickHouseSettings, connections: int) -> PoolManager:
    """Connections of a client's own. The driver gives TLS settings to a pool that it makes itself, and to no other."""
    files = (settings.ca_file, settings.client_cert_file, settings.client_key_file)
    if missing := next((file for file in files if file is not None and not file.is_file()), None):
        raise SettingsError(f"wrong settings: cannot read {missing} of HELIOGRAPH_CLICKHOUSE; give a readable file")
    ca, cert, key = (str(file) if file is not None else None for file in files)
    pool: PoolManager = get_pool_manager(
        maxsize=connections, verify=settings.verify, ca_cert=ca, client_cert=cert, client_cert_key=key
    )
    return pool


# ---------------------------------------------------------------- queries and inserts


@cache
def query_text(name: str, internal_database: str) -> str:
    """The SQL of queries/<name>.sql, with the helper views it reads in their database."""
    text = files("sinks").joinpath("queries", f"{name}.sql").read_text("utf-8")
    return in_database(text, internal_database, helper_views())


def select(
    settings: ClickHouseSettings, client: Client, name: str, parameters: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Rows of queries/<name>.sql as dicts. Raises UnavailableError or StoreError."""
    with store_errors(settings):
        result = client.query(query_text(name, settings.internal_database), parameters=dict(parameters or {}))
        return list(result.named_results())


INSERT_SETTINGS: Mapping[str, Any] = {
    # Identity is in the rows: a block that looks like an earlier one must not be dropped before it reaches the views.
    "insert_deduplicate": 0,
    # Hostile ids may name 241 months (see migrations/0001): more parts, but never a refused insert.
    "max_partitions_per_insert_block": 0,
    "async_insert": 0,
    # Rows of one key are put together when they are read and merged; to do it in every insert too costs a third of it.
    "optimize_on_insert": 0,
}


def insert(
    settings: ClickHouseSettings, client: Client, table: str, columns: Mapping[str, str], data: Sequence[Sequence[Any]]
) -> None:
    """Insert columns (name → type, and their values in the same order): decoded rows.

    Stored and in the views when this returns.

    Raises UnavailableError or StoreError; then some, all or none of the rows may be stored.
    """
    with store_errors(settings):
        client.insert(
            table,
            data,
            column_names=list(columns),
            column_type_names=list(columns.values()),
            column_oriented=True,
            settings=dict(INSERT_SETTINGS),
        )


@cache
def _insert_text(table: str) -> str:
    """The SQL of inserts/<table>.sql, up to where the rows begin."""
    return files("sinks").joinpath("inserts", f"{table}.sql").read_text("utf-8").rstrip() + "\n"


def insert_undecoded(
    settings: ClickHouseSettings, client: Client, table: str, container: Sequence[bytes], constants: Mapping[str, str]
) -> None:
    """Insert an Avro container (in parts), which ClickHouse decodes; stored and in the views when this returns.

    `constants` are literals of SQL. Raises UnreadableError for what is not exactly records of the table's topics, with nothing
    stored; UnavailableError and StoreError as `insert` does.
    """
    # Not as parameters: the driver binds them only where it decodes the rows, to see whether they are a query.
    sql = re.sub(r"\{(\w+):[^}]+\}", lambda match: constants[match[1]], _insert_text(table))
    with store_errors(settings):
        try:
            client.raw_insert("", insert_block=b"".join((sql.encode(), *container)), settings=dict(INSERT_SETTINGS))
        except DatabaseError as exc:
            if exc.code in _UNREADABLE:
                raise UnreadableError(f"ClickHouse at {settings.url} cannot read the rows: {_first_line(exc)}") from exc
            raise

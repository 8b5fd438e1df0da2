"""The ClickHouse engine of the local stack: chdb behind the part of ClickHouse's HTTP interface that clients use.

`python -m local.servers.clickhouse --path DIR --port N` owns DIR and answers like a ClickHouse server, so that
sinks, migrations, console and people all use clickhouse-connect over HTTP, as they do in production. Each request runs
in an engine session of its own (opening one takes 0.2 ms), so settings, `USE` and temporary tables cannot leak from one
request to the next; a `session_id` gets a lasting engine session once it has state to keep.

The only importer of chdb. May import runtime (health, logs). Never: a table, a view, a query of the product;
passwords, and users but `analyst` (it listens on loopback only); replication, which the embedded engine does not have.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import ipaddress
import json
import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lz4.frame
import zstandard
from aiohttp import BasicAuth, BodyPartReader, hdrs, web
from prometheus_client import Counter, Gauge

from runtime.clock import system_monotonic
from runtime.health import add_health_routes
from runtime.logs import configure_logs

log = logging.getLogger(__name__)

CONNECTIONS = 8  # queries in flight; more wait: two cores gain nothing from a longer queue inside the engine
MAX_BODY_BYTES = 1 << 30
SESSION_TIMEOUT_S = 60  # ClickHouse's default_session_timeout
MAX_SESSION_TIMEOUT_S = 3600  # ClickHouse's max_session_timeout

# A development box shares its memory with a JVM, PostgreSQL and a dozen Python processes. The defaults (90 % of the RAM,
# 5 GiB of mark cache) suit a machine of its own. Refreshable views and merges share the schedule pool: 2 is too few.
SERVER_CONFIG = """<clickhouse>
    <max_server_memory_usage>{memory_bytes}</max_server_memory_usage>
    <mark_cache_size>67108864</mark_cache_size>
    <index_mark_cache_size>16777216</index_mark_cache_size>
    <uncompressed_cache_size>0</uncompressed_cache_size>
    <background_schedule_pool_size>8</background_schedule_pool_size>
    <max_thread_pool_size>256</max_thread_pool_size>
    <users_config>{users}</users_config>
</clickhouse>
"""
MEMORY_BYTES = 2 << 30

# Parameters of the HTTP interface itself; every other parameter is a setting of the query.
TRANSPORT_PARAMS = frozenset(
    {
        "query",
        "database",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "quota_key",
        "user",
        "password",
        "compress",
        "decompress",
        "wait_end_of_query",
        "buffer_size",
        "role",
        "client_protocol_version",
        "default_format",
        "stacktrace",
        # real settings that only steer the HTTP handler of a ClickHouse server, sent with every query of clickhouse-connect
        "enable_http_compression",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "cancel_http_readonly_queries_on_client_close",
    }
)
_EXTERNAL_PART = re.compile(r"(.+)_(format|structure|types)\Z")

# The engine's per-block chunks of these formats concatenate to one valid stream; others have a header or a footer.
STREAMED_FORMATS = frozenset({"Native", "TabSeparated", "TSV", "CSV", "RowBinary", "JSONEachRow"})
_RESULT_VERBS = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "CHECK", "FROM", "("})

SESSION_IS_LOCKED = 373
ANALYST = "analyst"
"""The one name that means something: who uses it can only read."""
_STATUS_OF_CODE = {
    194: 401,  # REQUIRED_PASSWORD
    497: 403,
    516: 403,  # ACCESS_DENIED, AUTHENTICATION_FAILED
    46: 404,
    47: 404,
    50: 404,
    56: 404,
    60: 404,
    63: 404,
    73: 404,
    81: 404,
    115: 404,  # UNKNOWN_FUNCTION ... UNKNOWN_SETTING
    159: 408,  # TIMEOUT_EXCEEDED
    48: 501,  # NOT_IMPLEMENTED
    241: 500,  # MEMORY_LIMIT_EXCEEDED
    6: 400,
    26: 400,
    27: 400,
    33: 400,
    36: 400,
    38: 400,
    41: 400,
    43: 400,
    44: 400,
    53: 400,
    62: 400,
    69: 400,
    70: 400,
    72: 400,
    117: 400,
    130: 400,
    131: 400,
    153: 400,
    164: 400,
    456: 400,
    457: 400,  # what the caller wrote cannot be used
}

QUERIES = Counter(
    "heliograph_local_clickhouse_queries_total", "Queries answered by the embedded engine.", ["kind", "outcome"]
)
RUNNING = Gauge("heliograph_local_clickhouse_queries_running", "Queries in the engine now.")


class QueryError(Exception):
    """The engine refused or failed a query; `code` is ClickHouse's error code, the text is ClickHouse's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    @property
    def status(self) -> int:
        """The HTTP status a ClickHouse server gives for this code."""
        return _STATUS_OF_CODE.get(self.code, 500)


class EngineConnection(Protocol):
    """The part of chdb's connection used here (chdb has no types)."""

    def query(self, sql: bytes | str, fmt: str, params: Mapping[str, str] = ...) -> Any: ...
    def send_query(self, sql: bytes | str, fmt: str, params: Mapping[str, str] = ...) -> Any: ...
    def streaming_fetch_result(self, result: Any) -> Any: ...
    def streaming_cancel_query(self, result: Any) -> None: ...
    def send_insert(self, sql: str, fmt: str) -> Any: ...
    def insert_append(self, insert: Any, data: bytes) -> None: ...
    def insert_done(self, insert: Any) -> Any: ...
    def insert_cancel(self, insert: Any) -> None: ...
    def close(self) -> None: ...


# ---------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT that carries its rows: the statement up to FORMAT or VALUES, the input format, the rows.

    `source` is the `input('structure')` of an INSERT SELECT over the rows it carries.
    """

    head: bytes
    format: str
    data: bytes | memoryview
    source: re.Match[bytes] | None = None


_TOKEN = re.compile(
    rb"--[^\n]*|#[ !][^\n]*|/\*.*?\*/|\s+"  # comments and blanks
    rb"|'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|\"(?:[^\"\\]|\\.|\"\")*\""  # quoted
    rb"|[A-Za-z_][A-Za-z_0-9]*|.",
    re.DOTALL,
)
_INPUT = re.compile(rb"\binput\s*\(\s*('(?:[^'\\]|\\.|'')*')\s*\)", re.IGNORECASE)
_FORMAT_NAME = re.compile(rb"\s+([A-Za-z][A-Za-z0-9_]*)[ \t\f]*;?\r?\n?")
_TAIL_FORMAT = re.compile(
    rb"\bFORMAT\s+([A-Za-z][A-Za-z0-9_]*)\s*(?:\bSETTINGS\b.*)?;?\s*\Z", re.IGNORECASE | re.DOTALL
)


def _tokens(sql: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Words, quoted names and signs of a statement with their places, without comments and blanks."""
    for match in _TOKEN.finditer(sql):
        token = match.group()
        if not token.isspace() and not token.startswith((b"--", b"#", b"/*")):
            yield token, match.start(), match.end()


def first_words(sql: bytes, count: int = 4) -> list[str]:
    """The first tokens of a statement, upper case."""
    words: list[str] = []
    for token, _, _ in _tokens(sql):
        words.append(token.decode("utf-8", "replace").upper())
        if len(words) == count:
            break
    return words


def split_insert(sql: bytes) -> Insert | None:
    """The parts of an INSERT with rows, None for every other statement (an INSERT SELECT too, unless it reads `input`).

    After the format's name exactly one line break belongs to the statement: a Native block of ten columns starts with
    a line break of its own.
    """
    depth = 0
    selects = False
    for index, (token, start, end) in enumerate(_tokens(sql)):
        word = token.upper()
        if index == 0 and word != b"INSERT":
            return None
        if token == b"(":
            depth += 1
        elif token == b")":
            depth -= 1
        elif depth == 0 and word in (b"SELECT", b"WITH"):
            selects = True
        elif depth == 0 and (word in (b"INFILE", b"WATCH") or (selects and word == b"VALUES")):
            return None
        elif depth == 0 and word == b"VALUES":
            return Insert(sql[:start], "Values", sql[end:])
        elif depth == 0 and word == b"FORMAT":
            name = _FORMAT_NAME.match(sql, end)
            if name is not None:
                source = _INPUT.search(sql, 0, start) if selects else None
                if selects and source is None:
                    return None
                data = sql[name.end() :] if source is None else memoryview(sql)[name.end() :]  # one copy less
                return Insert(sql[:start], name.group(1).decode(), data, source)
    return None


def output_format(sql: bytes, default: str) -> str:
    """The format a result is written in: the statement's FORMAT clause, else the default."""
    match = _TAIL_FORMAT.search(sql[-2000:])
    return match.group(1).decode() if match else default


def keeps_state(words: list[str]) -> bool:
    """Whether a statement changes its session: SET, USE, CREATE TEMPORARY TABLE."""
    return bool(words) and (words[0] in ("SET", "USE") or (words[0] == "CREATE" and "TEMPORARY" in words))


def quoted(text: str) -> str:
    """A ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# ---------------------------------------------------------------- bodies


def decompress(body: bytes, encoding: str) -> bytes:
    """A request body without its Content-Encoding. Raises QueryError for bytes that are not what they say."""
    try:
        match encoding:
            case "" | "identity":
                return body
            case "lz4":
                parts = []
                while body:  # a client may write one frame per block
                    frame = lz4.frame.LZ4FrameDecompressor()
                    parts.append(frame.decompress(body))
                    if not frame.eof:
                        raise QueryError(33, "Code: 33. DB::Exception: Truncated lz4 body. (CANNOT_READ_ALL_DATA)")
                    body = frame.unused_data or b""
                return b"".join(parts)
            case "zstd":
                with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
                    return reader.read()
            case "gzip":
                return gzip.decompress(body)
            case "deflate":
                return zlib.decompress(body)
    except (RuntimeError, OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        text = f"Code: 354. DB::Exception: Cannot decompress the {encoding} body: {error}. (CANNOT_DECOMPRESS)"
        raise QueryError(354, text) from error
    raise QueryError(48, f"Code: 48. DB::Exception: Content-Encoding {encoding} is not supported. (NOT_IMPLEMENTED)")


class Compressor:
    """Compresses a response chunk by chunk in the first encoding we know that the client takes."""

    def __init__(self, accepted: str) -> None:
        offered = {part.split(";")[0].strip().lower() for part in accepted.split(",")}
        self.encoding = next((name for name in ("lz4", "zstd", "gzip", "deflate") if name in offered), "")
        self._started = False
        self._compress: Callable[[bytes], bytes]
        self._flush: Callable[[], bytes]
        if self.encoding == "lz4":
            frame = lz4.frame.LZ4FrameCompressor()
            self._compress = lambda data: self._lz4(frame, data)
            self._flush = lambda: b"" if not self._started else frame.flush()
        elif self.encoding == "zstd":
            stream = zstandard.ZstdCompressor(level=1).compressobj()
            self._compress = stream.compress
            self._flush = stream.flush
        elif self.encoding:
            deflate = zlib.compressobj(1, wbits=31 if self.encoding == "gzip" else 15)
            self._compress = deflate.compress
            self._flush = deflate.flush
        else:
            self._compress = lambda data: data
            self._flush = lambda: b""

    def _lz4(self, frame: lz4.frame.LZ4FrameCompressor, data: bytes) -> bytes:
        head = b"" if self._started else bytes(frame.begin())
        self._started = True
        return head + bytes(frame.compress(data))

    def feed(self, data: bytes) -> bytes:
        """What can be sent after these bytes."""
        return self._compress(data)

    def finish(self) -> bytes:
        """What remains to be sent."""
        return self._flush()


# ---------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class ExternalTable:
    """A temporary table sent along with a query as a file part."""

    name: str
    structure: str
    format: str
    data: bytes


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """One query as it came over HTTP, free of HTTP."""

    sql: bytes
    insert: Insert | None
    words: list[str]
    settings: dict[str, str]
    params: dict[str, str]
    database: str | None = None
    session_id: str | None = None
    session_timeout_s: float = SESSION_TIMEOUT_S
    default_format: str = "TabSeparated"
    read_only: bool = False
    external: tuple[ExternalTable, ...] = ()

    @property
    def returns_rows(self) -> bool:
        """Whether the statement has a result, be it empty."""
        return bool(self.words) and self.words[0] in _RESULT_VERBS


def _external_table(name: str, params: Mapping[str, str], data: bytes) -> ExternalTable:
    structure = params.get(f"{name}_structure", "")
    if not structure:
        types = [part.strip() for part in params.get(f"{name}_types", "").split(",") if part.strip()]
        structure = ", ".join(f"_{index} {type_}" for index, type_ in enumerate(types, 1))
    if not structure:
        text = f"Code: 36. DB::Exception: External table {name} has neither structure nor types. (BAD_ARGUMENTS)"
        raise QueryError(36, text)
    return ExternalTable(name, structure, params.get(f"{name}_format", "TabSeparated"), data)


def user_of(params: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """The name a client gives, in any of the three ways there are; passwords are not looked at."""
    if name := params.get("user") or headers.get("X-ClickHouse-User"):
        return name
    try:
        return str(BasicAuth.decode(headers.get(hdrs.AUTHORIZATION, "")).login)
    except ValueError:
        return ""


def build_request(
    params: Mapping[str, str],
    body: bytes,
    files: Mapping[str, bytes],
    *,
    read_only: bool,
    default_format: str,
    user: str = "",
) -> QueryRequest:
    """Sort parameters into statement, settings, query parameters and transport. Raises QueryError.

    The user `analyst` only reads, as a server's does that is set up so, and keeps no session.
    """
    if params.get("compress") in ("1", "true") or params.get("decompress") in ("1", "true"):
        text = "Code: 48. DB::Exception: ClickHouse's own block compression is not supported here. (NOT_IMPLEMENTED)"
        raise QueryError(48, text)
    query = params.get("query", "").encode("utf-8", "surrogateescape")
    sql = query + b"\n" + body if query and body else query or body
    settings: dict[str, str] = {}
    bound: dict[str, str] = {}
    for name, value in params.items():
        if name.startswith("param_"):
            bound[name[6:]] = value
        elif name not in TRANSPORT_PARAMS:
            part = _EXTERNAL_PART.match(name)
            if part is None or part.group(1) not in files:
                settings[name] = value
    try:
        timeout = min(float(params.get("session_timeout") or SESSION_TIMEOUT_S), MAX_SESSION_TIMEOUT_S)
    except ValueError as error:
        text = "Code: 374. DB::Exception: session_timeout is not a number. (INVALID_SESSION_TIMEOUT)"
        raise QueryError(374, text) from error
    return QueryRequest(
        sql=sql,
        insert=split_insert(sql),
        words=first_words(sql),
        settings=settings,
        params=bound,
        database=params.get("database") or None,
        session_id=(params.get("session_id") or None) if user != ANALYST else None,
        session_timeout_s=timeout,
        default_format=params.get("default_format") or default_format,
        read_only=read_only or user == ANALYST,
        external=tuple(_external_table(name, params, data) for name, data in files.items()),
    )


@dataclass(slots=True)
class Summary:
    """Counts of one query, as X-ClickHouse-Summary shows them."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)

    def header(self) -> str:
        """The header's JSON; ClickHouse writes numbers as strings."""
        return json.dumps(
            {
                "read_rows": str(self.read_rows),
                "read_bytes": str(self.read_bytes),
                "written_rows": str(self.written_rows),
                "written_bytes": str(self.written_bytes),
                "total_rows_to_read": "0",
                "result_rows": str(self.result_rows),
                "result_bytes": str(self.result_bytes),
                "elapsed_ns": str(int((time.perf_counter() - self.started) * 1e9)),
            },
            separators=(",", ":"),
        )


# ---------------------------------------------------------------- engine

_ERROR_CODE = re.compile(r"Code: (\d+)\.")


def as_query_error(error: Exception) -> QueryError:
    """ClickHouse's code and text out of what chdb raised."""
    text = str(error)
    match = _ERROR_CODE.search(text)
    if match is None:
        return QueryError(1002, f"Code: 1002. DB::Exception: {text} (UNKNOWN_EXCEPTION)")
    return QueryError(int(match.group(1)), text[match.start() :].strip())


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise as_query_error(error) from error
    except UnicodeDecodeError as error:  # the engine's text quotes bytes of the rows
        raise as_query_error(RuntimeError(error.object.decode("utf-8", "replace"))) from error


@dataclass(slots=True)
class KeptSession:
    """An engine session that outlives its request because it holds state."""

    connection: EngineConnection
    expires_at: float


class Engine:
    """The one owner of a data directory. Opens sessions, runs statements; every method may be called from any thread."""

    def __init__(self, path: Path, memory_bytes: int = MEMORY_BYTES, users: Path | None = None) -> None:
        self._path = path
        self._users = users
        self._memory_bytes = memory_bytes
        self._connect: Callable[[str], EngineConnection]
        self._address = ""
        self._keeper: EngineConnection | None = None  # the engine stops with its last session
        self._kept: dict[str, KeptSession] = {}
        self.version = ""

    def open(self) -> None:
        """Start the engine. Raises QueryError when another process owns the directory."""
        os.environ["TZ"] = "UTC"  # the server's time zone shows in every DateTime without one
        for heavy in ("pyarrow", "pandas", "numpy"):
            sys.modules.setdefault(heavy, None)  # type: ignore[arg-type] # chdb imports them when it can: 100 MB for nothing
        from chdb import _chdb

        self._path.mkdir(parents=True, exist_ok=True)
        config = self._path / "server.xml"
        config.write_text(SERVER_CONFIG.format(memory_bytes=self._memory_bytes, users=self._users or ""), "utf-8")
        # implicit_select lets `SELEC 1` or a stray word pass as an expression: on by default in the embedded engine only
        self._address = f"{self._path / 'store'}?implicit_select=0&config-file={config}"
        self._connect = _chdb.connect  # type: ignore[attr-defined]
        with _engine_errors():
            self._keeper = self._connect(self._address)
            self.version = self._keeper.query("SELECT version()", "TSVRaw").bytes().decode().strip()

    def close(self) -> None:
        """Close every session; the last one flushes and stops the engine."""
        for kept in self._kept.values():
            kept.connection.close()
        self._kept.clear()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def alive(self) -> str | None:
        """None when the engine runs, else why not."""
        return None if self._keeper is not None else "the engine is closed"

    @contextmanager
    def session(self, request: QueryRequest) -> Iterator[EngineConnection]:
        """An engine session set up for a request: database, settings, query parameters, external tables."""
        self._expire_sessions()
        kept = self._kept.pop(request.session_id, None) if request.session_id else None
        keep = kept is not None
        with _engine_errors():
            connection = kept.connection if kept else self._connect(self._address)
            restore: list[str] = []
            try:
                restore = self._prepare(connection, request, keep)
                yield connection
                keep = keep or (request.session_id is not None and keeps_state(request.words))
            finally:
                if keep and request.session_id:
                    for statement in restore:
                        connection.query(statement, "Null")
                    expires_at = system_monotonic() + request.session_timeout_s
                    self._kept[request.session_id] = KeptSession(connection, expires_at)
                else:
                    connection.close()

    def _prepare(self, connection: EngineConnection, request: QueryRequest, kept: bool) -> list[str]:
        """Apply what the request brings; returns what puts a kept session back as it was."""
        restore: list[str] = []
        if request.database:
            name = request.database.replace("\\", "\\\\").replace("`", "\\`")
            connection.query(f"USE `{name}`", "Null")
        settings = dict(request.settings)
        if kept and settings:
            names = ", ".join(quoted(name) for name in settings)
            before = connection.query(
                f"SELECT name, value, changed FROM system.settings WHERE name IN ({names})", "JSONCompactEachRow"
            ).bytes()
            for name, value, changed in map(json.loads, before.splitlines()):
                restore.append(f"SET {name} = {quoted(value) if changed else 'DEFAULT'}")
        if request.read_only and not kept:
            settings["readonly"] = "2"  # as ClickHouse does for GET
        if request.insert is not None:
            settings |= {f"param_{name}": value for name, value in request.params.items()}
        if settings:
            for name in settings:
                if not name.isidentifier() or not name.isascii():
                    raise QueryError(115, f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)")
            connection.query("SET " + ", ".join(f"{k} = {quoted(v)}" for k, v in settings.items()), "Null")
        for table in request.external:
            connection.query(f"CREATE OR REPLACE TEMPORARY TABLE `{table.name}` ({table.structure})", "Null")
            self._insert(connection, f"INSERT INTO `{table.name}`", table.format, table.data)
        return restore

    def _expire_sessions(self) -> None:
        now = system_monotonic()
        for name in [name for name, kept in list(self._kept.items()) if kept.expires_at < now]:
            kept = self._kept.pop(name, None)
            if kept is not None:
                kept.connection.close()

    def _insert_rows(self, connection: EngineConnection, insert: Insert, params: Mapping[str, str]) -> Any:
        if insert.source is None:
            head = insert.head.decode("utf-8", "surrogateescape")
            return self._insert(connection, head, insert.format, bytes(insert.data))
        # The embedded engine has no `input`, but reads a file the same way.
        with tempfile.NamedTemporaryFile(dir=self._path, prefix="rows-") as rows:
            rows.write(insert.data)
            rows.flush()
            file = f"file({quoted(rows.name)}, {insert.format}, ".encode() + insert.source[1] + b")"
            sql = insert.head[: insert.source.start()] + file + insert.head[insert.source.end() :]
            return connection.query(sql, "Null", params=params)

    @staticmethod
    def _insert(connection: EngineConnection, head: str, fmt: str, data: bytes) -> Any:
        insert = connection.send_insert(head, fmt)
        try:
            connection.insert_append(insert, data)
            return connection.insert_done(insert)
        except BaseException:
            connection.insert_cancel(insert)  # a kept session would refuse its next statement
            raise

    def run(self, request: QueryRequest, compressor: Compressor) -> tuple[bytes, Summary]:
        """Run a statement to its end; returns the compressed answer and the counts. Raises QueryError."""
        summary = Summary()
        with self.session(request) as connection:
            if request.insert is not None:
                result = self._insert_rows(connection, request.insert, request.params)
                answer = b""
            else:
                result = connection.query(request.sql, request.default_format, params=request.params)
                answer = result.bytes()
            summary.written_rows = result.rows_written()
            summary.written_bytes = result.bytes_written()
            summary.read_rows = result.storage_rows_read()
            summary.read_bytes = result.storage_bytes_read()
            summary.result_rows = result.rows_read()
            summary.result_bytes = len(answer)
        if answer:
            answer = compressor.feed(answer) + compressor.finish()
        return answer, summary

    def stream(self, request: QueryRequest) -> Iterator[bytes]:
        """Run a SELECT block by block, so that a large result is never whole in memory. Raises QueryError."""
        with self.session(request) as connection:
            result = connection.send_query(request.sql, request.default_format, params=request.params)
            done = False
            try:
                while True:
                    block = connection.streaming_fetch_result(result)
                    if block is None or block.rows_read() == 0:
                        done = True
                        return
                    yield block.bytes()
            finally:
                if not done:
                    connection.streaming_cancel_query(result)


# ---------------------------------------------------------------- HTTP


async def _whole_body(request: web.Request) -> bytes:
    """As `request.read()`, which copies a body twice: a tenth of what a large insert costs."""
    chunks = []
    size = 0
    async for chunk in request.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, size)
    return b"".join(chunks)


class ClickHouseServer:
    """ClickHouse's HTTP interface in front of an engine."""

    def __init__(self, engine: Engine, connections: int = CONNECTIONS) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="query")
        self._slots = asyncio.Semaphore(connections)
        self._busy_sessions: set[str] = set()

    def app(self) -> web.Application:
        """The application; it must run without automatic decompression (lz4 is unknown to aiohttp)."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        add_health_routes(app, self._engine.alive)
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/replicas_status", self._ping)
        app.router.add_route("*", "/", self._query)
        return app

    def close(self) -> None:
        """Let running queries end."""
        self._threads.shutdown()

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _query(self, request: web.Request) -> web.StreamResponse:
        params = dict(request.query)
        query_id = params.get("query_id") or str(uuid.uuid4())
        headers = {
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Server-Display-Name": "local",
            "X-ClickHouse-Timezone": params.get("session_timezone") or "UTC",
        }
        if request.method not in (hdrs.METH_GET, hdrs.METH_POST, hdrs.METH_HEAD):
            return web.Response(status=405, text="Only GET and POST are supported.\n", headers=headers)
        kind = "other"
        try:
            body, files = await self._body(request, params)
            if not params.get("query") and not body:
                return web.Response(text="Ok.\n", headers=headers)  # what load balancers ask
            query = build_request(
                params,
                body,
                files,
                read_only=request.method != hdrs.METH_POST,
                user=user_of(params, request.headers),
                default_format=request.headers.get("X-ClickHouse-Format") or "TabSeparated",
            )
            kind = "insert" if query.insert else "select" if query.returns_rows else "other"
            response = await self._answer(request, query, params, headers)
        except QueryError as error:
            QUERIES.labels(kind, "error").inc()
            return self._error(error, headers)
        QUERIES.labels(kind, "ok").inc()
        return response

    async def _body(self, request: web.Request, params: dict[str, str]) -> tuple[bytes, dict[str, bytes]]:
        """The body, or a form's fields merged into the parameters and its file parts."""
        if request.content_type.startswith("multipart/"):
            files: dict[str, bytes] = {}
            async for part in await request.multipart():
                if not isinstance(part, BodyPartReader) or part.name is None:
                    continue
                data = bytes(await part.read(decode=True))
                if part.filename is None:
                    params[part.name] = data.decode("utf-8", "surrogateescape")
                else:
                    files[part.name] = data
            return b"", files
        body = await _whole_body(request)
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
        if encoding and body:
            body = await asyncio.get_running_loop().run_in_executor(self._threads, decompress, body, encoding)
        return body, {}

    async def _answer(
        self, request: web.Request, query: QueryRequest, params: Mapping[str, str], headers: dict[str, str]
    ) -> web.StreamResponse:
        session = query.session_id
        if session in self._busy_sessions:
            text = f"Code: 373. DB::Exception: Session {session} is locked by a concurrent client. (SESSION_IS_LOCKED)"
            raise QueryError(SESSION_IS_LOCKED, text)
        if session:
            self._busy_sessions.add(session)
        try:
            async with self._slots:
                with RUNNING.track_inprogress():
                    wanted = params.get("enable_http_compression") in ("1", "true")
                    compressor = Compressor(request.headers.get(hdrs.ACCEPT_ENCODING, "") if wanted else "")
                    fmt = output_format(query.sql, query.default_format)
                    if query.returns_rows:
                        headers["X-ClickHouse-Format"] = fmt
                    buffered = params.get("wait_end_of_query") in ("1", "true") or fmt not in STREAMED_FORMATS
                    if buffered or not query.returns_rows:
                        return await self._whole(query, compressor, headers)
                    return await self._streamed(request, query, compressor, headers)
        finally:
            if session:
                self._busy_sessions.discard(session)

    async def _whole(self, query: QueryRequest, compressor: Compressor, headers: dict[str, str]) -> web.Response:
        loop = asyncio.get_running_loop()
        answer, summary = await loop.run_in_executor(self._threads, self._engine.run, query, compressor)
        headers["X-ClickHouse-Summary"] = summary.header()
        if answer and compressor.encoding:
            headers[hdrs.CONTENT_ENCODING] = compressor.encoding
        return web.Response(body=answer, headers=headers, content_type="application/octet-stream")

    async def _streamed(
        self, request: web.Request, query: QueryRequest, compressor: Compressor, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send blocks as the engine makes them; an error after the first block is reported in the body, as ClickHouse does."""
        loop = asyncio.get_running_loop()
        blocks = self._engine.stream(query)
        tag = secrets.token_hex(8)

        def step() -> bytes | None:
            block = next(blocks, None)
            return compressor.feed(block) if block is not None else None

        def failure(error: QueryError) -> bytes:
            text = error.text.encode() + b"\n"
            marked = b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (
                tag.encode(),
                text,
                len(text),
                tag.encode(),
            )
            return compressor.feed(marked)

        try:
            piece = await loop.run_in_executor(self._threads, step)  # an early error still has a proper status
            headers |= {"X-ClickHouse-Exception-Tag": tag, "X-ClickHouse-Summary": Summary().header()}
            if piece is not None and compressor.encoding:
                headers[hdrs.CONTENT_ENCODING] = compressor.encoding
            response = web.StreamResponse(headers=headers)
            response.content_type = "application/octet-stream"
            await response.prepare(request)
            if piece is None:
                await response.write_eof()
                return response
            try:
                while piece is not None:
                    if piece:
                        await response.write(piece)
                    piece = await loop.run_in_executor(self._threads, step)
            except QueryError as error:
                QUERIES.labels("select", "error_in_stream").inc()
                await response.write(failure(error))
            await response.write_eof(compressor.finish())
            return response
        except ConnectionError:
            log.info("the client left before the end of its result")
            raise
        finally:
            await loop.run_in_executor(self._threads, blocks.close)  # type: ignore[attr-defined]

    def _error(self, error: QueryError, headers: dict[str, str]) -> web.Response:
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        headers.pop("X-ClickHouse-Format", None)
        text = error.text if "(version " in error.text else f"{error.text} (version {self._engine.version})"
        return web.Response(status=error.status, text=text + "\n", headers=headers)


async def serve(path: Path, host: str, port: int, memory_bytes: int = MEMORY_BYTES, users: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let queries end and close the engine."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    engine = Engine(path, memory_bytes, users)
    engine.open()
    server = ClickHouseServer(engine)
    runner = web.AppRunner(server.app(), access_log=None, auto_decompress=False, shutdown_timeout=10)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port, backlog=256).start()
        log.info("ClickHouse engine %s serves %s on http://%s:%d", engine.version, path, host, port)
        await stop.wait()
    finally:
        await runner.cleanup()
        server.close()
        engine.close()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="The embedded ClickHouse engine behind ClickHouse's HTTP interface.")
    parser.add_argument("--path", type=Path, required=True, help="data directory, owned by this process")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--memory-mib", type=int, default=MEMORY_BYTES >> 20, help="the engine's memory limit")
    parser.add_argument("--users", type=Path, help="ClickHouse's users.xml: the rights of its one user, `default`")
    args = parser.parse_args()
    if args.host != "localhost" and not ipaddress.ip_address(args.host).is_loopback:
        parser.error("there are no users and passwords here: --host must be a loopback address")
    configure_logs("clickhouse")
    try:
        asyncio.run(serve(args.path.resolve(), args.host, args.port, args.memory_mib << 20, args.users))
    except (QueryError, OSError) as error:
        log.error("cannot serve: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()

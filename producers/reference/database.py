"""The connection to PostgreSQL: a pool that knows whether the server answers, fails at once while it does not, and heals.

May import psycopg. Never: a table's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from producers.reference.schema import CONNECT_TIMEOUT_S, WRITABLE, unavailable
from runtime.errors import UnavailableError
from runtime.logs import get_logger
from runtime.settings import PostgresSettings

log = get_logger("postgres")
T = TypeVar("T")
Connection = psycopg.AsyncConnection[DictRow]
_Pool = AsyncConnectionPool[Connection]

OPERATION_TIMEOUT_S = 4.0
"""An HTTP caller waits this long for the store; a healthy one answers in milliseconds."""
_PROBE_S = 0.5
_PROBE_TIMEOUT_S = 2.0
_DOWN = "PostgreSQL does not answer; try again in a second"
_BUSY = "PostgreSQL gave this call up in favour of others; try again"
_BROKEN = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
    PoolClosed,
)
_PASSING = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
)
_INPUT = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
    UnicodeEncodeError,
)
"""A NUL in a text, a number beyond its type, a key too long for its index, half a surrogate pair. Some of these are
OperationalErrors to psycopg: the server answers all the same."""


class InputRefused(Exception):
    """PostgreSQL does not take what it was given, now or later. The server is well; nothing was written."""


class Database:
    """Runs operations on pooled connections (autocommit, rows as dicts)."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._dsn = settings.dsn.get_secret_value()
        self._size = settings.pool_size
        self._pool: _Pool | None = None
        self._watch: asyncio.Task[None] | None = None
        self._left: set[asyncio.Task[Any]] = set()
        self.available = False

    async def open(self) -> None:
        """Connect. Raises UnavailableError when the server does not answer."""
        try:
            await self._probe()
            await self._renew()
        except (psycopg.Error, PoolTimeout, TimeoutError) as exc:
            await self.close()
            raise unavailable(exc) from exc
        self._watch = asyncio.create_task(self._keep_watching())

    async def close(self) -> None:
        """Disconnect."""
        self.available = False
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch], timeout=1)
        if self._pool is not None:
            await self._pool.close(timeout=1)

    async def run(self, operation: Callable[[Connection], Awaitable[T]], timeout_s: float = OPERATION_TIMEOUT_S) -> T:
        """The operation's result. Raises UnavailableError when the server does not answer in time, and then it is not known
        whether a write happened; InputRefused for input that it will never take.
        """
        if not self.available:
            raise UnavailableError(_DOWN)
        # Left behind on a timeout, not awaited: to cancel a query, psycopg waits for the server that does not answer.
        task = asyncio.ensure_future(self._run(operation))
        done, _ = await asyncio.wait([task], timeout=timeout_s)
        if not done:
            self._leave(task)
            self._went_down("no answer in time")
            raise UnavailableError(_DOWN)
        try:
            return task.result()
        except _INPUT as exc:
            raise InputRefused(f"PostgreSQL does not take this input ({type(exc).__name__})") from exc
        except _PASSING as exc:
            raise UnavailableError(_BUSY) from exc
        except _BROKEN as exc:
            self._went_down(type(exc).__name__)
            raise UnavailableError(_DOWN) from exc

    async def _run(self, operation: Callable[[Connection], Awaitable[T]]) -> T:
        assert self._pool is not None
        async with self._pool.connection(timeout=OPERATION_TIMEOUT_S) as connection:
            return await operation(connection)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._left.add(task)
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller was answered that the outcome is unknown

    def _went_down(self, why: str) -> None:
        if self.available:
            log.warning("PostgreSQL does not answer", why=why)
        self.available = False

    async def _probe(self) -> None:
        connection = await asyncio.wait_for(
            psycopg.AsyncConnection.connect(
                self._dsn, connect_timeout=CONNECT_TIMEOUT_S, target_session_attrs=WRITABLE
            ),
            CONNECT_TIMEOUT_S,
        )
        await connection.close()

    async def _renew(self) -> None:
        """A new pool: the old one's connections may all be broken, and its own back-off may be long."""
        old = self._pool
        pool: _Pool = AsyncConnectionPool(
            self._dsn,
            connection_class=psycopg.AsyncConnection[DictRow],
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "connect_timeout": CONNECT_TIMEOUT_S,
                "target_session_attrs": WRITABLE,
            },
            min_size=min(2, self._size),
            max_size=self._size,
            reconnect_timeout=_PROBE_TIMEOUT_S,
            open=False,
        )
        await pool.open(wait=True, timeout=CONNECT_TIMEOUT_S)
        self._pool = pool
        self.available = True
        if old is not None:
            closing = asyncio.ensure_future(old.close(timeout=1))
            self._left.add(closing)
            closing.add_done_callback(self._forget)

    async def _keep_watching(self) -> None:
        while True:
            await asyncio.sleep(_PROBE_S)
            try:
                if self.available:
                    await self.run(_ping, _PROBE_TIMEOUT_S)
                else:
                    await self._probe()
                    await self._renew()
                    log.info("PostgreSQL answers again")
            except (UnavailableError, psycopg.Error, PoolTimeout, TimeoutError):
                continue


async def _ping(connection: Connection) -> None:
    """Raises ReadOnlySqlTransaction where the server answers and would not write."""
    row = await (await connection.execute("SHOW transaction_read_only")).fetchone()
    if row is not None and row["transaction_read_only"] == "on":
        raise psycopg.errors.ReadOnlySqlTransaction("the server only reads")

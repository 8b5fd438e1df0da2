"""Leases of replays: who runs one now, and who asked it to stop. The clock is PostgreSQL's, so that machines need not agree.

    acquire ──► beat every half second ──► release          nobody beats for LEASE_S: anybody may acquire

May import psycopg. Never: what a replay does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import psycopg

from producers.reference.schema import CONNECT_TIMEOUT_S, WRITABLE, unavailable
from runtime.errors import Refusal, RefusedError
from runtime.settings import PostgresSettings

LEASE_S = 10.0
_OLD = f"heartbeat_at < clock_timestamp() - interval '{LEASE_S} seconds'"


class Holder(NamedTuple):
    """Who runs a replay, and when it was heard of last, in seconds."""

    runner: str
    silent_s: float


class ReplayLeases:
    """One connection, on one thread. Every call raises UnavailableError when PostgreSQL does not answer."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._dsn = settings.dsn.get_secret_value()
        self._connection: psycopg.Connection[Any] | None = None

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(
                    self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, target_session_attrs=WRITABLE
                )
            cursor = self._connection.execute(sql, values)
            return cursor.fetchall() if cursor.description else []
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction) as exc:
            self.close()
            raise unavailable(exc) from exc

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def acquire(self, replay_id: str, runner: str) -> None:
        """Become the runner. Raises RefusedError while another one is."""
        taken = self._rows(
            "INSERT INTO replay_leases AS l (replay_id, runner) VALUES (%s, %s) ON CONFLICT (replay_id) DO UPDATE"
            f" SET runner = excluded.runner, heartbeat_at = clock_timestamp(), stop_requested_by = NULL WHERE l.{_OLD}"
            " RETURNING 1",
            replay_id,
            runner,
        )
        if not taken:
            holder = self.holders([replay_id]).get(replay_id)
            words = f"{holder.runner}, heard of {holder.silent_s:.0f} s ago" if holder else "another one"
            raise RefusedError(
                Refusal.CONFLICT,
                "replay_running",
                f"replay {replay_id} is run by {words}; `heliograph replay stop {replay_id}` stops it. One that was killed"
                f" may be resumed {LEASE_S:.0f} s after its end",
            )

    def beat(self, replay_id: str, runner: str) -> str | None:
        """Say that the runner is alive; who asked it to stop, None for nobody. Raises RefusedError when it is not ours any more."""
        rows = self._rows(
            "UPDATE replay_leases SET heartbeat_at = clock_timestamp() WHERE replay_id = %s AND runner = %s"
            " RETURNING stop_requested_by",
            replay_id,
            runner,
        )
        if not rows:
            raise RefusedError(Refusal.CONFLICT, "replay_taken", "another runner has taken it over")
        asked: str | None = rows[0][0]
        return asked

    def release(self, replay_id: str, runner: str) -> None:
        """Be the runner no more."""
        self._rows("DELETE FROM replay_leases WHERE replay_id = %s AND runner = %s", replay_id, runner)

    def request_stop(self, replay_id: str, by: str) -> bool:
        """Ask the runner to stop; False when nobody runs it."""
        return bool(
            self._rows(
                f"UPDATE replay_leases SET stop_requested_by = %s WHERE replay_id = %s AND NOT {_OLD} RETURNING 1",
                by,
                replay_id,
            )
        )

    def holders(self, replay_ids: Iterable[str]) -> dict[str, Holder]:
        """Who runs each of these now."""
        rows = self._rows(
            "SELECT replay_id::text, runner, extract(epoch FROM clock_timestamp() - heartbeat_at)::float8"
            f" FROM replay_leases WHERE replay_id = ANY(%s::uuid[]) AND NOT {_OLD}",
            list(replay_ids),
        )
        return {replay_id: Holder(runner, max(0.0, silent_s)) for replay_id, runner, silent_s in rows}

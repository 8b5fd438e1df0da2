"""A replay while it runs: its lease is renewed, and whoever may stop it is heard at once.

    a signal, `replay stop` ──► Stop.wait raises Stopped between two batches ──► what is done is written down ──► the lease is released

May import producers.reference. Never: what is published, a signal handler, a screen.
"""

from __future__ import annotations

import os
import socket
import threading
from types import TracebackType
from typing import Self

from producers.reference.leases import LEASE_S, ReplayLeases
from runtime.clock import Monotonic, system_monotonic
from runtime.errors import HeliographError, RefusedError, UnavailableError
from runtime.settings import PostgresSettings

BEAT_S = 0.5
ALIVE_S = 2.0
"""A runner that was heard of within that is alive; of one that was killed the lease is waited for."""


class Stopped(HeliographError):
    """Somebody or something asked the replay to stop; the message says who."""


class Stop:
    """May be asked for from any thread, and from a signal handler."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.reason = ""

    def ask(self, reason: str) -> None:
        """The first reason counts."""
        if not self._asked.is_set():
            self.reason = reason
            self._asked.set()

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises Stopped as soon as somebody asks."""
        if self._asked.wait(max(0.0, seconds)):
            raise Stopped(self.reason)


class Lease:
    """A context: the lease of one replay, renewed by a thread. Raises RefusedError while another runner has it."""

    def __init__(
        self,
        settings: PostgresSettings,
        replay_id: str,
        by: str,
        stop: Stop,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._leases, self._replay_id, self._stop, self._monotonic = ReplayLeases(settings), replay_id, stop, monotonic
        self._runner = f"{by} (process {os.getpid()} on {socket.gethostname()})"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="replay-lease", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._acquire()
        except BaseException:
            self._leases.close()
            raise
        self._thread.start()
        return self

    def _acquire(self) -> None:
        """Take the lease; that of a runner which is not heard of any more as soon as it ends. Raises RefusedError."""
        began = self._monotonic()
        while True:
            try:
                self._leases.acquire(self._replay_id, self._runner)
                return
            except RefusedError:
                waited = self._monotonic() - began
                holder = self._leases.holders([self._replay_id]).get(self._replay_id)
                alive = holder is not None and holder.silent_s < ALIVE_S
                if waited > LEASE_S + ALIVE_S or (alive and waited > ALIVE_S):
                    raise
            self._stop.wait(BEAT_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self._leases.release(self._replay_id, self._runner)
        except UnavailableError:
            pass  # it ends by itself, in LEASE_S
        finally:
            self._leases.close()

    def _beat(self) -> None:
        """On its own thread. Without an answer for half a lease the replay stops, before another one may begin."""
        answered = self._monotonic()
        while not self._ended.wait(BEAT_S):
            try:
                if (by := self._leases.beat(self._replay_id, self._runner)) is not None:
                    self._stop.ask(f"stopped by {by}")
                answered = self._monotonic()
            except RefusedError as exc:
                self._stop.ask(str(exc))
                return
            except UnavailableError as exc:
                if self._monotonic() - answered > LEASE_S / 2:
                    self._stop.ask(f"its lease cannot be renewed: {exc}")
                    return

"""The children of a supervisor: started, watched, started again after a short wait, ended in order.

A healthy child is never touched, because every role retries by itself.
May import runtime, local and the standard library. Never: what a child is for.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType

from local import LocalStackError, StartError
from local.processes import Child, ChildSpec, cap_log
from local.supervisor.state import Phase
from runtime.clock import Monotonic, system_monotonic
from runtime.errors import HeliographError

STARTS_BEFORE_GIVING_UP = 3
ROLE_STOP_S = 15.0
INFRASTRUCTURE_STOP_S = 20.0
_PROBE_EVERY_S = 0.1
_CAP_LOGS_EVERY_S = 60.0
_log = logging.getLogger(__name__)


class StoppedEarlyError(LocalStackError):
    """The stack was stopped before it was ready."""


class Supervisor:
    """Starts children in order, keeps them alive, stops them in order. `run` is its whole life."""

    def __init__(
        self,
        infrastructure: Sequence[ChildSpec],
        roles: Sequence[ChildSpec],
        initialise: Callable[[], None],
        on_change: Callable[[Supervisor, str | None], None],
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self.infrastructure = [Child(spec) for spec in infrastructure]
        self.roles = [Child(spec) for spec in roles]
        self.phase: Phase = "starting"
        self._initialise = initialise
        self._on_change = on_change
        self._monotonic = monotonic
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
            next_cap = self._monotonic() + _CAP_LOGS_EVERY_S
            while not self._stopping:
                self._tick(1.0)
                if self._monotonic() >= next_cap:
                    next_cap = self._monotonic() + _CAP_LOGS_EVERY_S
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
                    deadlines[child.name] = self._monotonic() + child.spec.ready_timeout_s
                self._refuse_if_it_cannot_start(child, deadlines.get(child.name))
            self._tick(0.02 if preparing else _PROBE_EVERY_S / 2)

    def _refuse_if_stopping(self) -> None:
        if self._stopping:
            raise StoppedEarlyError("stopped before it was ready")

    def _refuse_if_it_cannot_start(self, child: Child, deadline: float | None) -> None:
        if child.ready or deadline is None:
            return
        if child.deaths_before_ready >= STARTS_BEFORE_GIVING_UP:
            raise StartError(f"{child.name} does not start: {child.last_log_line()} (log: {child.spec.log})")
        if self._monotonic() > deadline:
            raise StartError(
                f"{child.name} is not ready after {child.spec.ready_timeout_s:.0f} s:"
                f" {child.last_log_line()} (log: {child.spec.log})"
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
        child.start(self._monotonic())
        _log.info("%s started, pid %s, start %s", child.name, child.pid, child.starts)
        self._on_change(self, None)

    def _tick(self, timeout_s: float) -> None:
        """One look at everything: who died, who is due again, who became ready."""
        now = self._monotonic()
        for child in self.children:
            if child.reap(now):
                _log.warning("%s died: %s", child.name, child.last_log_line())
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
    deadline = system_monotonic() + timeout_s
    for child in children:
        if not child.wait(deadline - system_monotonic()):
            _log.warning("%s did not end in %.0f s: killed", child.name, timeout_s)
            child.signal(signal.SIGKILL)
            child.wait(5.0)

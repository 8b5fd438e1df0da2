"""CPU-heavy work on callers' input, in processes of its own: the event loop must not wait for it.

    workers = Workers(count=1, cpu_s=3)
    result = await workers.run("package.module:function", argument, owner=tenant)

A thread would not do: it shares the interpreter's lock. The function takes and returns what JSON can say. A process starts
when it is first needed, serves many calls, and ends with its parent (its input ends). A call that takes more CPU time than
`cpu_s` is ended by the kernel's timer, with its process; the next call has a new one.
May import pydantic_core. Never: what is worked on.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import IO, Any

from pydantic_core import from_json, to_json

MAX_WAITING = 32
MAX_OF_ONE_OWNER = 16
_TIMEOUT_FACTOR = 10
"""Seconds to wait per second of CPU time that a call may take: on a busy machine it gets its time slowly."""
_START_S = 20.0
_NICE = 5
_LENGTH = struct.Struct(">I")


class OverBudgetError(Exception):
    """The call took more CPU time than it may."""


class BusyError(Exception):
    """Too many calls wait, of all or of this owner."""


class WorkerError(Exception):
    """The process ended, or its function raised: an internal error."""


class Workers:
    """Up to `count` processes. `run` is for one event loop."""

    def __init__(self, count: int = 1, cpu_s: float = 3.0) -> None:
        self._cpu_s = cpu_s
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="workers")
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()

    async def run(self, function: str, argument: Any, *, owner: str = "") -> Any:
        """The function's result. Raises OverBudgetError, BusyError, WorkerError."""
        if self._waiting.total() >= MAX_WAITING or self._waiting[owner] >= MAX_OF_ONE_OWNER:
            raise BusyError("too many calls wait for a worker")
        self._waiting[owner] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._work, function, argument)
        finally:
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]

    def _work(self, function: str, argument: Any) -> Any:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker()
            with self._lock:
                self._all.add(worker)
        try:
            answer = worker.call({"function": function, "argument": argument, "cpu_s": self._cpu_s}, self._cpu_s)
        except BaseException:
            worker.end()
            with self._lock:
                self._all.discard(worker)
            raise
        with self._lock:
            self._idle.append(worker)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the processes, and with them what they work on."""
        with self._lock:
            workers = list(self._all)
        for worker in workers:
            worker.end()
        self._threads.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """One process, used by one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runtime.workers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._new = True

    def call(self, request: Any, cpu_s: float) -> Any:
        """The answer. Raises OverBudgetError, WorkerError."""
        stdin = self._process.stdin
        stdout = self._process.stdout
        assert stdin is not None and stdout is not None
        timeout_s = cpu_s * _TIMEOUT_FACTOR + (_START_S if self._new else 0)
        self._new = False
        try:
            _write(stdin, to_json(request))
            ready, _, _ = select.select([stdout], [], [], timeout_s)
            answer = _read(stdout) if ready else None
        except OSError:
            answer = None
        if answer is not None:
            return from_json(answer)
        status = self._ended()
        if status in (-signal.SIGPROF, -signal.SIGKILL):
            raise OverBudgetError(f"more than {cpu_s:g} s of CPU time")
        raise WorkerError(f"the worker ended with {status}")

    def _ended(self) -> int:
        """The exit status of a process that gave no answer; one that still runs is killed."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # it had died before it read all


def _write(stream: IO[bytes], body: bytes) -> None:
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """A body; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def _answer(request: Any) -> dict[str, Any]:
    module, _, name = request["function"].partition(":")
    function: Callable[[Any], Any] = getattr(import_module(module), name)
    signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
    try:
        return {"result": function(request["argument"])}
    except Exception as exc:  # noqa: BLE001 the caller raises it
        return {"error": f"{type(exc).__name__}: {exc}"[:500]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent says when it is over
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.nice(_NICE)
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not look like a response
    while (body := _read(requests)) is not None:
        _write(answers, to_json(_answer(from_json(body))))


if __name__ == "__main__":
    main()

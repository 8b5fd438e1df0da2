"""The life of a role: settings, logs, health, signals, exit status; and the named crash points of the fault tests.

    def main(settings) -> None: run_role("sink", settings, lambda context: Sink(context).run())

A role ends with 0 after SIGTERM, 1 with one line on a HeliographError, 70 on anything else (crash-only: nothing is
committed, the supervisor restarts it).
May import every module of runtime. Never: what a role does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version

from runtime.errors import HeliographError, UnavailableError
from runtime.health import Health, HealthServer
from runtime.kafka.admin import check_cluster
from runtime.kafka.client import EXIT_FATAL
from runtime.logs import configure_logs, get_logger
from runtime.metrics import BUILD
from runtime.registry import use_wire_ids
from runtime.settings import Settings

log = get_logger("process")


def exit_now(reason: str) -> None:
    """End the process at once with nothing committed: the next owner takes over from what is recorded."""
    log.critical("exiting", reason=reason)
    sys.stderr.flush()
    os._exit(EXIT_FATAL)


def allow_open_files() -> None:
    """Let this process open as many files and connections as the machine allows it: the usual 1,024 are too few for streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True)
class Context:
    """What a role is given: `stopping` is set by SIGTERM and SIGINT; the role then ends its work and returns."""

    role: str
    settings: Settings
    health: Health = field(default_factory=Health)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    exit_now: Callable[[str], None] = exit_now
    """Ends the process, as the function above; a test of what comes before puts something else here."""


def crash_point(name: str, wanted: str | None) -> None:
    """Kill this process (SIGKILL) when `wanted`, the setting crash_at, names this point."""
    if wanted == name:
        os.kill(os.getpid(), signal.SIGKILL)


async def _run(context: Context, body: Callable[[Context], Awaitable[None]], serve_health: bool) -> None:
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, context.stopping.set)
    context.health.starting()
    metrics = context.settings.metrics
    server = HealthServer(context.health, metrics.host, metrics.port) if serve_health else None
    if server:
        try:
            await server.start()
        except OSError as exc:
            raise UnavailableError(
                f"port {metrics.port} on {metrics.host} is in use; set HELIOGRAPH_METRICS__PORT to a free one"
            ) from exc
    try:
        # An error now, with what to do, beats a process that is never ready.
        await asyncio.to_thread(check_cluster, context.settings.kafka)
        await asyncio.to_thread(use_wire_ids, context.settings)
        await body(context)
    finally:
        if server:
            await server.stop()


def _collect_less() -> None:
    """A batch makes thousands of dictionaries that end with it: looking for cycles among them took 8 % of a router's time."""
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)


def run_role(
    role: str,
    settings: Settings,
    body: Callable[[Context], Awaitable[None]],
    *,
    serve_health: bool = True,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run a role to its end and return the exit status; `loop_factory` gives another event loop than asyncio's own."""
    configure_logs(role, settings.log_level)
    _collect_less()
    BUILD.labels(version("heliograph"), role).set(1)
    context = Context(role, settings)
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_run(context, body, serve_health))
    except HeliographError as exc:
        log.error("role failed", error=str(exc))
        sys.stderr.write(f"heliograph {role}: {exc}\n")
        return 1
    except Exception:
        log.exception("crashed")
        return EXIT_FATAL
    log.info("stopped")
    return 0

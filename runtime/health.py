"""Liveness, readiness and metrics of one process, served over HTTP on every process.

May import aiohttp and prometheus_client. Never: what "ready" means for a role (the role says it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Reason = str | None
"""Why a process is not ready, or None when it is."""


@dataclass(slots=True)
class Health:
    """What a process says of itself. A condition is ready when its function returns None, else it returns the reason."""

    conditions: dict[str, Callable[[], Reason]] = field(default_factory=dict)
    notes: dict[str, Callable[[], Reason]] = field(default_factory=dict)

    def note(self, name: str, condition: Callable[[], Reason]) -> None:
        """Report `condition` beside readiness, which does not depend on it."""
        self.notes[name] = condition

    def degraded(self) -> dict[str, str]:
        """What does not work although the process is ready, by name."""
        reasons = {name: condition() for name, condition in list(self.notes.items())}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def require(self, name: str, condition: Callable[[], Reason]) -> None:
        """Make readiness depend on `condition`."""
        self.conditions[name] = condition

    def starting(self) -> None:
        """Not ready until `started`: conditions that are not declared yet cannot be met."""
        self.conditions["role"] = lambda: "starting"

    def started(self) -> None:
        """Every condition of the role is declared."""
        self.conditions.pop("role", None)

    def not_ready(self) -> Reason:
        """The first unmet condition as `name: reason`, None when the process is ready."""
        for name, condition in list(self.conditions.items()):
            reason = condition()
            if reason is not None:
                return f"{name}: {reason}"
        return None


def add_health_routes(
    app: web.Application, ready: Callable[[], Reason], degraded: Callable[[], dict[str, str]] = dict
) -> None:
    """Serve /livez, /readyz, /health (alias of /readyz) and /metrics; `ready` returns None or why not."""

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        reason = ready()
        notes = {"degraded": found} if (found := degraded()) else {}
        if reason is None:
            return web.json_response({"status": "ready", **notes})
        return web.json_response({"status": "not_ready", "reason": reason, **notes}, status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/health", readyz)
    app.router.add_get("/metrics", metrics)


class HealthServer:
    """The health endpoint of a role that serves no other HTTP."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        self._host = host
        self._port = port
        app = web.Application()
        add_health_routes(app, health.not_ready, health.degraded)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Listen. Raises OSError when the port is in use."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def stop(self) -> None:
        """Close the listener."""
        await self._runner.cleanup()

"""What a template makes of some data, rendered by the router's own code in a process of its own.

May import processors.router.role and runtime. Never: HTTP, a recipient, a send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from processors.router.rendering import ParsedTemplate
from runtime.errors import FieldError, Refusal, RefusedError
from runtime.json_pointer import pointer
from runtime.workers import BusyError, OverBudgetError, Workers

_RENDER = "tracking.preview_work:render"


class Previewer:
    """Renders in a worker: the largest template with the worst of data takes its time."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def render(
        self, tenant: str, template: ParsedTemplate, channel: str, locale: str | None, data: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The parts of its content; of an SMS also how many messages its text takes, and in which alphabet. Raises RefusedError with what is missing or wrong, or when too many wait."""
        sources, _ = template.sources(channel, locale)
        if not sources:
            why = f"the template has no part for {channel}"
            raise RefusedError(
                Refusal.INVALID, "invalid_request", why, errors=[FieldError("/channel", why, "invalid_value")]
            )
        try:
            answer = await self._workers.run(
                _RENDER, {"channel": channel, "sources": sources, "data": data}, owner=tenant
            )
        except BusyError as exc:
            raise RefusedError(Refusal.BUSY, "overloaded", "too many previews wait; try again in a second") from exc
        except OverBudgetError as exc:
            why = f"to render it takes {exc}"
            raise RefusedError(
                Refusal.INVALID, "template_error", why, errors=[FieldError("", why, "template_error")]
            ) from exc
        if (path := answer.get("missing")) is not None:
            why = f"the template needs {path}"
            where = pointer(("data", *path.split(".")))
            raise RefusedError(
                Refusal.INVALID, "missing_variable", why, errors=[FieldError(where, why, "missing_variable")]
            )
        if (why := answer.get("error")) is not None:
            raise RefusedError(Refusal.INVALID, "template_error", why, errors=[FieldError("", why, "template_error")])
        found: dict[str, Any] = answer["parts"]
        return found

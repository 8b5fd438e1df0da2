"""`--template ID:VERSION`: the version of a template that a replay renders with, and whether there is one.

May import runtime.views. Never: rendering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from replay.times import UsageError
from runtime.errors import UnavailableError
from runtime.settings import KafkaSettings
from runtime.views import View, caught_up
from schemas.events import Template
from schemas.topics import TEMPLATES

TIMEOUT_S = 300.0


class TemplateView(Protocol):
    """Templates by `tenant:id:version`."""

    def raw(self, key: str) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class TemplateVersion:
    """A version of a template."""

    template_id: str
    version: int

    @classmethod
    def parse(cls, text: str) -> TemplateVersion:
        """Raises UsageError."""
        template_id, _, number = text.rpartition(":")
        if not template_id or not number.isdecimal() or not 1 <= len(number) <= 9:
            raise UsageError(f"--template {text!r} is not ID:VERSION, for example order-shipped:7")
        return cls(template_id, int(number))

    def __str__(self) -> str:
        return f"{self.template_id}:{self.version}"

    def check(self, tenant: str, templates: TemplateView) -> None:
        """Raises UsageError when the tenant has no such version."""
        if templates.raw(f"{tenant}:{self}") is None:
            raise UsageError(f"tenant {tenant} has no template {self}")


def check_templates(kafka: KafkaSettings, tenants: Iterable[str], template: TemplateVersion) -> None:
    """Raises UsageError when one of the tenants has no such version, UnavailableError."""
    view: View[Template] = View(kafka, TEMPLATES)
    try:
        view.start()
        wait_for((view,))
        for tenant in sorted(set(tenants)):
            template.check(tenant, view)
    finally:
        view.close()


def wait_for(views: tuple[View[Any], ...]) -> None:
    """Wait until views have all of their topics. Raises UnavailableError."""

    async def wait() -> None:
        await asyncio.wait_for(caught_up(views, asyncio.Event()), TIMEOUT_S)

    try:
        asyncio.run(wait())
    except TimeoutError as exc:
        reasons = "; ".join(reason for view in views if (reason := view.not_ready()))
        raise UnavailableError(f"users and templates could not be read within {TIMEOUT_S:.0f} s: {reasons}") from exc

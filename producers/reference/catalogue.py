"""What is known of templates, to refuse a notification that cannot be rendered before it is accepted.

Known from the compacted topic; what this process wrote itself counts at once; what neither has is looked up in PostgreSQL,
so that a template can be used right after it was created.
May import schemas and runtime. Never: rendering.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, NamedTuple, Protocol

from producers.notification import TemplateRef
from producers.reference.store import ReferenceStore, Row
from runtime.byte_cache import ByteCache
from runtime.errors import FieldError, Refusal, RefusedError, UnavailableError
from runtime.json_pointer import pointer
from runtime.templates.engine import has_path
from schemas.codec import codec

_MAX_WRITTEN = 10_000
_MAX_ASKING = 4


class Known(NamedTuple):
    """What a notification must bring."""

    variables: tuple[str, ...]
    updated_at: int


class TemplateView(Protocol):
    """The part of a view that is read."""

    def raw(self, key: str) -> bytes | None: ...


def _known(raw: bytes) -> Known:
    record = codec("Template").decode(raw)
    return Known(tuple(record["variables"]), record["updated_at"])


_decode = ByteCache(_known, 16 << 20)


class TemplateCatalogue:
    """Required variables by template."""

    def __init__(self, view: TemplateView, store: ReferenceStore) -> None:
        self._view = view
        self._store = store
        self._written: OrderedDict[str, Known] = OrderedDict()
        self._asking: dict[tuple[str, str, int | None], asyncio.Task[Row | None]] = {}
        self._askers = asyncio.Semaphore(_MAX_ASKING)

    def wrote(self, row: Row, *, published: bool) -> None:
        """This process wrote a version, or made it the published one."""
        known = Known(tuple(row["variables"]), row["updated_at"])
        key = f"{row['tenant']}:{row['template_id']}"
        self._remember(f"{key}:{row['version']}", known)
        if published:
            self._remember(key, known)

    def _remember(self, key: str, known: Known) -> None:
        self._written.pop(key, None)
        while len(self._written) >= _MAX_WRITTEN:
            self._written.popitem(last=False)
        self._written[key] = known

    def find(self, key: str) -> Known | None:
        """What this process knows without asking."""
        raw = self._view.raw(key)
        published = _decode(raw) if raw is not None else None
        if not self._written:
            return published
        written = self._written.get(key)
        if written is None:
            return published
        if published is not None and published.updated_at >= written.updated_at:
            del self._written[key]  # the topic has caught up with our write
            return published
        return written

    async def _look_up(self, tenant: str, template: TemplateRef) -> Row | None:
        """One question per template at a time, few in all: the items of a bulk must not occupy the store."""
        name = (tenant, template.id, template.version)
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.ensure_future(self._ask(*name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        try:
            return await asyncio.shield(task)
        except UnavailableError as exc:
            raise RefusedError(Refusal.BUSY, "store_unavailable", str(exc)) from exc

    async def _ask(self, tenant: str, template_id: str, version: int | None) -> Row | None:
        async with self._askers:
            return await self._store.find_template(tenant, template_id, version)

    async def check(self, tenant: str, template: TemplateRef, data: dict[str, Any]) -> None:
        """Raises RefusedError: unknown_template, missing_variable, or store_unavailable when the template cannot be looked up."""
        key = f"{tenant}:{template.id}"
        known = self.find(key if template.version is None else f"{key}:{template.version}")
        if known is None:
            row = await self._look_up(tenant, template)
            if row is None:
                why = (
                    "there is no published template of this id"
                    if template.version is None
                    else "there is no such version"
                )
                raise RefusedError(
                    Refusal.INVALID,
                    "unknown_template",
                    why,
                    errors=[FieldError("/template/id", why, "unknown_template")],
                )
            known = Known(tuple(row["variables"]), row["updated_at"])
        missing = [path for path in known.variables if not has_path(data, path)]
        if missing:
            raise RefusedError(
                Refusal.INVALID,
                "missing_variable",
                f"the template needs {', '.join(missing[:5])}",
                errors=[
                    FieldError(pointer(("data", *path.split("."))), f"the template needs {path}", "missing_variable")
                    for path in missing
                ],
            )

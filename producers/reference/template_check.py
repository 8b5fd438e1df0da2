"""A template of a request as a version that may be stored: checked, its layout and partials in place, or refused.

May import runtime.templates and the store. Never: a route.
"""

from __future__ import annotations

from typing import Any

from producers.notification import TEMPLATE_ID
from producers.reference.records import template_rows
from producers.reference.store import ReferenceStore, Row
from producers.reference.template_work import place_and_check
from runtime.errors import FieldError, Refusal, RefusedError
from runtime.templates.language import TemplateRefused
from runtime.templates.layouts import Fetch, Written, written_form
from runtime.workers import BusyError, Workers
from schemas.channels import CHANNELS
from schemas.codec import RecordTooLarge


class TemplateCheck:
    """Checks in `workers`; partials are read from the store."""

    def __init__(self, store: ReferenceStore, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    async def version(self, tenant: str, category: str | None, template: Written) -> Row:
        """The version with its required variables; without a category it is to inherit one. Raises RefusedError: template_invalid with line and reason, overloaded when too
        many templates are being checked."""
        try:
            checked = await place_and_check(template, self._fetch(tenant), self._workers, tenant)
            version = {
                "category": category,
                "channels": checked.channels,
                "locales": checked.locales,
                "variables": checked.variables,
            }
            _check_size(tenant, template.name, version)
        except TemplateRefused as exc:
            raise RefusedError(
                Refusal.INVALID,
                "template_invalid",
                str(exc),
                errors=[FieldError(_pointer(exc.where), exc.reason, "template_invalid")],
                extra={"line": exc.line, "reason": exc.reason, "where": exc.where},
            ) from exc
        except BusyError as exc:
            raise RefusedError(
                Refusal.BUSY, "overloaded", "too many templates are being checked; try again in a second"
            ) from exc
        written = {"channels": template.channels, "locales": template.locales, "layout": template.layout}
        return {**version, "written": written if checked.is_placed else None}

    def _fetch(self, tenant: str) -> Fetch:
        """Reads the published version of a template that another one includes."""

        async def fetch(name: str) -> dict[str, Any] | None:
            if not TEMPLATE_ID.fullmatch(name):
                return None
            row = await self._store.find_template(tenant, name, None)
            return written_form(row) if row is not None else None

        return fetch


def _check_size(tenant: str, name: str, version: Row) -> None:
    """Raises TemplateRefused for a template that its record has no room for."""
    category = version["category"] or "x" * 64  # an inherited one is no longer
    row = {**version, "category": category, "tenant": tenant, "template_id": name, "version": 2**31 - 1}
    try:
        template_rows(row, new=True, published=False, updated_at=2**48)
    except RecordTooLarge as exc:
        raise TemplateRefused(
            f"with its layout and locales it has {exc.size} bytes; {exc.limit} are allowed", where="channels"
        ) from exc


def _pointer(where: str) -> str:
    """email.html → /channels/email/html, de.sms.text → /locales/de/sms/text."""
    parts = where.split(".")
    if parts[0] in ("channels", "template"):
        return "/channels"
    if parts[0] == "layout":
        return "/layout"
    return "/" + "/".join(["channels", *parts] if parts[0] in CHANNELS else ["locales", *parts])

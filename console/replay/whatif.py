"""`heliograph replay --what-if`: the selected requests rendered as they were and with another version of their template.

The router's own function renders both, at the moment each request was accepted, on today's profiles; nothing is published.
May import processors and console.replay. What never enters here: a producer.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import typer

from console.replay.choose import Selection, check_topic
from console.replay.plan import Place, hour_of
from console.replay.records import decoded_request
from console.replay.source import scan
from console.replay.store import ReplayStore
from console.replay.times import UsageError
from processors.enrich import RouterViews, enrich_batch
from runtime.errors import UnavailableError
from runtime.records import InRecord
from runtime.settings import Settings
from runtime.views import View, caught_up
from schemas.codec import codec
from schemas.events import Cancellation, ChannelMessage, NotificationRequest, RecipientProfile, Template
from schemas.topics import DEAD_LETTERS, RECIPIENTS, STATUS, TEMPLATES, catalogue

PATIENCE_S = 300.0
PARTS = ("subject", "text", "html", "title", "body", "data")
MAX_SHOWN = 20
"""Differences on the screen; --json has them all."""


class _Nothing:
    """Neither suppressed nor cancelled: what is compared is the text."""

    def get(self, _: str) -> None:
        return None

    def raw(self, _: str) -> None:
        return None

    def __contains__(self, _: str) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Difference:
    """One message, or a notification that has none; `diff` is empty where only the outcome differs."""

    notification_id: str
    channel: str
    before: str
    after: str
    diff: str


@dataclass(slots=True)
class Report:
    """What would differ."""

    template: str
    unchanged: int = 0
    changed: int = 0
    failed: int = 0
    """Rendered as it was, and cannot be with the other version."""
    mended: int = 0
    """The other way round."""
    other_templates: int = 0
    differences: list[Difference] = field(default_factory=list)

    def show(self, as_json: bool) -> None:
        counts = {name: getattr(self, name) for name in ("unchanged", "changed", "failed", "mended", "other_templates")}
        if as_json:
            entries = [{name: getattr(d, name) for name in Difference.__slots__} for d in self.differences]
            typer.echo(json.dumps({"template": self.template, **counts, "differences": entries}, ensure_ascii=False))
            return
        for one in self.differences[:MAX_SHOWN]:
            typer.echo(f"{one.notification_id} {one.channel}: {one.before} -> {one.after}")
            if one.diff:
                typer.echo(one.diff)
        if len(self.differences) > MAX_SHOWN:
            typer.echo(f"... and {len(self.differences) - MAX_SHOWN} more; --json shows them all")
        typer.echo(
            f"With {self.template}: {self.unchanged} unchanged, {self.changed} changed, {self.failed} would fail, "
            f"{self.mended} would no longer fail; {self.other_templates} requests use another template. Nothing was published."
        )


def what_if(
    settings: Settings, store: ReplayStore, selection: Selection, template: str, told: Callable[[int, int], None]
) -> Report:  # fmt: skip
    """Compare. Raises UsageError, UnavailableError."""
    if check_topic(selection.topic).record != "NotificationRequest":
        raise UsageError("--what-if renders requests: give a requests topic")
    template_id, _, number = template.rpartition(":")
    if not template_id or not number.isdigit():
        raise UsageError(f"--template {template!r} is not ID:VERSION, for example order-shipped:7")
    recipients: View[RecipientProfile] = View(settings.kafka, RECIPIENTS)
    templates: View[Template] = View(settings.kafka, TEMPLATES)
    views = recipients, templates
    try:
        for view in views:
            view.start()
        _wait(views)
        nothing: Any = _Nothing()
        known = RouterViews(recipients, templates, nothing, cast("View[Cancellation]", nothing))
        report = Report(template)
        for record, request, version in _requests(settings, store, selection, template_id, report, told):
            if templates.raw(f"{request['tenant']}:{template_id}:{number}") is None:
                raise UsageError(f"tenant {request['tenant']} has no template {template}")
            _compare(record, request, version, int(number), known, report)
        return report
    finally:
        for view in views:
            view.close()


def _wait(views: tuple[View[Any], ...]) -> None:
    async def wait() -> None:
        await asyncio.wait_for(caught_up(views, asyncio.Event()), PATIENCE_S)

    try:
        asyncio.run(wait())
    except TimeoutError as exc:
        reasons = "; ".join(reason for view in views if (reason := view.not_ready()))
        raise UnavailableError(f"users and templates could not be read within {PATIENCE_S:.0f} s: {reasons}") from exc


def _requests(
    settings: Settings, store: ReplayStore, selection: Selection, template_id: str, report: Report,
    told: Callable[[int, int], None],
) -> Iterator[tuple[InRecord, NotificationRequest, int | None]]:  # fmt: skip
    """The selected requests of the template, each with the version it was rendered from where ClickHouse knows it."""
    found: dict[str, tuple[InRecord, NotificationRequest]] = {}
    for record in scan(settings.kafka, selection.topic, selection.since, selection.until, told):
        request = decoded_request(record.value)
        if request is None or request.get("replay") or selection.tenant not in (None, request["tenant"]):
            continue
        if request.get("template_id") != template_id:
            report.other_templates += 1
        else:
            found.setdefault(request["notification_id"], (record, request))
    hours: dict[int, set[str]] = {}
    for nid in found:
        hours.setdefault(hour_of(nid), set()).add(nid)
    for hour, nids in sorted(hours.items()):
        tenants = {found[nid][1]["tenant"] for nid in nids}
        subjects = store.subjects(hour, tenants, nids, selection.condition)
        for nid in sorted(nids, key=lambda nid: Place(*found[nid][0][:3]).offset):
            mine = subjects.get(nid, [])
            if selection.filtered and not any(subject.selected for subject in mine):
                continue
            versions = [s.template_version for s in mine if s.template_version]
            yield *found[nid], max(versions, default=request_version(found[nid][1]))


def request_version(request: NotificationRequest) -> int | None:
    """The version a request names."""
    return request.get("template_version")


def _compare(
    record: InRecord, request: NotificationRequest, before: int | None, after: int, views: RouterViews, report: Report
) -> None:  # fmt: skip
    old, new = _outcomes(record, request, before, views), _outcomes(record, request, after, views)
    for key in dict.fromkeys([*old, *new]):
        was, would = old.get(key), new.get(key)
        if was == would:
            report.unchanged += 1
            continue
        was_words, would_words = _words(was), _words(would)
        diff = ""
        if isinstance(was, dict) and isinstance(would, dict):
            report.changed += 1
            diff = "\n".join(_unified(was, would, before, after))
        elif isinstance(would, dict):
            report.mended += 1
        elif isinstance(was, dict):
            report.failed += 1
        else:
            report.changed += 1
        report.differences.append(Difference(request["notification_id"], key[0], was_words, would_words, diff))


Outcome = dict[str, str] | str
"""What a message says, or the state and reason it ended with instead."""


def _words(outcome: Outcome | None) -> str:
    if outcome is None:
        return "no message"
    return "rendered" if isinstance(outcome, dict) else outcome


def _outcomes(
    record: InRecord, request: NotificationRequest, version: int | None, views: RouterViews
) -> dict[tuple[str, str], Outcome]:  # fmt: skip
    """By channel and message."""
    wanted: NotificationRequest = {
        **request, "template_version": version, "send_at": None, "expires_at": None, "dry_run": False,
    }  # fmt: skip
    copy = record._replace(value=codec("NotificationRequest").encode(wanted))
    found: dict[tuple[str, str], Outcome] = {}
    for out in enrich_batch([copy], views, request["accepted_at"]):
        if out.topic == DEAD_LETTERS:
            continue  # its status says it as well
        if out.topic == STATUS:
            status = codec("DeliveryStatus").decode(out.value)
            if status["state"] != "routed":
                words = f"{status['state']} ({status['reason']}: {status['detail']})"
                found[status["channel"] or "", status["message_id"] or ""] = words
        elif catalogue()[out.topic].record == "ChannelMessage":
            message = cast(ChannelMessage, codec("ChannelMessage").decode(out.value))
            found[message["channel"], message["message_id"]] = _parts(message)
    return found


def _parts(message: ChannelMessage) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name in PARTS:
        value = cast(dict[str, Any], message)[name]
        if value is not None:
            parts[name] = value.decode() if isinstance(value, bytes) else value
    return parts


def _unified(was: dict[str, str], would: dict[str, str], before: int | None, after: int) -> Iterator[str]:
    for name in PARTS:
        old, new = was.get(name), would.get(name)
        if old != new:
            yield from difflib.unified_diff(
                (old or "").splitlines(), (new or "").splitlines(), f"{name} (version {before or 'latest'})",
                f"{name} (version {after})", lineterm="",
            )  # fmt: skip

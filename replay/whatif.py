"""`heliograph replay --what-if`: the selected requests with another version of their template, or through another account.

The router's own function renders, at the moment each request was accepted, on today's profiles; nothing is published.
May import processors and replay. Never: a producer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from processors.router.enrich import RouterViews, enrich_batch
from replay.accounts import AccountReport, Rendered
from replay.choose import Selection, build_plan, check_topic
from replay.plan import RecordPosition, StoredMessage
from replay.records import decoded_message, decoded_request
from replay.source import scan
from replay.store import ReplayStore
from replay.template import TemplateVersion, wait_for
from replay.times import UsageError
from runtime.ids import accepted_at
from runtime.records import ConsumerRecord
from runtime.settings import Settings
from runtime.views import View
from schemas.channels import MESSAGE_PARTS
from schemas.codec import codec
from schemas.events import Cancellation, ChannelMessage, DeliveryStatus, NotificationRequest, RecipientProfile, Template
from schemas.identity import hour_of
from schemas.topics import DEAD_LETTERS, RECIPIENTS, STATUS, TEMPLATES, catalogue


class _Nothing:
    """Neither suppressed nor cancelled: what is compared is the text."""

    def get(self, _: str) -> None:
        return None

    def raw(self, _: str) -> None:
        return None

    def __contains__(self, _: str) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class MessageDifference:
    """One message, or a notification that has none; `diff` is empty where only the outcome differs."""

    notification_id: str
    channel: str
    before: str
    after: str
    diff: str


@dataclass(slots=True)
class WhatIfResult:
    """What would differ."""

    template: str | None = None
    account: AccountReport | None = None
    unchanged: int = 0
    changed: int = 0
    failed: int = 0
    """Rendered as it was, and cannot be with the other version."""
    mended: int = 0
    """The other way round."""
    other_templates: int = 0
    would_publish: int = 0
    """Requests that a replay of this selection and template publishes."""
    pinned: int = 0
    """Of those, requests that name another version: without --template a replay renders them with that one again."""
    differences: list[MessageDifference] = field(default_factory=list)

    def as_object(self) -> dict[str, Any]:
        """For programs: of the template, of the account, whichever was asked for."""
        found: dict[str, Any] = {}
        if self.template is not None:
            names = (
                "template",
                "unchanged",
                "changed",
                "failed",
                "mended",
                "other_templates",
                "would_publish",
                "pinned",
            )
            found = {name: getattr(self, name) for name in names}
            found["differences"] = [
                {name: getattr(d, name) for name in MessageDifference.__slots__} for d in self.differences
            ]
        if self.account is not None:
            found["provider"] = self.account.as_object()
        return found


def what_if(
    settings: Settings,
    store: ReplayStore,
    selection: Selection,
    now: int,
    on_progress: Callable[[int, int], None],
    *,
    provider: str | None = None,
) -> WhatIfResult:
    """Compare, and plan the replay that would follow. Raises UsageError, SettingsError, UnavailableError."""
    wanted = selection.template
    account = AccountReport(settings.providers, provider) if provider is not None else None
    if check_topic(selection.topic).record == "ChannelMessage":
        if wanted is not None or account is None:
            raise UsageError("--what-if --template renders requests: give a requests topic")
        _dispatched(settings, store, selection, account, on_progress)
        return WhatIfResult(account=account)
    recipients: View[RecipientProfile] = View(settings.kafka, RECIPIENTS)
    templates: View[Template] = View(settings.kafka, TEMPLATES)
    views = recipients, templates
    try:
        for view in views:
            view.start()
        wait_for(views)
        nothing: Any = _Nothing()
        known = RouterViews(recipients, templates, nothing, cast("View[Cancellation]", nothing))
        report = WhatIfResult(str(wanted) if wanted is not None else None, account)
        for record, request, version, stored_messages in _requests(
            settings, store, selection, wanted, report, on_progress
        ):
            was = _decided(record, request, version, known)
            would = was
            if wanted is not None:
                wanted.check(request["tenant"], templates)
                would = _decided(record, request, wanted.version, known)
                _compare(request, was, would, (version, wanted.version), report)
            if account is not None:
                account.add(was.rendered(), stored_messages, filtered=selection.filtered, would=would.rendered())
        if wanted is not None:  # by the same function as the replay itself: its numbers are these
            plan = build_plan(settings.kafka, store, selection, now, on_progress)
            report.would_publish, report.pinned = len(plan.items), plan.pinned
        return report
    finally:
        for view in views:
            view.close()


def _requests(
    settings: Settings,
    store: ReplayStore,
    selection: Selection,
    wanted: TemplateVersion | None,
    report: WhatIfResult,
    on_progress: Callable[[int, int], None],
) -> Iterator[tuple[ConsumerRecord, NotificationRequest, int | None, list[StoredMessage]]]:
    """The selected requests (of the template), with the version each was rendered from and what ClickHouse has of it."""
    found: dict[str, tuple[ConsumerRecord, NotificationRequest]] = {}
    for record in scan(settings.kafka, selection.topic, selection.since, selection.until, on_progress):
        request = decoded_request(record.value)
        if request is None or request.get("replay") or selection.tenant not in (None, request["tenant"]):
            continue
        if wanted is not None and request.get("template_id") != wanted.template_id:
            report.other_templates += 1
        else:
            found.setdefault(request["notification_id"], (record, request))
    for hour, nids in _by_hour(found):
        tenants = {found[nid][1]["tenant"] for nid in nids}
        stored_messages = store.stored_messages(hour, tenants, nids, selection.condition)
        for nid in sorted(nids, key=lambda nid: RecordPosition(*found[nid][0][:3]).offset):
            mine = stored_messages.get(nid, [])
            if selection.filtered and not any(stored.selected for stored in mine):
                continue
            versions = [s.template_version for s in mine if s.template_version]
            yield *found[nid], max(versions, default=request_version(found[nid][1])), mine


def _by_hour(notification_ids: Iterable[str]) -> list[tuple[int, set[str]]]:
    hours: dict[int, set[str]] = {}
    for nid in notification_ids:
        hours.setdefault(hour_of(accepted_at(nid)), set()).add(nid)
    return sorted(hours.items())


def _dispatched(
    settings: Settings,
    store: ReplayStore,
    selection: Selection,
    account: AccountReport,
    on_progress: Callable[[int, int], None],
) -> None:
    """The messages of a dispatch topic: they are rendered already."""
    found: dict[str, dict[str, Rendered]] = {}
    tenants: dict[str, str] = {}
    for record in scan(settings.kafka, selection.topic, selection.since, selection.until, on_progress):
        message = decoded_message(record.value)
        if message is not None and selection.tenant in (None, message["tenant"]):
            found.setdefault(message["notification_id"], {})[message["message_id"]] = Rendered.of(message)
            tenants[message["notification_id"]] = message["tenant"]
    for hour, nids in _by_hour(found):
        stored_messages = store.stored_messages(hour, {tenants[nid] for nid in nids}, nids, selection.condition)
        for nid in sorted(nids):
            mine = [stored for stored in stored_messages.get(nid, []) if stored.message_id in found[nid]]
            account.add(found[nid].values(), mine, filtered=selection.filtered)


def request_version(request: NotificationRequest) -> int | None:
    """The version a request names."""
    return request.get("template_version")


@dataclass(frozen=True, slots=True)
class _Decided:
    """What the router makes of a request."""

    messages: list[ChannelMessage]
    statuses: list[DeliveryStatus]

    def rendered(self) -> list[Rendered]:
        return [Rendered.of(message) for message in self.messages]


def _decided(record: ConsumerRecord, request: NotificationRequest, version: int | None, views: RouterViews) -> _Decided:
    wanted: NotificationRequest = {
        **request,
        "template_version": version,
        "send_at": None,
        "expires_at": None,
        "dry_run": False,
    }
    copy = record._replace(value=codec("NotificationRequest").encode(wanted))
    decided = _Decided([], [])
    for out in enrich_batch([copy], views, request["accepted_at"]):
        if out.topic == DEAD_LETTERS:
            continue  # its status says it as well
        if out.topic == STATUS:
            decided.statuses.append(cast(DeliveryStatus, codec("DeliveryStatus").decode(out.value)))
        elif catalogue()[out.topic].record == "ChannelMessage":
            decided.messages.append(cast(ChannelMessage, codec("ChannelMessage").decode(out.value)))
    return decided


def _compare(
    request: NotificationRequest,
    was_decided: _Decided,
    would_decided: _Decided,
    versions: tuple[int | None, int],
    report: WhatIfResult,
) -> None:
    old, new = _outcomes(was_decided), _outcomes(would_decided)
    for key in dict.fromkeys([*old, *new]):
        was, would = old.get(key), new.get(key)
        if was == would:
            report.unchanged += 1
            continue
        was_words, would_words = _words(was), _words(would)
        diff = ""
        if isinstance(was, dict) and isinstance(would, dict):
            report.changed += 1
            diff = "\n".join(_unified(was, would, *versions))
        elif isinstance(would, dict):
            report.mended += 1
        elif isinstance(was, dict):
            report.failed += 1
        else:
            report.changed += 1
        report.differences.append(MessageDifference(request["notification_id"], key[0], was_words, would_words, diff))


Outcome = dict[str, str] | str
"""What a message says, or the state and reason it ended with instead."""


def _words(outcome: Outcome | None) -> str:
    if outcome is None:
        return "no message"
    return "rendered" if isinstance(outcome, dict) else outcome


def _outcomes(decided: _Decided) -> dict[tuple[str, str], Outcome]:
    """By channel and message."""
    found: dict[tuple[str, str], Outcome] = {}
    for status in decided.statuses:
        if status["state"] != "routed":
            words = f"{status['state']} ({status['reason']}: {status['detail']})"
            found[status["channel"] or "", status["message_id"] or ""] = words
    for message in decided.messages:
        found[message["channel"], message["message_id"]] = _parts(message)
    return found


def _parts(message: ChannelMessage) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name in MESSAGE_PARTS:
        value = cast(dict[str, Any], message)[name]
        if value is not None:
            parts[name] = value.decode() if isinstance(value, bytes) else value
    return parts


def _unified(was: dict[str, str], would: dict[str, str], before: int | None, after: int) -> Iterator[str]:
    for name in MESSAGE_PARTS:
        old, new = was.get(name), would.get(name)
        if old != new:
            yield from difflib.unified_diff(
                (old or "").splitlines(),
                (new or "").splitlines(),
                f"{name} (version {before or 'latest'})",
                f"{name} (version {after})",
                lineterm="",
            )

"""Turn a batch of request records into dispatch, status, timer and dead-letter records; pure.

Faust (agents.py) and the plain loop (loop.py) both call `enrich_batch`. The same records, views and time give the same
output, so copies from a redelivered batch are dropped downstream.
May import schemas and runtime values. Never: Faust, a Kafka client, a clock read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from processors.router.intake import check_request, decode_request, json_object
from processors.router.policy import ChannelDecision, Verdict, before_recipient, decide_channels
from processors.router.rendering import (
    ParsedTemplate,
    Parts,
    literal_channels,
    literal_parts,
    parse_template,
    render_parts,
)
from processors.router.routing import channel_message, not_routed, request_key, routed, schedule_timer
from runtime.consent import Suppressions
from runtime.dead_letters import INTERNAL_ERROR, UNDECODABLE, dead_letter_record, is_redriven
from runtime.logs import get_logger
from runtime.metrics import ROUTED
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.status import request_status, source_of, status_record, traceparent_of
from runtime.templates.engine import Engine, MissingVariable, RenderError, exact_numbers
from schemas.codec import DecodeError, RecordTooLarge
from schemas.events import Cancellation, NotificationRequest, RecipientProfile
from schemas.topics import DEAD_LETTERS, lane_of

log = get_logger("router")
_NOTHING = Parts()
MAX_BATCH_S = 1.0
"""Of deciding and rendering before what it gave is published: slow templates must not cost the group's patience."""


class RecipientView(Protocol):
    def get(self, key: str) -> RecipientProfile | None: ...


class TemplateView(Protocol):
    def raw(self, key: str) -> bytes | None: ...


class CancellationView(Protocol):
    def get(self, key: str) -> Cancellation | None: ...


@dataclass(slots=True)
class RouterViews:
    """The reference data a decision needs."""

    recipients: RecipientView
    templates: TemplateView
    suppressions: Suppressions
    cancellations: CancellationView
    engine: Engine = field(default_factory=Engine)


def enrich_batch(records: Sequence[ConsumerRecord], views: RouterViews, now: int) -> list[ProducerRecord]:
    """Decide, render and encode; `now` in milliseconds. Nothing a record holds makes this raise."""
    return enrich_some(records, views, now, lambda: True)[1]


def enrich_some(
    records: Sequence[ConsumerRecord], views: RouterViews, now: int, may_continue: Callable[[], bool]
) -> tuple[int, list[ProducerRecord]]:
    """The same, one record after the other while `may_continue` allows; how many were taken (one at least), and the output."""
    out: list[ProducerRecord] = []
    counts: Counter[tuple[str, str]] = Counter()
    taken = 0
    for record in records:
        out += _become(record, views, now, counts)
        taken += 1
        if not may_continue():
            break
    for (lane, state), count in counts.items():
        ROUTED.labels(lane, state).inc(count)
    return taken, out


def _become(
    record: ConsumerRecord, views: RouterViews, now: int, counts: Counter[tuple[str, str]]
) -> list[ProducerRecord]:
    try:
        request = decode_request(record)
    except DecodeError as exc:
        return [dead_letter_record(record, stage="router", reason=UNDECODABLE, error=exc, now=now)]
    try:
        decided = _Decision(record, request, views, now)
        out = decided.records()
    except (DecodeError, RecordTooLarge) as exc:  # too large for a status: for example, a tenant of a megabyte
        return _dead_letter(record, request, UNDECODABLE, exc, now)
    except Exception as exc:  # one record is one dead letter, whatever we did not think of
        log.exception("dead-lettered", notification_id=request["notification_id"])
        return _dead_letter(record, request, INTERNAL_ERROR, exc, now)
    for counted in decided.counted:
        counts[counted] += 1
    return out


def count_dead_letters(out: Iterable[ProducerRecord]) -> int:
    """How many of what enrich_batch returned are dead letters, but for those of records that an operator re-drove."""
    return sum(record.topic == DEAD_LETTERS and not is_redriven(record.headers) for record in out)


def _dead_letter(
    record: ConsumerRecord, request: NotificationRequest, reason: str, error: Exception, now: int
) -> list[ProducerRecord]:
    dead_letter = dead_letter_record(
        record,
        stage="router",
        reason=reason,
        error=error,
        now=now,
        tenant=request["tenant"],
        notification_id=request["notification_id"],
    )
    status = request_status(
        request,
        lane_of(record.topic),
        "dead_lettered",
        now=now,
        reason=reason,
        detail=type(error).__name__,
        source=source_of(record),
    )
    try:
        return [dead_letter, status_record(status, traceparent_of(record.headers))]
    except RecordTooLarge:
        return [dead_letter]  # a tenant of a megabyte, which is no tenant's name: no status event


class _Decision:
    """The decision about one request, as records."""

    def __init__(self, record: ConsumerRecord, request: NotificationRequest, views: RouterViews, now: int) -> None:
        self._record, self._request, self._views, self._now = record, request, views, now
        self._lane = lane_of(record.topic)
        self.counted: list[tuple[str, str]] = []

    def records(self) -> list[ProducerRecord]:
        request, views = self._request, self._views
        check_request(request)
        cancellation = views.cancellations.get(request["notification_id"])
        cancelled = cancellation is not None and cancellation["tenant"] == request["tenant"]
        verdict = before_recipient(request, cancelled=cancelled, now=self._now)
        if verdict is not None:
            return self._whole(verdict)
        profile: RecipientProfile | None = None
        if user_id := request.get("user_id"):
            profile = views.recipients.get(f"{request['tenant']}:{user_id}")
            if profile is None and not request.get("addresses"):
                return self._whole(Verdict("rejected", "unknown_recipient"))
        template: ParsedTemplate | None = None
        if request.get("template_id") is not None:
            try:
                template = self._template()
            except RenderError as exc:
                return self._whole(Verdict("rejected", "template_error", str(exc)))
            if template is None:
                return self._whole(Verdict("rejected", "unknown_template"))
        return self._messages(profile, template)

    def _template(self) -> ParsedTemplate | None:
        key = f"{self._request['tenant']}:{self._request.get('template_id')}"
        version = self._request.get("template_version")
        raw = self._views.templates.raw(key if version is None else f"{key}:{version}")
        return parse_template(raw) if raw is not None else None

    def _messages(self, profile: RecipientProfile | None, template: ParsedTemplate | None) -> list[ProducerRecord]:
        request = self._request
        raw = request.get("data")
        data = exact_numbers(json_object(raw, "data"), raw)
        content = json_object(request.get("content"), "content")
        available = list(template.channels) if template else literal_channels(content)
        category = request.get("category", "default")
        if category == "default" and template is not None:
            category = template.category
        choices = decide_channels(
            request, self._lane, category, available, profile, self._views.suppressions, self._now
        )
        if not choices:
            return self._whole(Verdict("rejected", "template_error", "there is nothing to send on any channel"))
        locale = request.get("locale") or (profile["locale"] if profile else None)
        key = request_key(request)
        out: list[ProducerRecord] = []
        for choice in choices:
            parts, verdict = _NOTHING, choice.verdict
            if verdict is None:
                parts, verdict = self._parts(choice, template, locale, data, content)
            message = channel_message(
                request,
                self._lane,
                choice.channel,
                choice.target,
                parts,
                category=category,
                template_version=template.version if template else None,
                preference_version=profile["version"] if profile else None,
                now=self._now,
            )
            if verdict is None:
                try:
                    out += routed(message, key, self._record, locale=parts.locale)
                except RecordTooLarge as exc:
                    verdict = Verdict("rejected", "template_error", str(exc))
            if verdict is not None:
                out.append(not_routed(message, verdict, self._record))
            self.counted.append((self._lane, verdict.state if verdict else "routed"))
        return out

    def _parts(
        self,
        choice: ChannelDecision,
        template: ParsedTemplate | None,
        locale: str | None,
        data: dict[str, Any],
        content: dict[str, Any],
    ) -> tuple[Parts, Verdict | None]:
        try:
            if template is None:
                parts = literal_parts(choice.channel, content)
            else:
                sources, rendered = template.sources(choice.channel, locale)
                parts = render_parts(self._views.engine, sources, data, rendered) if sources else None
        except MissingVariable as exc:
            return _NOTHING, Verdict("rejected", "missing_variable", exc.path)
        except RenderError as exc:
            return _NOTHING, Verdict("rejected", "template_error", str(exc))
        if parts is None:
            return _NOTHING, Verdict("rejected", "template_error", f"there is no part for {choice.channel}")
        return parts, None

    def _whole(self, verdict: Verdict) -> list[ProducerRecord]:
        timers: list[ProducerRecord] = []
        if verdict.state == "scheduled":
            try:
                timers = [schedule_timer(self._request, request_key(self._request), self._record)]
            except RecordTooLarge as exc:
                verdict = Verdict("rejected", "template_error", str(exc))
        self.counted.append((self._lane, verdict.state))
        status = request_status(
            self._request,
            self._lane,
            verdict.state,
            now=self._now,
            reason=verdict.reason,
            detail=verdict.detail,
            due_at=self._request.get("send_at") if verdict.state == "scheduled" else None,
            source=source_of(self._record),
        )
        # The timer first: a status without its timer would announce an attempt that never happens.
        return [*timers, status_record(status, traceparent_of(self._record.headers))]

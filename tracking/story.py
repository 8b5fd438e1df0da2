"""The whole story of a notification, from stored facts only; pure.

    acceptance ─► decision per channel ─► attempts, each with its result and how long the next one waited ─► reports

A fact names the versions of template and preferences that it was made with, so the story stays the same whatever is changed
afterwards.
May import tracking.status's rollup, schemas. Never: a read of preferences or templates, a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from runtime.status import rfc3339
from schemas.events import states
from tracking.status import Event, links, rollup

Row = Mapping[str, Any]
_IN_DOUBT = "in_doubt"
_REPORTS = frozenset({"delivered", "undelivered"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store has of a notification; rows of sinks/queries/{events,explain_*}.sql."""

    notification_id: str
    accepted_at: int
    accepted: bool
    events: Sequence[Event] = ()
    request: Row | None = None
    generations: Sequence[Row] = ()
    receipts: Sequence[Row] = ()
    dead_letters: Sequence[Row] = ()
    conditions: Sequence[Row] = ()
    """What is down now; looked at for what waits only."""


def in_words(state: str, reason: str, detail: str = "") -> str:
    """A state with its reason and detail: `skipped: the recipient has opted out (category marketing)`."""
    known = states()
    words = known.words.get(reason, reason) or known.means.get(state, "")
    return f"{state}: {words}" + (f" ({detail})" if detail else "")


def explain_facts(facts: Facts) -> dict[str, Any]:
    """The story as the API returns it."""
    whole = rollup(facts.notification_id, facts.accepted_at, facts.events)
    by_message: dict[str, list[Event]] = {}
    for event in sorted(facts.events, key=_order):
        by_message.setdefault(event["message_id"], []).append(event)
    of_whole = by_message.pop("", [])
    shown = {message["id"]: message for message in whole["messages"]}
    messages = [_message(shown[message_id], events, facts) for message_id, events in by_message.items()]
    messages.sort(key=lambda message: (message["channel"] or "", message["decided_at"] or "", message["id"]))
    waits = None if messages else _whole_waits(whole["status"], facts)
    return {
        "id": facts.notification_id,
        "status": whole["status"],
        "reason": whole["reason"],
        "why": waits or _why(whole, of_whole, messages),
        "waits_for": waits,
        "accepted_at": whole["accepted_at"],
        "acceptance": None if facts.request is None else _acceptance(facts.request),
        "messages": messages,
        "resends": [_resend(row, facts) for row in facts.generations],
        "dead_letters": [_dead_letter(row) for row in facts.dead_letters],
        "timeline": _timeline(facts),
        "links": links(facts.notification_id),
    }


def _order(event: Event) -> tuple[int, int, int, str]:
    # Of one millisecond: the decision, then attempts in their order, whatever the ranks say.
    return event["occurred_at"], event["attempt"], event["rank"], event["event_id"]


def _time(milliseconds: int | None) -> str | None:
    return rfc3339(milliseconds) if milliseconds else None


def _why(whole: Row, of_whole: Sequence[Event], messages: Sequence[Row]) -> str:
    if not messages:
        last = next((event for event in reversed(of_whole) if event["state"] == whole["status"]), None)
        return in_words(whole["status"], whole["reason"] or "", last["detail"] if last else "")
    return "; ".join(f"{message['channel']}: {message['why']}" for message in messages)


def _whole_waits(status: str, facts: Facts) -> str | None:
    """What a notification without messages waits for."""
    if status == "scheduled" and facts.request is not None and facts.request["send_at"]:
        return f"scheduled: waits for its time, {rfc3339(facts.request['send_at'])}"
    lane = facts.request["lane"] if facts.request else None
    halted = next((c for c in facts.conditions if (c["subject"], c["name"]) == ("router", lane)), None)
    if status == "accepted" and halted is not None:
        return f"accepted: the router of lane {lane} halted{_since(halted)}: {halted['detail']}"
    return None


def _message_waits(status: str, channel: str | None, events: Sequence[Event], facts: Facts) -> str | None:
    """What a message that is not settled waits for, and until when, as far as facts say it."""
    if status in states().settled:
        return None
    last = max(events, key=_order)
    if last["state"] == "retrying":
        due_at = last.get("due_at")  # 0 for facts of before there was such a field
        when = f"at {rfc3339(due_at)}" if due_at else "after a pause that grows with every retry"
        return f"retrying: attempt {last['attempt']} got {last['detail']}; the next is made {when}"
    if status == "held":
        return None
    mine = [c for c in facts.conditions if c["channel"] == channel]
    lane = facts.request["lane"] if facts.request else None
    # By channel where it serves all lanes, else by channel and lane.
    halted = next((c for c in mine if c["subject"] == "sender" and c["name"] in (channel, f"{channel} {lane}")), None)
    if halted is not None:
        return f"{status}: a sender of {channel} halted{_since(halted)}: {halted['detail']}"
    down = [c for c in mine if c["subject"] == "account"]
    if not down:
        return None
    words = [
        f"{c['name']}: {c['detail']}{_since(c)}" + (f", next probe at {rfc3339(c['next_at'])}" if c["next_at"] else "")
        for c in down
    ]
    return f"{status}: waits for {'; '.join(words)}"


def _since(condition: Row) -> str:
    return f" since {rfc3339(condition['since'])}" if condition["since"] else ""


def _acceptance(request: Row) -> dict[str, Any]:
    return {
        "source": request["source"] or None,
        "user_id": request["user_id"] or None,
        "lane": request["lane"],
        "category": request["category"],
        "correlation_id": request["correlation_id"] or None,
        "idempotency_key_given": bool(request["keyed"]),
        "template_id": request["template_id"] or None,
        "template_version": request["template_version"],
        "channels": list(request["channels"]),
        "strategy": request["strategy"],
        "delivery": request["delivery"],
        "send_at": _time(request["send_at"]),
        "expires_at": _time(request["expires_at"]),
        "dry_run": bool(request["dry_run"]),
        "tags": list(request["tags"]),
    }


# ---------------------------------------------------------------- a message


def _message(shown: Row, events: Sequence[Event], facts: Facts) -> dict[str, Any]:
    decision = next((event for event in events if event["attempt"] == 0), None)
    decisive = max((e for e in events if e["rank"] >= 0), key=lambda e: (e["rank"], *_order(e)), default=None)
    sent = next((event for event in events if event["state"] == "sent"), None)
    delivered = next((event for event in events if event["state"] == "delivered"), None)
    since = facts.request["send_at"] if facts.request and facts.request["send_at"] else facts.accepted_at
    attempts = _attempts(events, decision["occurred_at"] if decision else None)
    used = next(
        (e for e in events if e["template_version"] is not None or e["preference_version"] is not None), events[0]
    )
    waits = _message_waits(shown["status"], shown["channel"], events, facts)
    return {
        "id": shown["id"],
        "channel": shown["channel"],
        "status": shown["status"],
        "reason": shown["reason"],
        "why": waits or in_words(shown["status"], shown["reason"] or "", decisive["detail"] if decisive else ""),
        "waits_for": waits,
        "decided_at": _time(decision["occurred_at"]) if decision else None,
        "decision": in_words(decision["state"], decision["reason"], decision["detail"]) if decision else None,
        "template_id": used["template_id"] or None,
        "template_version": used["template_version"],
        "preference_version": used["preference_version"],
        "correlation_id": used["correlation_id"] or None,
        "provider": shown["provider"],
        "provider_message_id": shown["provider_message_id"],
        "possible_duplicate": shown["possible_duplicate"],
        "duplicate_because": _duplicate_because(events) if shown["possible_duplicate"] else None,
        "attempts": attempts,
        "engagement": [
            {"state": event["state"], "at": rfc3339(event["occurred_at"])}
            for event in events
            if event["state"] in states().engagement
        ],
        "receipts": [_receipt(row) for row in facts.receipts if _belongs(row, shown["id"], events)],
        "took_ms": {
            "decision": decision["occurred_at"] - since if decision else None,
            "waiting": _sum(attempt["waited_ms"] for attempt in attempts),
            "requests": _sum(attempt["latency_ms"] for attempt in attempts),
            "until_sent": sent["occurred_at"] - since if sent else None,
            "until_delivered": delivered["occurred_at"] - since if delivered else None,
        },
    }


def _sum(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _attempts(events: Sequence[Event], decided_at: int | None) -> list[dict[str, Any]]:
    """One entry per attempt, in order; `waited_ms` is from the end of the one before (or the decision) to its start."""
    known = states()
    by_attempt: dict[int, list[Event]] = {}
    for event in events:
        if event["attempt"] > 0 and event["state"] not in known.engagement and event["state"] != "replayed":
            by_attempt.setdefault(event["attempt"], []).append(event)
    found: list[dict[str, Any]] = []
    before = decided_at
    for attempt, of_attempt in sorted(by_attempt.items()):
        # The result of the request, not what was reported later about it.
        made = [event for event in of_attempt if event["state"] not in _REPORTS] or of_attempt
        end = max(made, key=lambda e: (e["latency_ms"] is not None, *_order(e)))
        started_at = end["occurred_at"] - (end["latency_ms"] or 0)
        if found:
            found[-1]["next_after_ms"] = max(0, started_at - (before or started_at))
        found.append(
            {
                "attempt": attempt,
                "provider": end["provider"] or None,
                "state": end["state"],
                "reason": end["reason"] or None,
                "detail": end["detail"] or None,
                "why": in_words(end["state"], end["reason"], end["detail"]),
                "started_at": rfc3339(started_at),
                "occurred_at": rfc3339(end["occurred_at"]),
                "waited_ms": None if before is None else max(0, started_at - before),
                "latency_ms": end["latency_ms"],
                "possible_duplicate": bool(end["possible_duplicate"]),
                "next_after_ms": None,
                "next_because": _next_because(end),
            }
        )
        before = end["occurred_at"]
    return found


def _next_because(end: Event) -> str | None:
    """Why another attempt follows, and what it waits for."""
    if end["state"] == "failed_over":
        return "nothing was sent, so another account is asked at once"
    if end["state"] != "retrying":
        return None
    if end["reason"] == _IN_DOUBT:
        flagged = (
            "flagged as a possible duplicate"
            if end["possible_duplicate"]
            else "and its vendor recognises the repetition"
        )
        return f"it is unknown whether it was sent: after a pause the same account tries again, {flagged}"
    return "nothing was sent: a pause that grows with every retry, or as long as the provider asked for"


def _duplicate_because(events: Sequence[Event]) -> str:
    doubts = [
        event
        for event in events
        if event["state"] == "retrying" and event["reason"] == _IN_DOUBT and event["possible_duplicate"]
    ]
    if doubts:
        return "; ".join(
            f"attempt {event['attempt']} is {event['detail']}, and at_least_once means sending again"
            for event in doubts
        )
    first = next((event for event in events if event["possible_duplicate"]), events[0])
    return f"flagged with `{first['state']}` of attempt {first['attempt']}: an attempt before it may have been sent"


def _belongs(receipt: Row, message_id: str, events: Sequence[Event]) -> bool:
    if int(receipt["message"], 16):
        return UUID(hex=receipt["message"]) == UUID(message_id)
    return any(
        (event["provider"], event["provider_message_id"]) == (receipt["provider"], receipt["provider_message_id"])
        for event in events
    )


def _receipt(row: Row) -> dict[str, Any]:
    return {
        "provider": row["provider"],
        "provider_message_id": row["provider_message_id"],
        "state": row["state"],
        "reason": row["reason"] or None,
        "code": row["code"] or None,
        "occurred_at": rfc3339(row["occurred_at"]),
        "received_at": rfc3339(row["received_at"]),
    }


def _resend(row: Row, facts: Facts) -> dict[str, Any]:
    # A request says no time of its own beyond the acceptance: the first fact under its correlation id does.
    original = facts.request["correlation_id"] if facts.request else ""
    times = [
        event["occurred_at"]
        for event in facts.events
        if event["correlation_id"] == row["correlation_id"] and row["correlation_id"] != original
    ]
    return {
        "generation": row["generation"],
        "source": row["source"] or None,
        "correlation_id": row["correlation_id"] or None,
        "first_event_at": rfc3339(min(times)) if times else None,
    }


def _dead_letter(row: Row) -> dict[str, Any]:
    message = int(row["message"], 16)
    return {
        "message_id": str(UUID(int=message)) if message else None,
        "stage": row["stage"],
        "reason": row["reason"],
        "why": states().words.get(row["reason"], row["reason"]),
        "error_class": row["error_class"],
        "detail": row["detail"] or None,
        "attempts": row["attempts"],
        "topic": row["topic"],
        "partition": row["partition"],
        "offset": row["offset"],
        "occurred_at": rfc3339(row["occurred_at"]),
    }


# ---------------------------------------------------------------- the timeline


def _timeline(facts: Facts) -> list[dict[str, Any]]:
    """Everything in the order of time; `stage` says who speaks."""
    lines: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def add(at: int, order: tuple[Any, ...], stage: str, what: str, event: Event | None = None) -> None:
        line = {
            "at": rfc3339(at),
            "after_ms": at - facts.accepted_at,
            "stage": stage,
            "message_id": (event and event["message_id"]) or None,
            "channel": (event and event["channel"]) or None,
            "attempt": (event and event["attempt"]) or None,
            "what": what,
        }
        lines.append(((at, *order), line))

    if facts.accepted:
        add(facts.accepted_at, (0,), "acceptance", _accepted(facts.request))
    for event in facts.events:
        add(event["occurred_at"], (1, *_order(event)[1:]), _stage(event), _said(event), event)
    for row in facts.receipts:
        said = f"{row['provider']} reports {in_words(row['state'], row['reason'], row['code'])}"
        add(row["received_at"], (2,), "receipt", said)
    for row in facts.dead_letters:
        words = states().words.get(row["reason"], row["reason"])
        where = f"{row['topic']}/{row['partition']} at {row['offset']}"
        add(
            row["occurred_at"],
            (3,),
            "dead letter",
            f"the {row['stage']} gave up {where}: {words} ({row['error_class']})",
        )
    lines.sort(key=lambda line: line[0])
    return [line for _, line in lines]


def _accepted(request: Row | None) -> str:
    if request is None:
        return "accepted"
    parts = [f"accepted from {request['source'] or 'an unnamed source'} in lane {request['lane']}"]
    if request["user_id"]:
        parts.append(f"for {request['user_id']}")
    if request["correlation_id"]:
        parts.append(f"correlation id {request['correlation_id']}")
    return ", ".join(parts)


def _stage(event: Event) -> str:
    if event["state"] == "replayed":
        return "operator"
    if event["state"] in _REPORTS or event["state"] in states().engagement:
        return "report"
    return "attempt" if event["attempt"] > 0 else "decision"


def _said(event: Event) -> str:
    words = in_words(event["state"], event["reason"], event["detail"])
    parts = []
    if event["attempt"] > 0 and event["provider"]:
        took = "" if event["latency_ms"] is None else f" in {event['latency_ms']} ms"
        parts.append(f"attempt {event['attempt']} at {event['provider']}{took}: {words}")
    else:
        parts.append(words)
    if event["attempt"] == 0 and event["template_id"]:
        version = event["template_version"]
        parts.append(f"template {event['template_id']}" + (f" version {version}" if version is not None else ""))
    if event["attempt"] == 0 and event["preference_version"] is not None:
        parts.append(f"preferences version {event['preference_version']}")
    if event["possible_duplicate"]:
        parts.append("possible duplicate")
    return ", ".join(parts)

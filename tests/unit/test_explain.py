"""The story of a notification, told from facts: every attempt with its wait, why it may be a duplicate, in an order of time."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from console.commands.audit import moment
from console.commands.explain import show_story
from runtime.errors import SettingsError
from runtime.status import rfc3339
from schemas.events import states
from tests.unit.test_status_rollup import NOW, WHOLE, A, B, fact
from tracking.audit import Audit, columns
from tracking.story import Facts, explain_facts, in_words

NID = str(UUID(int=(NOW << 80) | (7 << 76) | (2 << 62)))


def request(**more: Any) -> dict[str, Any]:
    return {
        "lane": "normal",
        "category": "orders",
        "template_id": "order",
        "template_version": None,
        "strategy": "all",
        "delivery": "at_least_once",
        "tags": ["x"],
        "source": "http",
        "correlation_id": "c-1",
        "user_id": "zoe",
        "keyed": True,
        "dry_run": False,
        "channels": ["email"],
        "generation": 0,
        "send_at": 0,
        "expires_at": 0,
        **more,
    }


def facts(*events: dict[str, Any], **more: Any) -> Facts:
    asked = {"request": request(), **more}
    return Facts(NID, NOW, accepted=asked["request"] is not None, events=events, **asked)


JOURNEY = (
    fact(A, "routed", at=20, template_id="order", template_version=3, preference_version=8, correlation_id="c-1"),
    fact(A, "retrying", at=130, attempt=1, provider="mail-1", detail="451 4.7.1", latency_ms=100),
    fact(
        A,
        "retrying",
        "in_doubt",
        at=2_300,
        attempt=2,
        provider="mail-1",
        detail="in doubt: BODY",
        latency_ms=150,
        possible_duplicate=True,
    ),
    fact(
        A,
        "sent",
        at=5_000,
        attempt=3,
        provider="mail-1",
        provider_message_id="m1",
        latency_ms=200,
        possible_duplicate=True,
    ),
    fact(A, "delivered", at=9_000, attempt=3, provider="mail-1", provider_message_id="m1", possible_duplicate=True),
    fact(A, "opened", at=12_000, attempt=3, provider="mail-1"),
    fact(B, "skipped", "opted_out", at=20, channel="push", detail="category orders", preference_version=8),
)


def test_attempts_show_how_long_each_waited_and_why_another_followed() -> None:
    email, _ = explain_facts(facts(*JOURNEY))["messages"]
    one, two, three = email["attempts"]
    assert (one["waited_ms"], one["latency_ms"], one["next_after_ms"]) == (10, 100, 2_020)
    assert "nothing was sent" in one["next_because"]
    assert (two["waited_ms"], two["next_after_ms"]) == (2_020, 2_500)
    assert "possible duplicate" in two["next_because"]
    assert (three["state"], three["next_after_ms"], three["next_because"]) == ("sent", None, None)
    assert email["took_ms"] == {
        "decision": 20,
        "waiting": 4_530,
        "requests": 450,
        "until_sent": 5_000,
        "until_delivered": 9_000,
    }
    assert email["engagement"] == [{"state": "opened", "at": rfc3339(NOW + 12_000)}]


def test_decisions_and_versions_are_shown_per_channel() -> None:
    story = explain_facts(facts(*JOURNEY))
    email, push = story["messages"]
    assert (email["template_id"], email["template_version"], email["preference_version"]) == ("order", 3, 8)
    assert push["decision"] == push["why"] == "skipped: the recipient has opted out (category orders)"
    assert push["preference_version"] == 8
    assert story["why"] == f"email: {email['why']}; push: {push['why']}"
    assert story["acceptance"]["idempotency_key_given"] is True
    assert story["acceptance"]["send_at"] is None


def test_duplicate_says_which_attempt_was_in_doubt() -> None:
    email, push = explain_facts(facts(*JOURNEY))["messages"]
    assert email["possible_duplicate"]
    assert "attempt 2 is in doubt: BODY" in email["duplicate_because"]
    assert push["duplicate_because"] is None


def test_timeline_is_one_order_whatever_order_the_facts_come_in() -> None:
    expected = explain_facts(facts(*JOURNEY))
    stages = [line["stage"] for line in expected["timeline"]]
    assert stages == ["acceptance", "decision", "decision", "attempt", "attempt", "attempt", "report", "report"]
    times = [line["after_ms"] for line in expected["timeline"]]
    assert times == sorted(times)
    rng = random.Random(3)
    for _ in range(20):
        shuffled = list(JOURNEY)
        rng.shuffle(shuffled)
        assert explain_facts(facts(*shuffled)) == expected


def test_fail_over_is_explained() -> None:
    (message,) = explain_facts(
        facts(
            fact(A, "routed"),
            fact(A, "failed_over", at=10, attempt=1, provider="mail-1", detail="421; next: mail-2"),
            fact(A, "sent", at=30, attempt=2, provider="mail-2", latency_ms=15),
        )
    )["messages"]
    assert "another account" in message["attempts"][0]["next_because"]
    assert (message["attempts"][0]["next_after_ms"], message["provider"]) == (5, "mail-2")


def test_refusal_of_the_whole_has_its_words() -> None:
    story = explain_facts(facts(fact(WHOLE, "rejected", "unknown_template", at=5)))
    assert story["messages"] == []
    assert story["why"] == "rejected: the template or its version does not exist"
    assert [line["stage"] for line in story["timeline"]] == ["acceptance", "decision"]


def test_just_accepted_and_stray_facts_are_told_apart() -> None:
    young = explain_facts(Facts(NID, NOW, accepted=True))
    assert (young["status"], young["acceptance"], len(young["timeline"])) == ("accepted", None, 1)
    orphan = explain_facts(facts(fact(A, "sent", attempt=1), request=None))
    assert [line["stage"] for line in orphan["timeline"]] == ["attempt"]


def test_what_waits_says_for_what_and_until_when() -> None:
    def condition(subject: str, name: str, channel: str, **more: Any) -> dict[str, Any]:
        return {
            "subject": subject,
            "name": name,
            "channel": channel,
            "detail": "401 20003",
            "since": 0,
            "next_at": 0,
            **more,
        }

    down = condition("account", "mail-1", "email", since=NOW, next_at=NOW + 3_000)
    routed = replace(facts(fact(A, "routed", at=5, channel="email")), conditions=(down,))
    (message,) = explain_facts(routed)["messages"]
    assert message["why"] == message["waits_for"]
    assert message["why"] == (
        f"routed: waits for mail-1: 401 20003 since {rfc3339(NOW)}, next probe at {rfc3339(NOW + 3_000)}"
    )
    # Another channel's account, and what is settled, wait for nothing.
    other = replace(routed, conditions=(condition("account", "sms-1", "sms"),))
    settled = replace(facts(fact(A, "sent", attempt=1, channel="email")), conditions=(down,))
    assert [explain_facts(f)["messages"][0]["waits_for"] for f in (other, settled)] == [None, None]
    halted = replace(routed, conditions=(condition("sender", "email", "email", detail="too many", since=NOW), down))
    assert explain_facts(halted)["why"] == f"email: routed: a sender of email halted since {rfc3339(NOW)}: too many"
    # One that serves some lanes holds up those alone.
    lanes = [condition("sender", f"email {lane}", "email", detail="too many") for lane in ("bulk", "normal")]
    of_lane = replace(routed, request=request(lane="bulk"))
    assert (
        explain_facts(replace(of_lane, conditions=(lanes[0],)))["why"]
        == "email: routed: a sender of email halted: too many"
    )
    assert explain_facts(replace(of_lane, conditions=(lanes[1],)))["messages"][0]["waits_for"] is None

    retrying = fact(A, "retrying", attempt=1, at=9, channel="email", detail="429")
    assert "the next is made after a pause" in explain_facts(facts(retrying))["why"]
    assert f"the next is made at {rfc3339(NOW + 60)}" in explain_facts(facts({**retrying, "due_at": NOW + 60}))["why"]

    stopped = condition("router", "normal", "", detail="too many", since=NOW)
    held = Facts(NID, NOW, accepted=True, request=request(), conditions=(stopped,))
    assert explain_facts(held)["why"] == f"accepted: the router of lane normal halted since {rfc3339(NOW)}: too many"
    later = facts(fact(WHOLE, "scheduled", at=1), request=request(send_at=NOW + 9_000))
    assert explain_facts(later)["why"] == f"scheduled: waits for its time, {rfc3339(NOW + 9_000)}"


def test_time_is_counted_from_send_at_where_one_was_given() -> None:
    (message,) = explain_facts(
        facts(
            fact(A, "routed", at=60_030), fact(A, "sent", at=60_100, attempt=1), request=request(send_at=NOW + 60_000)
        )
    )["messages"]
    assert (message["took_ms"]["decision"], message["took_ms"]["until_sent"]) == (30, 100)


def test_receipts_dead_letters_and_resends_are_told_where_they_belong() -> None:
    receipt = {
        "message": "0" * 32,
        "provider": "mail-1",
        "provider_message_id": "m1",
        "state": "bounced",
        "reason": "hard_bounce",
        "code": "550",
        "occurred_at": NOW + 9_000,
        "received_at": NOW + 9_100,
    }
    dead_letter = {
        "message": UUID(A).hex,
        "topic": "notify.dispatch.email.normal.v1",
        "partition": 1,
        "offset": 9,
        "stage": "sender",
        "reason": "retries_exhausted",
        "error_class": "RetriesExhausted",
        "detail": "451",
        "attempts": 6,
        "occurred_at": NOW + 9_500,
    }
    again = fact(B, "routed", at=20_000, correlation_id="c-2")
    generation = {"generation": 1, "source": "http", "correlation_id": "c-2"}
    story = explain_facts(
        facts(*JOURNEY[:-1], again, receipts=[receipt], dead_letters=[dead_letter], generations=[generation])
    )
    assert [len(message["receipts"]) for message in story["messages"]] == [1, 0]
    assert story["dead_letters"][0]["message_id"] == A
    assert story["dead_letters"][0]["why"] == "every attempt failed"
    assert story["resends"] == [
        {"generation": 1, "source": "http", "correlation_id": "c-2", "first_event_at": rfc3339(NOW + 20_000)}
    ]
    said = [line["what"] for line in story["timeline"]]
    assert any("mail-1 reports bounced: the address does not exist (550)" in line for line in said)
    assert any("the sender gave up notify.dispatch.email.normal.v1/1 at 9" in line for line in said)


@pytest.mark.parametrize("state", sorted(states().reasons))
def test_every_reason_has_words(state: str) -> None:
    for reason in states().reasons[state]:
        assert in_words(state, reason).startswith(f"{state}: ")
        assert reason not in in_words(state, reason).removeprefix(f"{state}: ").split()
    assert set(states().words) == states().event_reasons.union(*states().reasons.values())


def test_it_is_printed_for_people_and_nothing_in_it_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = fact(A, "failed", "retries_exhausted", at=9, attempt=4, provider="mail-1", detail="[red]x[/nope] [/]")
    story = explain_facts(facts(*JOURNEY[:2], hostile))
    show_story(json.loads(json.dumps(story)))
    printed = capsys.readouterr().out
    assert "[red]x[/nope] [/]" in "".join(printed.split("\n"))
    assert story["id"] in printed
    assert "waited" in printed


# ---------------------------------------------------------------- audit


def hour(residual: int = 0, **more: int) -> dict[str, Any]:
    return {**dict.fromkeys(columns(), 0), "tenant": "t", "residual": residual, **more}


def test_audit_sums_every_column_and_looks_at_every_hour() -> None:
    found = Audit([hour(accepted=3, sent=2, in_flight=1), hour(accepted=4, failed=4)], ())
    assert (found.totals["accepted"], found.totals["sent"], found.totals["failed"], found.adds_up) == (7, 2, 4, True)
    assert not Audit([hour(), hour(residual=1)], ()).adds_up


def test_times_of_an_audit_are_utc_unless_they_say_otherwise() -> None:
    assert moment("2026-03-01") == moment("2026-03-01T00:00:00Z") == moment("2026-03-01T01:00:00+01:00")
    assert moment("1900-01-01") == 0
    with pytest.raises(SettingsError, match="yesterday is not a time"):
        moment("yesterday")

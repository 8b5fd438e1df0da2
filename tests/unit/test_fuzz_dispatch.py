"""Whatever a stranger publishes to a dispatch topic ends by itself, with a fact where it can be told, and stops nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.channels import PLATFORMS
from schemas.codec import codec
from schemas.events import ChannelMessage, states
from schemas.topics import DEAD_LETTERS, MAX_VALUE_BYTES, STATUS, TIMERS, ledger_topic
from senders import intake, worker
from senders.intake import MAX_COUNT, MAX_STATED
from tests.support.workers import World
from tests.unit.test_worker import made
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

_INT = st.sampled_from([0, 1, -1, 5, 6, 72, 73, 9_999, 2**29, 2**30, 2**31 - 1, -(2**31)]) | st.integers(
    -(2**31), 2**31 - 1
)
_LONG = st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(max_size=30) | st.sampled_from(
    ["", "\0", "\0\0", "a\0b", "\r\nBcc: x", "\u202e", "a" * 300, "=?utf-8?q?x?="]
)
_LONG_TEXT = _TEXT | st.sampled_from(["x" * 20_000, "é" * 20_000])
_BYTES = st.sampled_from([b"", b"{}", b"[]", b"[1]", b'"x"', b"null", b"{", b"\xff", b"1e999", b"\0", b"[" * 5_000])
_UUID = st.uuids().map(str)
_ODD_UUID = st.sampled_from(
    ["", "x", "\0", "0" * 32, "{12345678-1234-5678-1234-567812345678}", "urn:uuid:" + "A" * 32, "1" * 400]
)
_MAYBE = st.none() | _LONG_TEXT
HOSTILE: dict[str, st.SearchStrategy[Any]] = {
    "message_id": _UUID | _ODD_UUID,
    "notification_id": _UUID | _ODD_UUID,
    "tenant": _LONG_TEXT,
    "accepted_at": _LONG,
    "channel": st.sampled_from(["email", "sms", "push", "", "\0"]) | _TEXT,
    "lane": st.sampled_from(["critical", "normal", "bulk", "", "\0"]) | _TEXT,
    "category": _LONG_TEXT,
    "user_id": _MAYBE,
    "address": _LONG_TEXT,
    "platform": st.none() | st.sampled_from(PLATFORMS) | _TEXT,
    "subject": _MAYBE,
    "text": _MAYBE,
    "html": _MAYBE,
    "title": _MAYBE,
    "body": _MAYBE,
    "data": st.none() | _BYTES,
    "attempt": _INT,
    "retries": _INT,
    "generation": _INT,
    "delivery": st.sampled_from(["at_least_once", "at_most_once", ""]) | _TEXT,
    "expires_at": st.none() | _LONG,
    "template_id": _MAYBE,
    "template_version": st.none() | _INT,
    "preference_version": st.none() | _INT,
    "possible_duplicate": st.booleans(),
    "correlation_id": _MAYBE,
    "overrides": st.none() | _BYTES,
    "provider": _MAYBE,
    "replay": _MAYBE,
    "routed_at": _LONG,
}
_FIELDS = st.dictionaries(st.sampled_from(sorted(HOSTILE)), st.just(None), max_size=6).flatmap(
    lambda fields: st.fixed_dictionaries({name: HOSTILE[name] for name in fields})
)
_HEADERS = st.lists(
    st.tuples(st.sampled_from(["traceparent", "ce_id", "", "x\0"]), st.none() | st.binary(max_size=400)), max_size=3
)
_RESULTS: st.SearchStrategy[SendResult] = st.one_of(
    st.just(Sent("1")),
    st.just(Rejected(ErrorClass.PERMANENT_RECIPIENT, "550")),
    st.builds(
        Retry,
        st.sampled_from([ErrorClass.TRANSIENT, ErrorClass.THROTTLED, ErrorClass.ACCOUNT]),
        st.just("451"),
        st.none() | st.floats(),
        st.booleans(),
    ),
    st.builds(InDoubt, st.just("timeout"), st.none() | st.floats()),
)


def check_world(world: World) -> None:
    """Every record is done with, and every fact can be read by whoever reads its topic."""
    world.settle(3)
    assert world.undone() == 0 or world.admission.in_flight or world.admission.parked
    for lane in ("critical", "normal", "bulk"):
        for entry in world.of(ledger_topic(world.channel, lane)):
            world.ledger.record(entry["message_id"], entry["next_attempt"], entry["state"], entry["recorded_at"])
    for status in world.of(STATUS):
        assert str(UUID(status["message_id"])) == status["message_id"]
        assert status["state"] in states().all
        assert not status["reason"] or status["reason"] in states().words
    for timer in world.of(TIMERS):
        codec("ChannelMessage").decode(timer["value"])
    for dead_letter in world.of(DEAD_LETTERS):
        assert dead_letter["error_class"]
    for fact in world.facts:
        assert len(fact.value or b"") < (MAX_VALUE_BYTES if fact.topic != DEAD_LETTERS else 3 * MAX_VALUE_BYTES)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from(["email", "push"]), st.lists(st.tuples(_FIELDS, _HEADERS), min_size=1, max_size=4), _RESULTS)
def test_hostile_but_decodable_messages_each_have_an_outcome(
    channel: str, hostile: list[tuple[dict[str, Any], list[tuple[str, bytes]]]], result: SendResult
) -> None:
    honest = made(channel=channel)
    world = World(
        lambda message: Sent("1") if message["message_id"] == honest["message_id"] else result, channel=channel
    )
    for fields, headers in hostile:
        world.put(codec("ChannelMessage").encode({**made(channel=channel), **fields}), headers=headers)
    world.send(honest)
    world.settle(3)
    check_world(world)
    reported = {status["message_id"]: status["state"] for status in world.statuses()}
    assert reported[honest["message_id"]] in ("sent", "retrying"), "its neighbours are none of its business"
    nameless = 0
    for fields, _ in hostile:
        try:
            message_id = str(UUID(fields["message_id"])) if "message_id" in fields else None
            UUID(fields.get("notification_id", honest["notification_id"]))
        except ValueError:
            nameless += 1  # nothing can be said of it but that it is a dead letter
            continue
        assert message_id is None or message_id in reported
    assert len(world.of(DEAD_LETTERS)) >= nameless


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 3), st.booleans())
def test_bytes_that_are_no_message_are_given_up_and_their_message_is_told(
    noise: bytes, at: int, how: int, alone: bool
) -> None:
    message = made()
    raw = codec("ChannelMessage").encode(message)
    values = {0: raw[:at], 1: raw + noise, 2: raw[:at] + noise + raw[at + len(noise) :], 3: noise}
    world = World(lambda _: Sent("1"))
    world.put(values[how])
    if not alone:
        world.send(made())
    check_world(world)
    dead_letters, statuses = world.of(DEAD_LETTERS), world.statuses()
    assert len(dead_letters) + len([s for s in statuses if s["state"] != "dead_lettered"]) == 1 + (not alone)
    for dead_letter in dead_letters:
        reported = [s for s in statuses if s["state"] == "dead_lettered"]
        assert bool(reported) == bool(dead_letter["message_id"])
        assert all(s["reason"] == "undecodable" for s in reported)
    head = 5 + 2 * 37 + 2
    if how == 1 and noise:
        assert [s["message_id"] for s in statuses if s["state"] == "dead_lettered"] == [message["message_id"]]
    elif how == 0 and head <= at < len(raw):
        (told_of,) = [s for s in statuses if s["state"] == "dead_lettered"]
        assert (told_of["message_id"], told_of["notification_id"], told_of["tenant"], told_of["lane"]) == (
            message["message_id"],
            message["notification_id"],
            message["tenant"],
            "normal",
        )
        assert dead_letters[0]["notification_id"] == message["notification_id"]


def test_bad_copy_of_a_good_message_does_not_keep_it_from_being_sent() -> None:
    world = World(lambda _: Sent("1"))
    message = made()
    world.put(codec("ChannelMessage").encode(message) + b"x")
    world.send(message)
    world.settle(3)
    assert world.states() == {"dead_lettered": 1, "sent": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"attempt": 0},
        {"attempt": -1},
        {"attempt": MAX_COUNT + 1},
        {"attempt": 2**31 - 1},
        {"retries": -(2**31)},
        {"retries": 2**31 - 1},
        {"tenant": "x" * (MAX_STATED + 1)},
        {"user_id": "é" * MAX_STATED},
        {"correlation_id": "x" * 900_000},
        {"channel": "sms"},
        {"lane": "bulk"},
        {"channel": ""},
    ],
    ids=lambda fields: f"{next(iter(fields))}-{str(next(iter(fields.values())))[:12]}",
)
def test_unfit_message_is_rejected_with_what_it_is_and_counts_for_no_brake(fields: dict[str, Any]) -> None:
    world = World(lambda _: Sent("1"))
    message: ChannelMessage = made(**fields)
    world.put(codec("ChannelMessage").encode(message))
    world.settle(3)
    (reported,) = world.statuses()
    assert (reported["state"], reported["reason"]) == ("rejected", "provider_rejected")
    assert reported["detail"]
    assert not world.of(DEAD_LETTERS)
    assert not world.requests
    check_world(world)


def test_two_spellings_of_an_id_are_one_message() -> None:
    world = World(lambda _: Sent("1"))
    message = made()
    world.send(message)
    world.send({**message, "message_id": message["message_id"].upper()})
    world.send({**message, "message_id": "{" + message["message_id"] + "}"})
    world.settle(3)
    assert len(world.requests) == 1
    assert world.undone() == 0


def test_error_nobody_foresaw_is_one_record_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(lambda _: Sent("1"))
    bad, good = made(tenant="bad"), made()

    def raises(message: ChannelMessage, channel: str, lane: str) -> str | None:
        if message["tenant"] == "bad":
            raise RuntimeError("of a kind nobody foresaw")
        return intake.unfit(message, channel, lane)

    monkeypatch.setattr(worker, "unfit", raises)
    world.send(bad)
    world.send(good)
    world.settle(3)
    reported = {status["message_id"]: (status["state"], status["reason"]) for status in world.statuses()}
    assert reported == {bad["message_id"]: ("dead_lettered", "internal_error"), good["message_id"]: ("sent", None)}
    assert [dead_letter["error_class"] for dead_letter in world.of(DEAD_LETTERS)] == ["RuntimeError"]
    assert world.undone() == 0


def test_flood_of_large_rubbish_is_told_in_turns_of_bounded_size() -> None:
    world = World(lambda _: Sent("1"))
    for _ in range(100):
        world.put(b"\0" * 900_000)
    published: list[int] = []
    world.broker.before_publish = lambda records: published.append(sum(len(r.value or b"") for r in records))
    world.settle(200)
    assert len(world.of(DEAD_LETTERS)) == 100
    assert max(published) <= worker.MAX_RECORD_BYTES + 2_000_000


def test_duplicates_are_dropped_whatever_they_say_of_themselves() -> None:
    world = World(lambda _: Sent("1"))
    message = made()
    world.send(message)
    world.settle(3)
    for attempt in (1, 0, -5, 2**31 - 1):
        world.put(codec("ChannelMessage").encode({**message, "attempt": attempt}))
    world.send({**message, "text": str(uuid4())})
    world.settle(3)
    assert world.states() == {"sent": 1}

"""What a stranger's decodable request may cost: itself, and nobody beside it. Sizes, wrong types, hostile text, slow batches."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from processors.router.agents import send
from processors.router.enrich import MAX_BATCH_S, RouterViews, enrich_batch, enrich_some
from processors.router.intake import MAX_ADDRESSES
from processors.router.loop import LaneLoop, publish
from processors.router.refused import instead
from runtime import ids
from runtime.dead_letters import CUT, dead_letter_record, is_cut, publish_dead_letters, smaller
from runtime.errors import PublishError, TooLargeError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import CommitError
from runtime.process import Context
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import Settings
from runtime.status import status_record, traceparent_of, without_names
from schemas.codec import codec
from schemas.events import Timer
from schemas.topics import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, STATUS, TIMERS
from tests.unit.test_enrich import NOW, TOPIC, FakeView, request, run, statuses, template, views

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "\0", "a\0b", "\r\n", "\x1b[2J", "\u2028", "\u202e", "\ufeff", "x" * 5_000]),
)
TIMES = st.one_of(st.none(), st.sampled_from([-(1 << 63), -1, 0, 1, NOW, 1 << 53, (1 << 63) - 1]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), HOSTILE, st.just(int("9" * 4_000))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(HOSTILE, inner, max_size=3)),
    max_leaves=8,
)
PARTS = ("subject", "text", "html", "title", "body", "data", "order")
OBJECTS = st.dictionaries(st.one_of(st.sampled_from(PARTS), HOSTILE), JSON, max_size=5)
BYTES = st.one_of(
    OBJECTS.map(lambda found: json.dumps(found).encode()),
    JSON.map(lambda found: json.dumps(found).encode()),
    st.sampled_from([b"", b"{", b'{"text": "\\ud800"}', b"[" * 5_000, b'{"a":' * 500, b'{"order": NaN}', b"\xff"]),
)
ADDRESSES = st.lists(
    st.fixed_dictionaries(
        {
            "channel": st.one_of(st.sampled_from(["email", "sms", "push"]), HOSTILE),
            "value": HOSTILE,
            "platform": st.one_of(st.none(), HOSTILE),
        }
    ),
    max_size=3,
)
REQUESTS = st.fixed_dictionaries(
    {"data": BYTES},
    optional={
        "tenant": HOSTILE,
        "user_id": st.one_of(st.none(), HOSTILE),
        "template_id": st.one_of(st.none(), HOSTILE),
        "content": st.one_of(st.none(), BYTES),
        "category": HOSTILE,
        "strategy": HOSTILE,
        "delivery": HOSTILE,
        "channels": st.lists(st.one_of(st.sampled_from(["email", "sms", "push"]), HOSTILE), max_size=3),
        "addresses": ADDRESSES,
        "expires_at": TIMES,
        "send_at": TIMES,
        "locale": st.one_of(st.none(), HOSTILE),
        "overrides": st.one_of(st.none(), BYTES),
        "correlation_id": st.one_of(st.none(), HOSTILE),
        "template_version": st.one_of(st.none(), st.sampled_from([-(1 << 31), -1, 0, (1 << 31) - 1])),
        "dry_run": st.booleans(),
    },
)


def record(made: Mapping[str, Any], offset: int = 0, headers: Any = ()) -> ConsumerRecord:
    return ConsumerRecord(TOPIC, 0, offset, NOW, b"t:u", codec("NotificationRequest").encode(made), headers)


def reasons(out: Sequence[ProducerRecord]) -> list[tuple[str, str | None, str | None]]:
    found = [codec("DeliveryStatus").decode(r.value) for r in out if r.topic == STATUS]
    return [(s["state"], s["reason"], s["detail"]) for s in found]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(REQUESTS)
@example({"data": b"{}", "content": b'{"title": "t", "body": "b", "data": [1]}', "template_id": None})
@example({"data": b"{}", "content": b'{"subject": 1, "text": ["x"]}', "template_id": None})
def test_a_hostile_request_has_an_outcome_and_honest_ones_beside_it_are_routed(fields: dict[str, Any]) -> None:
    hostile = record({**request(key="hostile"), **fields}, 1)
    out = enrich_batch([record(request(key="a")), hostile, record(request(key="b"), 2)], views(), NOW)
    alone = enrich_batch([hostile], views(), NOW)
    assert alone, "an outcome"
    assert any(r.topic in (STATUS, DEAD_LETTERS) for r in alone)
    assert len(out) - len(alone) == len(run(request())) * 2
    dead_letters = [codec("DeadLetter").decode(r.value) for r in alone if r.topic == DEAD_LETTERS]
    assert [
        dead_letter["error_class"] for dead_letter in dead_letters if dead_letter["reason"] == "internal_error"
    ] == []
    for each in alone:
        assert len(each.value or b"") <= (MAX_DEAD_LETTER_BYTES if each.topic == DEAD_LETTERS else MAX_VALUE_BYTES)


@pytest.mark.parametrize(
    ("content", "channel"),
    [
        ({"title": "t", "body": "b", "data": [1]}, "push"),
        ({"title": "t", "body": "b", "data": "x"}, "push"),
        ({"title": 1, "body": "b"}, "push"),
        ({"text": ["x"]}, "sms"),
        ({"subject": {}, "text": "t"}, "email"),
        ({"subject": "s", "html": 7}, "email"),
    ],
)
def test_content_of_the_wrong_type_is_rejected_not_an_error_of_ours(content: Any, channel: str) -> None:
    made = request(template_id=None, content=json.dumps(content).encode(), channels=[channel])
    assert statuses(run(made)) == [(channel, "rejected", "template_error")]


SHAPES = st.one_of(
    JSON,
    st.dictionaries(
        st.one_of(st.sampled_from(["email", "sms", "push"]), HOSTILE),
        st.one_of(
            JSON,
            st.dictionaries(
                st.one_of(st.sampled_from(PARTS), HOSTILE),
                st.one_of(JSON, st.sampled_from(["{{ order }}", "{{ order", "{% for a in order %}", "{{ data.x.y }}"])),
                max_size=3,
            ),
        ),
        max_size=3,
    ),
)
LOCALES = st.one_of(SHAPES, st.dictionaries(st.sampled_from(["de", "de-AT", ""]), SHAPES, max_size=2))
NO_JSON = [b"", b"{", b"\xff", b'{"sms": {"text": "\\ud800"}}', b"[" * 5_000, b"NaN"]


def dumped(shapes: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return st.one_of(shapes.map(lambda found: json.dumps(found).encode()), st.sampled_from(NO_JSON))


def reported_of_template(
    channels: bytes, locales: bytes, wanted: Sequence[str] = ()
) -> list[tuple[str | None, str, str | None]]:
    made = request(locale="de-AT", channels=list(wanted))
    out = run(made, template={**template(), "channels": channels, "locales": locales})
    dead_letters = [codec("DeadLetter").decode(r.value) for r in out if r.topic == DEAD_LETTERS]
    assert dead_letters == [], [dead_letter["error_class"] for dead_letter in dead_letters]
    return statuses(out)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(dumped(SHAPES), dumped(LOCALES), st.sampled_from([[], ["email", "sms", "push"]]))
def test_a_template_of_any_shape_has_an_outcome_and_no_letter(
    channels: bytes, locales: bytes, wanted: list[str]
) -> None:
    reported = reported_of_template(channels, locales, wanted)
    assert reported
    assert all(why[1:] == ("routed", None) or why[1] in ("rejected", "skipped") for why in reported)


@pytest.mark.parametrize("where", ["channels", "locales"])
@pytest.mark.parametrize(
    "shape",
    [
        *NO_JSON,
        b"1",
        b"[]",
        b'"x"',
        b"null",
        b'{"sms": 1}',
        b'{"sms": []}',
        b'{"sms": "x"}',
        b'{"sms": {"text": 1}}',
        b'{"sms": {"text": null}}',
        b'{"sms": {"text": ["x"]}}',
        b'{"sms": {"colour": "x"}}',
        b'{"fax": {"text": "x"}}',
        b'{"push": {"title": "a", "body": "b", "data": [1]}}',
        b'{"push": {"title": "a", "data": {"a": 1}}}',
    ],
)
def test_a_template_of_another_shape_is_a_template_error(where: str, shape: bytes) -> None:
    fine = template()
    found = {"channels": fine["channels"], "locales": fine["locales"]}
    found[where] = b'{"de": %s}' % shape if where == "locales" and shape.endswith(b"}") else shape
    assert reported_of_template(**found) == [(None, "rejected", "template_error")]


@pytest.mark.parametrize("content", [b"1", b"[]", b'"x"', b"null", b"", b'{"text": "\\ud800"}'])
def test_content_that_is_no_object_is_never_an_error_of_ours(content: bytes) -> None:
    out = run(request(template_id=None, content=content))
    assert "internal_error" not in [reason for _, _, reason in statuses(out)]
    assert [state for _, state, _ in statuses(out)] in (["dead_lettered"], ["rejected"])


def test_a_tenant_of_a_megabyte_is_the_records_fault() -> None:
    around = len(record({**request(), "tenant": ""}).value or b"") + 2
    out = enrich_batch([record({**request(), "tenant": "x" * (MAX_VALUE_BYTES - around)})], views(), NOW)
    dead_letters = [codec("DeadLetter").decode(r.value) for r in out if r.topic == DEAD_LETTERS]
    assert [dead_letter["reason"] for dead_letter in dead_letters] == ["undecodable"]


def test_a_rendered_message_that_is_too_large_is_rejected_with_both_sizes() -> None:
    text = "{{ order }}\n" * 12  # of 60,000 characters each, twice
    big = template(channels={"email": {"subject": "s", "text": text, "html": text}})
    out = run(request(data=json.dumps({"order": os.urandom(30_000).hex()}).encode()), template=big)
    assert [r.topic for r in out] == [STATUS]
    ((state, reason, detail),) = reasons(out)
    assert (state, reason) == ("rejected", "template_error")
    assert "bytes" in (detail or "")
    assert "are allowed" in (detail or "")


@pytest.mark.parametrize("room", range(-40, 41, 8))
def test_what_is_routed_fits_a_retry_timer(room: int) -> None:
    """Around the limit: either it is refused, or the timer of its last attempt can be encoded."""
    headers = [("traceparent", b"0" * 55)]
    base = len(record(request(template_id=None, content=b'{"subject": "s", "text": ""}')).value or b"")
    text = "x" * (MAX_VALUE_BYTES - base - 1_750 + room)
    content = json.dumps({"subject": "s", "text": text}).encode()
    made = record(request(template_id=None, content=content, channels=["email"]), headers=headers)
    dispatch = [r for r in enrich_batch([made], views(), NOW) if r.topic.startswith("notify.dispatch")]
    for routed in dispatch:
        message = codec("ChannelMessage").decode(routed.value)
        again = {
            **message,
            "attempt": 6,
            "retries": 5,
            "provider": "p" * 64,
            "possible_duplicate": True,
            "replay": "r" * 36,
        }
        timer: Timer = {
            "timer_id": message["message_id"],
            "due_at": (1 << 62),
            "purpose": "retry",
            "topic": routed.topic,
            "key": routed.key or b"",
            "headers": [{"name": n, "value": v} for n, v in routed.headers],
            "value": codec("ChannelMessage").encode(again),
        }
        assert len(codec("Timer").encode(timer)) <= MAX_VALUE_BYTES


@pytest.mark.parametrize("size", [0, 900_000, MAX_VALUE_BYTES - 2_200, MAX_VALUE_BYTES - 170])
@pytest.mark.parametrize("header", [0, 60_000, 3_000_000])
def test_a_scheduled_request_of_any_size_has_its_timer_or_a_verdict(size: int, header: int) -> None:
    made = request(template_id=None, content=b"{}", send_at=NOW + 1_000, overrides=None)
    made["content"] = json.dumps({"text": "x" * size}).encode()
    headers = [("stranger", bytes(header)), ("traceparent", b"00-1")]
    out = enrich_batch([record(made, headers=headers)], views(), NOW)
    states = [state for state, _, _ in reasons(out)]
    timers = [codec("Timer").decode(r.value) for r in out if r.topic == TIMERS]
    assert states == (["scheduled"] if timers else ["rejected"])
    assert bool(timers) == (size < MAX_VALUE_BYTES - 2_000)
    for timer in timers:
        assert {"name": "traceparent", "value": b"00-1"} in timer["headers"]


def test_names_of_a_megabyte_cost_the_request_and_no_more() -> None:
    for name in ("tenant", "user_id", "correlation_id", "template_id", "category", "locale"):
        made = {**request(), name: "x" * (MAX_VALUE_BYTES - 400)}
        out = enrich_batch([record(made)], views(), NOW)
        assert out, name
        assert all(len(r.value or b"") <= MAX_VALUE_BYTES or r.topic == DEAD_LETTERS for r in out)


def test_a_request_for_a_crowd_is_none() -> None:
    addresses = [{"channel": "sms", "value": f"+49151{n:08d}", "platform": None} for n in range(MAX_ADDRESSES + 1)]
    out = run(request(addresses=addresses, user_id=None))
    assert [state for state, _, _ in reasons(out)] == ["dead_lettered"]


def test_a_traceparent_that_is_none_goes_no_further() -> None:
    assert traceparent_of([("traceparent", b"00-1")]) == b"00-1"
    assert traceparent_of([("traceparent", bytes(1 << 20))]) is None


# -- dead letters -----------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([0, 10, 200_000, MAX_VALUE_BYTES, 5 << 20]),
    st.sampled_from([None, 0, 10, 70_000, 4 << 20]),
    st.sampled_from([0, 1, 300_000, 4 << 20]),
)
@settings(max_examples=40, deadline=None)
def test_a_letter_always_fits_and_says_what_it_lacks(value: int, key: int | None, header: int) -> None:
    record = ConsumerRecord(TOPIC, 1, 2, NOW, None if key is None else bytes(key), bytes(value), [("h", bytes(header))])
    out = dead_letter_record(record, stage="router", reason="undecodable", error=ValueError("\ud800 x" * 400), now=NOW)
    assert len(out.key or b"") + len(out.value or b"") <= MAX_DEAD_LETTER_BYTES - 1_024
    dead_letter = codec("DeadLetter").decode(out.value)
    whole = (dead_letter["key"], dead_letter["value"], dead_letter["headers"]) == (
        record.key,
        record.value,
        [{"name": "h", "value": bytes(header)}],
    )
    assert is_cut(dead_letter["detail"]) != whole
    assert (dead_letter["topic"], dead_letter["partition"], dead_letter["offset"]) == (TOPIC, 1, 2)
    assert (dead_letter["key"] is None) == (key is None)


def test_a_record_has_one_letter_whoever_gives_it_up_and_another_after_its_topic_was_made_anew() -> None:
    def dead_letter_id(stage: str = "router", **fields: Any) -> str:
        one = ConsumerRecord(TOPIC, 1, 2, NOW, b"k", b"rubbish")._replace(**fields)
        made = dead_letter_record(one, stage=stage, reason="undecodable", error=ValueError(), now=NOW)
        return str(codec("DeadLetter").decode(made.value)["dead_letter_id"])

    assert dead_letter_id("router") == dead_letter_id("sink") == dead_letter_id("view")
    others = [
        dead_letter_id(timestamp=NOW + 1),
        dead_letter_id(value=b"other"),
        dead_letter_id(key=b"l"),
        dead_letter_id(offset=3),
    ]
    assert len({dead_letter_id(), *others}) == 5
    assert dead_letter_id(key=b"kr", value=b"ubbish") != dead_letter_id()


def refusing(limit: Mapping[str, int], published: list[ProducerRecord]) -> Any:
    def publish(records: Sequence[ProducerRecord]) -> None:
        refused = [r for r in records if len(r.value or b"") > limit.get(r.topic, 1 << 30)]
        published.extend(r for r in records if r not in refused)
        if refused:
            raise TooLargeError("too large", refused)

    return publish


def test_letters_that_kafka_refuses_are_cut_until_they_fit_and_never_lost() -> None:
    dead_letters = [
        dead_letter_record(
            ConsumerRecord(TOPIC, 0, n, NOW, b"k", bytes(size)),
            stage="router",
            reason="undecodable",
            error=ValueError(),
            now=1,
        )
        for n, size in enumerate((10, 900_000))
    ]
    published: list[ProducerRecord] = []
    publish_dead_letters(refusing({DEAD_LETTERS: 100_000}, published), dead_letters)
    found = [codec("DeadLetter").decode(r.value) for r in published]
    assert [(f["offset"], is_cut(f["detail"])) for f in found] == [(0, False), (1, True)]
    assert CUT in found[1]["detail"]
    with pytest.raises(TooLargeError):
        publish_dead_letters(refusing({DEAD_LETTERS: 60}, []), dead_letters)
    assert smaller(dead_letters[0]) is None


# -- what Kafka refuses for its size ----------------------------------------------------------------------------------


class Engine:
    """A producer in front of topics that take less than ours."""

    def __init__(self, limit: Mapping[str, int]) -> None:
        self.published: list[ProducerRecord] = []
        self.publish = refusing(limit, self.published)

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        self.publish(records)


@pytest.mark.parametrize("engine", ["loop", "faust"])
def test_what_kafka_refuses_for_its_size_ends_in_a_verdict_and_ends_nobody(engine: str) -> None:
    big = json.dumps({"subject": "s", "text": "x" * 50_000}).encode()
    later = request(key="later", template_id=None, content=big, send_at=NOW + 9)
    out = enrich_batch(
        [
            record(request(key="a", template_id=None, content=big, channels=["email"])),
            record(request(key="b"), 1),
            record(later, 2),
            ConsumerRecord(TOPIC, 0, 3, NOW, None, bytes(90_000)),
        ],
        views(),
        NOW,
    )
    limits = {"notify.dispatch.email.normal.v1": 10_000, TIMERS: 10_000, DEAD_LETTERS: 50_000}
    kafka = Engine(limits)
    if engine == "loop":
        publish(kafka, out, lambda: NOW)
    else:
        asyncio.run(send(kafka, out, lambda: NOW))
    reported = reasons(kafka.published)
    refused = [detail for state, reason, detail in reported if (state, reason) == ("rejected", "template_error")]
    assert len(refused) == 2
    assert all("takes no record of" in (detail or "") for detail in refused)
    assert sum(state == "routed" for state, _, _ in reported) == 4
    dead_letter = codec("DeadLetter").decode(next(r.value for r in kafka.published if r.topic == DEAD_LETTERS))
    assert is_cut(dead_letter["detail"])


def test_what_cannot_be_said_any_smaller_stops_rather_than_getting_lost() -> None:
    status = codec("DeliveryStatus").decode(next(r.value for r in run(request()) if r.topic == STATUS))
    bare = without_names(cast(Any, status))
    with pytest.raises(PublishError, match=r"max\.message\.bytes"):
        instead([status_record(cast(Any, bare))], NOW)


# -- slow batches -----------------------------------------------------------------------------------------------------


def test_a_batch_is_cut_where_it_is_told_to_and_takes_one_at_least() -> None:
    records = [record(request(key=str(n)), n) for n in range(5)]
    answers = iter([True, False])
    taken, out = enrich_some(records, views(), NOW, lambda: next(answers))
    assert (taken, len(out)) == (2, 2 * len(run(request())))
    assert enrich_some(records, views(), NOW, lambda: False)[0] == 1


class Group:
    """A consumer that gives five records, one of which may be taken away in the middle."""

    def __init__(self, context: Context) -> None:
        self.context, self.given = context, False
        self.commits: list[dict[Partition, int]] = []
        self.polls = 0
        self.revoke_at = -1
        self.on_revoke: Any = None

    def subscribe(self, topics: Sequence[str], *, on_assign: Any, on_revoke: Any) -> None:
        self.on_revoke = on_revoke
        on_assign([(TOPIC, 0)])

    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]:
        self.polls += 1
        if self.polls == self.revoke_at:
            self.on_revoke([(TOPIC, 0)])
        if not self.given:
            self.given = True
            return [record(request(key=str(n)), n) for n in range(5)]
        if self.polls > 8:
            self.context.stopping.set()
        return []

    def progress(self) -> dict[Partition, int]:
        return {(TOPIC, 0): 6}  # a transaction's marker follows

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self.commits.append(dict(offsets))
        if len(self.commits) == 1:
            raise CommitError("timed out")

    def pause(self, partitions: Any) -> None: ...
    def resume(self, partitions: Any) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize(("revoke_at", "published"), [(-1, 5), (3, 2)])
def test_slow_records_are_published_and_committed_piece_by_piece_with_a_poll_in_between(
    revoke_at: int, published: int
) -> None:
    context = Context("router", Settings(), stopping=asyncio.Event())
    group, kafka = Group(context), Engine({})
    group.revoke_at = revoke_at
    slow = itertools.count(0.0, 2 * MAX_BATCH_S)  # every record takes longer than a batch may
    stage = LaneLoop(context, "normal", views(), kafka, group, monotonic=lambda: next(slow))
    stage.run()
    assert len(kafka.published) == published * len(run(request()))
    if revoke_at < 0:
        assert group.commits[:5] == [{(TOPIC, 0): n} for n in (1, 2, 3, 4, 6)]


def test_topics_have_room_for_what_may_be_encoded() -> None:
    user = "u" * (MAX_VALUE_BYTES // 2)
    made = request(user_id=user, template_id=None, content=b'{"text": "t"}', channels=["sms"])
    made["addresses"] = [{"channel": "sms", "value": "+4915112345678", "platform": None}]
    one = RouterViews(FakeView(), FakeView(), FakeView(), FakeView())
    out = enrich_batch([record(made)], one, NOW)
    assert all(
        len(r.key or b"") + len(r.value or b"") + 10_000 < MAX_MESSAGE_BYTES for r in out if r.topic != DEAD_LETTERS
    )
    assert ids.notification_id(NOW, "t")

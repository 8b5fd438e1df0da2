"""Endpoints that are told facts: filters, schedule, positions, and that no fact is lost, whatever is answered and whenever it dies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from pydantic_core import from_json

from runtime.errors import SettingsError
from runtime.records import ConsumerRecord
from runtime.sealing import SealedError, Sealer
from runtime.settings import HookSettings
from schemas.codec import codec
from schemas.events import Endpoint, HookPosition
from schemas.topics import STATUS
from senders.hooks.cursor import MAX_RECENT, Cursor, RecentFacts
from senders.hooks.endpoint import (
    DISABLED,
    FAILING,
    LIVE,
    MAX_IN_FLIGHT,
    MAX_OWED,
    STRIKES,
    HookEndpoint,
    Job,
)
from senders.hooks.facts import MAX_TEXT_CHARS, Chunk, Fact, Wanted, chunk_of
from senders.hooks.posting import Outcome
from senders.hooks.schedule import is_last, throttled_s, wait_s
from tests.support.made import NOW, encoded, made
from vendors.webhook.signature import Signer, is_secret, new_secret

SCHEDULE = HookSettings().schedule_s
SIGNER = Signer([new_secret()])
TENANTS = frozenset({"t"})
DELIVERED, REFUSED = Outcome("delivered", "204"), Outcome("refused", "500")
UNREACHABLE, THROTTLED = Outcome("unreachable", "ClientConnectorError"), Outcome("throttled", "429")
GONE = Outcome("gone", "410")


def record(**more: Any) -> Endpoint:
    return made("Endpoint", tenant="t", url="https://shop.example/x", **more)  # type: ignore[return-value]


def a_fact(offset: int, nid: str | None = None, state: str = "sent", **more: Any) -> Fact:
    fields = {"channel": "email", "category": "orders", "timestamp": NOW, **more}
    return Fact(
        offset,
        fields["timestamp"],
        f"e{offset}",
        nid or f"n{offset}",
        state,
        fields["channel"],
        fields["category"],
        b"{}",
    )


def chunk(start: int, end: int, facts: list[Fact] | None = None) -> Chunk:
    held = [a_fact(offset) for offset in range(start, end)] if facts is None else facts
    return Chunk(start, end, TENANTS, {"t": held} if held else {})


# -- facts and filters ------------------------------------------------------------------------------------------------

_words = st.lists(st.sampled_from(["sent", "bounced", "email", "sms", "orders", "news"]), max_size=3)


@given(
    _words,
    _words,
    _words,
    st.sampled_from(["sent", "bounced"]),
    st.sampled_from(["email", None]),
    st.sampled_from(["orders", None]),
    st.integers(0, 2),
)
def test_filter_passes_what_every_list_that_names_something_names(
    states: list[str],
    channels: list[str],
    categories: list[str],
    state: str,
    channel: str | None,
    category: str | None,
    since: int,
) -> None:
    wanted = Wanted(record(states=states, channels=channels, categories=categories, since=NOW + since - 1))
    passes = all(
        not names or value in names for names, value in ((states, state), (channels, channel), (categories, category))
    )
    assert (a_fact(1, state=state, channel=channel, category=category) in wanted) == (passes and since <= 1)


def status(offset: int, **more: Any) -> ConsumerRecord:
    fields = {
        "event_id": f"00000000-0000-4000-8000-{offset:012d}",
        "notification_id": f"10000000-0000-4000-8000-{offset:012d}",
        "tenant": "t",
        "state": "sent",
        **more,
    }
    return ConsumerRecord(STATUS, 0, offset, NOW, b"k", encoded("DeliveryStatus", **fields))


def test_body_has_no_address_and_no_words_of_a_provider() -> None:
    canary = "zoe@example.org"
    read = chunk_of(
        [status(1, recipient=canary, detail=canary, domain=canary, provider_message_id=canary, code=canary)],
        1,
        2,
        TENANTS,
    )
    (fact,) = read.of_tenant["t"]
    assert canary.encode() not in fact.body
    assert from_json(fact.body)["type"] == "notification.sent"


def test_long_texts_of_others_are_cut_and_what_is_no_fact_is_left_out() -> None:
    records = [
        status(1, category="x" * 100_000, correlation_id="y" * 100_000, state="z" * 100_000),
        status(2, event_id="not an id"),
        status(3, notification_id="neither"),
        ConsumerRecord(STATUS, 0, 4, NOW, b"k", b"junk"),
        ConsumerRecord(STATUS, 0, 5, NOW, b"k", None),
        status(6, tenant="another"),
        status(7),
    ]
    read = chunk_of(records, 1, 8, TENANTS)
    assert [fact.offset for fact in read.of_tenant["t"]] == [1, 7] and list(read.of_tenant) == ["t"]
    assert len(read.of_tenant["t"][0].body) < 4 * MAX_TEXT_CHARS + 1_000


# -- the schedule -----------------------------------------------------------------------------------------------------


def test_schedule_is_that_of_the_specification_and_its_last_time_repeats() -> None:
    waits = [wait_s(SCHEDULE, failures, 0.0) for failures in range(1, 12)]
    assert waits == [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400, 86_400, 86_400]
    assert [is_last(SCHEDULE, attempts) for attempts in (9, 10)] == [False, True]


@given(st.integers(1, 40), st.floats(0, 0.999), st.one_of(st.none(), st.floats(0, 1e9)))
def test_every_wait_is_bounded_and_jitter_only_adds(failures: int, jitter: float, asked: float | None) -> None:
    assert 1 <= wait_s(SCHEDULE, failures, 0.0) <= wait_s(SCHEDULE, failures, jitter) <= 86_400 * 1.1
    least, most = (throttled_s(SCHEDULE, failures, part, asked) for part in (0.0, jitter))
    assert 1 <= least <= most <= 86_400 * 1.1
    if asked is not None:
        assert throttled_s(SCHEDULE, failures, 0.0, asked) == max(1.0, min(asked, 3_600.0))


def test_throttling_without_a_time_doubles_to_a_minute_and_then_follows_the_schedule() -> None:
    assert [throttled_s(SCHEDULE, n, 0.0) for n in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 300, 1_800]


# -- one endpoint -----------------------------------------------------------------------------------------------------


class World:
    """A topic in memory and one endpoint with a cursor in its only partition."""

    def __init__(self, facts: list[Fact], **more: Any) -> None:
        self.topic = facts
        self.now = NOW
        self.told: Counter[int] = Counter()
        self.record = record(**more)
        self.position: HookPosition | None = None
        self.begin()

    def begin(self) -> None:
        """A process that starts: it knows the position written last, and reads live from the end."""
        self.recent = RecentFacts(len(self.topic))
        self.endpoint = HookEndpoint(self.record, SIGNER, SCHEDULE, jitter=lambda: 0.0)
        last = self.position
        self.cursor = Cursor("t", 0, 0, last["position"] if last else 0, last["owed"] if last else ())
        if last:
            self.endpoint.restore(last)
        self.endpoint.cursors[0] = self.cursor
        self.jobs: list[Job] = []

    def write(self) -> None:
        position = self.endpoint.position_of(self.cursor, self.recent.end, self.now)
        self.position = codec("HookPosition").decode(codec("HookPosition").encode(position))  # type: ignore[assignment]

    def publish(self, facts: list[Fact]) -> None:
        start = len(self.topic)
        self.topic += facts
        self.recent.append(chunk(start, len(self.topic), facts))
        while self.recent.is_full:
            self.recent.drop_oldest()

    def take(self) -> bool:
        """Begin the requests that may begin."""
        needs: list[tuple[Cursor, int]] = []
        began = False
        for _ in range(10_000):
            job = self.endpoint.next_job(
                {0: self.recent}, self.now, MAX_IN_FLIGHT, lambda cursor, offset: needs.append((cursor, offset))
            )
            if job is not None:
                self.jobs.append(job)
                began = True
            elif needs:
                _, offset = needs[0]
                needs.clear()
                end = min(len(self.topic), offset + 7)
                self.cursor.fill(chunk(offset, end, self.topic[offset:end]))
            else:
                return began
        raise AssertionError("it reads the same again and again")

    def end(self, index: int, outcome: Outcome) -> None:
        job = self.jobs.pop(index % len(self.jobs))
        if outcome.kind == "delivered":
            self.told[job.fact.offset] += 1
        self.endpoint.settle(job, outcome, self.now)
        following = self.endpoint.following(job, self.now)
        if following is not None:
            self.jobs.append(following)

    def settle_all(self) -> None:
        """It answers from now on: everything there is, is told."""
        for _ in range(10_000):
            self.take()
            if self.jobs:
                self.end(0, DELIVERED)
            elif self.endpoint.next_at is not None and self.now < self.endpoint.next_at:
                self.now = self.endpoint.next_at
            elif self.cursor.owed:
                self.now = max(self.now, min(owed.due_at for owed in self.cursor.owed.values()))
            elif self.cursor.read >= len(self.topic):
                return
        raise AssertionError("it does not come to an end")


_outcomes = st.sampled_from([DELIVERED, DELIVERED, DELIVERED, REFUSED, UNREACHABLE, THROTTLED])
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.lists(st.integers(0, 5), min_size=1, max_size=30)),
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("end"), st.tuples(st.integers(0, 100), _outcomes)),
        st.tuples(st.just("wait"), st.integers(1, 400_000)),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("die"), st.booleans()),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(_steps)
def test_no_fact_is_lost_whatever_is_answered_and_whenever_it_dies(steps: list[tuple[str, Any]]) -> None:
    world = World([a_fact(offset) for offset in range(20)])
    for what, how in steps:
        if what == "publish":
            first = len(world.topic)
            world.publish([a_fact(first + n, f"n{nid}") for n, nid in enumerate(how)])
        elif what == "take":
            world.take()
        elif what == "end" and world.jobs:
            world.end(*how)
        elif what == "wait":
            world.now += how
        elif what == "write":
            world.write()
            # Everything below the position is told, given up or owed.
            assert world.position is not None
            known = {owed["offset"] for owed in world.position["owed"]} | world.told.keys()
            assert set(range(world.position["position"])) <= known or world.cursor.given_up
        elif what == "die":
            if how:
                world.write()
            world.begin()
        nids = [job.fact.notification_id for job in world.jobs if job.owed is None]
        assert len(nids) == len(set(nids)), "two facts of a notification at once"
        assert len(world.jobs) <= MAX_IN_FLIGHT
        assert len(world.cursor.owed) <= MAX_OWED + MAX_IN_FLIGHT + 32
    given_up = world.cursor.given_up
    world.settle_all()
    missing = set(range(len(world.topic))) - world.told.keys()
    assert len(missing) <= given_up


def test_endpoint_that_is_away_costs_few_requests_and_is_caught_up() -> None:
    world = World([a_fact(offset) for offset in range(1_000)])
    asked = 0
    for _ in range(9):
        world.take()
        while world.jobs:
            asked += 1
            world.end(0, UNREACHABLE)
        assert world.endpoint.condition is FAILING
        assert world.endpoint.next_at is not None
        world.now = world.endpoint.next_at
    assert asked <= MAX_IN_FLIGHT + 9
    assert world.cursor.given_up == 0
    assert world.now - NOW > 75 * 3_600_000 / 1.1
    world.settle_all()
    assert set(world.told) == set(range(1_000)) and world.endpoint.condition is LIVE


def test_fact_that_is_always_refused_is_given_up_after_the_schedule_and_holds_up_no_other() -> None:
    world = World([a_fact(offset) for offset in range(50)])
    for round_ in range(20):
        world.take()
        while world.jobs:
            index = 0
            world.end(index, REFUSED if world.jobs[index].fact.offset == 7 else DELIVERED)
            world.take()
        if round_ == 0:
            assert set(world.told) == set(range(50)) - {7}
        if not world.cursor.owed:
            break
        world.now = max(world.now, world.cursor.owed[7].due_at)
    assert world.cursor.given_up == 1 and world.endpoint.condition is LIVE
    assert world.now - NOW >= sum(SCHEDULE) * 1_000


def test_poisoned_fact_at_the_front_does_not_hold_up_what_is_behind_it() -> None:
    """An endpoint that failed as a whole is back, but for the fact it is asked with first."""
    world = World([a_fact(offset) for offset in range(STRIKES * 2)])
    world.take()
    while world.jobs:
        world.end(0, REFUSED)
    for _ in range(60):
        world.take()
        while world.jobs:
            world.end(0, REFUSED if world.jobs[0].fact.offset == 0 else DELIVERED)
            world.take()
        if len(world.told) == len(world.topic) - 1:
            return
        world.now += 3_600_000
    raise AssertionError(f"only {len(world.told)} of {len(world.topic)} were told")


def test_gone_endpoint_is_asked_nothing_until_it_is_changed_also_by_the_next_owner() -> None:
    world = World([a_fact(offset) for offset in range(40)])
    world.take()
    while world.jobs:
        world.end(0, GONE)
    assert world.endpoint.condition is DISABLED and not world.take()
    world.write()
    world.begin()
    assert world.endpoint.condition is DISABLED and not world.take()
    world.endpoint.change({**world.record, "version": 1}, SIGNER, world.now)
    world.settle_all()
    assert set(world.told) == set(range(40))


def test_pause_that_was_asked_for_is_kept_although_an_earlier_request_succeeds() -> None:
    world = World([a_fact(offset) for offset in range(40)])
    world.take()
    world.end(0, Outcome("throttled", "429", 120.0))
    world.end(0, DELIVERED)
    assert world.endpoint.next_at == NOW + 120_000 and not world.take()


def test_endpoint_of_another_tenant_or_made_later_never_sees_a_chunk_that_was_read_without_it() -> None:
    recent = RecentFacts(0)
    recent.append(Chunk(0, 5, frozenset({"other"}), {}))
    recent.append(chunk(5, 10))
    cursor = Cursor("t", 0, 0, 0)
    wanted = Wanted(record())
    assert cursor.peek(recent, wanted) is None and cursor.needs(recent) == 0
    cursor.fill(chunk(0, 5))
    taken = [fact.offset for fact in iter(lambda: cursor.take(recent, wanted), None)]
    assert taken == list(range(10))


def test_what_the_topic_has_dropped_is_counted() -> None:
    cursor = Cursor(
        "t", 0, 0, 10, [{"offset": 4, "attempts": 1, "due_at": 0}, {"offset": 30, "attempts": 1, "due_at": 0}]
    )
    assert cursor.drop_below(25) == 16
    assert (cursor.read, cursor.position, cursor.dropped, list(cursor.owed)) == (25, 25, 16, [30])


def test_recent_facts_that_nobody_takes_have_a_limit() -> None:
    recent = RecentFacts(0)
    for offset in range(3 * MAX_RECENT):
        recent.append(chunk(offset, offset + 1))
        while recent.is_overfull:
            recent.drop_oldest()
    assert recent.is_full and recent.end - recent.start <= MAX_RECENT


def test_recent_facts_stay_bounded_and_empty_stretches_cost_nothing() -> None:
    recent = RecentFacts(0)
    for start in range(0, 100_000, 10):
        recent.append(Chunk(start, start + 10, TENANTS, {}))
    assert len(recent._chunks) == 1 and recent.end == 100_000 and not recent.is_full


# -- secrets ----------------------------------------------------------------------------------------------------------

KEY, NEW_KEY = "k" * 32, "n" * 44


def test_sealed_secret_opens_under_its_key_at_its_place_alone() -> None:
    secret = new_secret()
    assert is_secret(secret)
    sealed = Sealer(SecretStr(KEY)).seal(secret, "t:1")
    assert secret.encode() not in sealed
    assert Sealer(SecretStr(f"{NEW_KEY} {KEY}")).open(sealed, "t:1") == secret
    for key, place, stored in (
        (NEW_KEY, "t:1", sealed),
        (KEY, "t:2", sealed),
        (KEY, "t:1", sealed[:-1]),
        (KEY, "t:1", b""),
        (KEY, "t:1", b"\x02" + sealed[1:]),
    ):
        with pytest.raises(SealedError):
            Sealer(SecretStr(key)).open(stored, place)


@given(st.binary(max_size=80))
def test_any_bytes_open_or_raise(raw: bytes) -> None:
    with pytest.raises(SealedError):
        Sealer(SecretStr(KEY)).open(raw, "t:1")


@pytest.mark.parametrize("key", ["", "short", f"{KEY} {KEY} {KEY}", f"{KEY} short"])
def test_key_that_is_none_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Sealer(SecretStr(key))
    assert not key or key not in str(refused.value)

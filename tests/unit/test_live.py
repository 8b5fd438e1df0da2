"""Live status without a broker: places, the ring, what a watcher is sent, tokens."""

from __future__ import annotations

import asyncio
import base64
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from api.live.access import Access, StreamTokens
from api.live.stream import encode
from api.live.wanted import FILTERS, wanted
from producers.reference.keys import Caller
from runtime import ids
from runtime.errors import RefusedError
from runtime.status import fact as status_fact
from runtime.status import status_record
from schemas.events import states
from tracking.live.facts import Fact, fact_of
from tracking.live.places import MAX_PARTITIONS, read_place, write_place
from tracking.live.ring import OVERHEAD_BYTES, Entry, Ring
from tracking.live.watchers import (
    MAX_FACTS,
    MAX_FRAMES,
    MAX_WIDE_FRAMES,
    Filters,
    Frame,
    NotificationWatcher,
    TenantWatcher,
    Watched,
    reset_frame,
    status_frame,
)

OFFSETS = st.lists(st.integers(0, (1 << 62) - 1), min_size=1, max_size=40)
AT = 1_767_225_600_000
NID = ids.notification_id(AT, "shop", "k")


@given(OFFSETS)
def test_place_is_read_back(offsets: list[int]) -> None:
    assert read_place(write_place(offsets)) == tuple(offsets)


@given(
    st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: "1-" + base64.urlsafe_b64encode(b).decode()))
)
def test_any_text_is_a_place_or_none(text: str) -> None:
    found = read_place(text)
    assert found is None or (0 < len(found) <= MAX_PARTITIONS and min(found) >= 0)


@pytest.mark.parametrize("text", ["", "end", "2-AQA", "1-", "1-AA", "1-AgA", "1-AQAA", "1-AYA", "1-" + "A" * 20_000])
def test_malformed_place_is_none(text: str) -> None:
    assert read_place(text) is None


def entry(offset: int, partition: int = 0, key: str = "a", value: bytes = b"x" * 100) -> Entry:
    return Entry(partition, offset, AT, key.encode(), value)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc")), max_size=200), st.integers(1, 60))
def test_ring_holds_the_newest_and_knows_from_where(writes: list[tuple[int, str]], room: int) -> None:
    size = OVERHEAD_BYTES + 101
    ring, at, everything = Ring([0, 0, 0], room * size), [0, 0, 0], list[Entry]()
    for partition, key in writes:
        everything.append(entry(at[partition], partition, key))
        at[partition] += 1
        ring.add(everything[-1:])
    assert len(ring) == min(room, len(everything))
    held = everything[len(everything) - len(ring) :]
    starts = ring.starts()
    assert ring.since(starts) == held
    assert all((e in held) == (e.offset >= starts[e.partition]) for e in everything)
    for key in "abc":
        assert ring.of(key.encode()) == [e for e in held if e.key == key.encode()]
    assert ring.since(tuple(at)) == []
    if any(starts):
        assert ring.since((0, 0, 0)) is None


def fact(state: str = "sent", attempt: int = 1, offset: int = 0, tenant: str = "shop", at: int = AT + 5) -> Fact:
    message = ids.message_id(NID, "email", "x")
    record = status_record(
        status_fact(
            ids.event_id(message, state, attempt),
            NID,
            tenant,
            "normal",
            state,
            at,
            {"message_id": message, "channel": "email", "recipient": "u1"},
            attempt=attempt,
        )
    )
    found = fact_of(Entry(0, offset, AT, NID.encode(), record.value), write_place([offset + 1]))
    assert found is not None
    return found


def test_record_that_is_no_status_is_no_fact() -> None:
    assert fact_of(entry(0), "1-x") is None
    assert fact_of(Entry(0, 0, AT, b"", None), "1-x") is None


class Woken:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def watching(*, until_settled: bool = False, complete: bool = True) -> tuple[NotificationWatcher, Watched]:
    watched = Watched("shop", NID)
    watched.loaded = watched.accepted = True
    watched.complete = complete
    watcher = NotificationWatcher(
        "shop", "key", Woken(), 900.0, 0.0, place=lambda: "1-AQA", until_settled=until_settled
    )
    watcher.watched = (watched,)
    watched.watchers.append(watcher)
    return watcher, watched


def test_stream_begins_with_a_snapshot_and_does_not_end_before_it() -> None:
    watcher, watched = watching(until_settled=True)
    watcher.watched = ()
    assert watched.add(fact("sent").event)
    watcher.push(status_frame(fact("sent"), watched.current()), watched)
    assert watcher.ended is None, "others of its notifications are not loaded yet"
    watcher.begin([watched])
    assert kinds(watcher.take()) == ["snapshot", "end"]


def push(watcher: NotificationWatcher, watched: Watched, one: Fact) -> int:
    assert watched.add(one.event)
    return watcher.push(status_frame(one, watched.current()), watched)


def kinds(frames: list[Frame]) -> list[str]:
    return [frame.kind for frame in frames]


def test_fact_that_is_known_is_not_added_twice() -> None:
    _, watched = watching()
    assert watched.add(fact().event)
    assert not watched.add(fact(offset=9).event)


def test_frames_say_the_fact_and_where_the_notification_is_with_it() -> None:
    watcher, watched = watching()
    push(watcher, watched, fact("routed", 0))
    push(watcher, watched, fact("sent", 1, offset=1, at=AT + 9))
    first, second = [json.loads(frame.data) for frame in watcher.take()]
    assert (first["event"]["state"], first["notification"]["status"], first["settled"]) == ("routed", "routed", False)
    assert second["notification"] == {"id": NID, "status": "sent", "reason": None}
    assert second["settled"] is True
    assert watcher.take() == []


def test_slow_watcher_gets_one_snapshot_in_place_of_what_did_not_fit() -> None:
    watcher, watched = watching()
    dropped = sum(push(watcher, watched, fact("retrying", n, offset=n)) for n in range(1, MAX_FRAMES + 30))
    assert dropped == MAX_FRAMES + 1
    (frame,) = watcher.take()
    assert frame.kind == "snapshot"
    assert len(json.loads(frame.data)["events"]) == MAX_FRAMES + 29
    push(watcher, watched, fact("sent", 500, offset=500))
    assert kinds(watcher.take()) == ["status"]


def test_stream_until_settled_ends_once_all_is_known_and_settled() -> None:
    watcher, watched = watching(until_settled=True, complete=False)
    push(watcher, watched, fact("sent"))
    assert kinds(watcher.take()) == ["status"], "what is not complete may have messages that are not known"
    watched.complete = True
    watcher.refresh(watched)
    frames = watcher.take()
    assert kinds(frames) == ["snapshot", "end"]
    assert (frames[-1].place, json.loads(frames[-1].data)) == ("end", {"reason": "settled"})


def test_snapshot_of_what_nothing_is_known_of_says_so() -> None:
    _, watched = watching(complete=False)
    watched.accepted = False
    assert json.loads(watched.snapshot("1-AQA").data) == {"notification": None, "events": [], "complete": False}


def test_facts_of_one_notification_are_bounded() -> None:
    _, watched = watching()
    event = dict(fact().event)
    for number in range(MAX_FACTS + 5):
        watched.add({**event, "event_id": str(number)})
    assert len(watched.facts) == MAX_FACTS
    assert not watched.complete


def wide(**filters: str) -> TenantWatcher:
    return TenantWatcher("shop", "key", Woken(), 900.0, 0.0, Filters(**filters), "key")


def test_slow_watcher_of_a_tenant_is_told_how_many_it_missed() -> None:
    watcher = wide()
    frame = status_frame(fact(), {"id": NID, "status": "sent", "reason": None})
    assert sum(watcher.push(frame) for _ in range(MAX_WIDE_FRAMES + 7)) == 7
    frames = watcher.take()
    assert (frames[0].kind, json.loads(frames[0].data)) == ("gap", {"missed": 7})
    assert len(frames) == MAX_WIDE_FRAMES + 1


def test_resumed_watcher_is_not_sent_again_what_it_has() -> None:
    watcher = wide()
    watcher.resuming = True
    for offset in range(4):
        watcher.push(status_frame(fact(offset=offset), {"id": NID, "status": "sent", "reason": None}))
    assert watcher.take() == []
    watcher.resumed_to, watcher.resuming = [2], False
    assert [frame.offset for frame in watcher.take()] == [2, 3]


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ({}, True),
        ({"state": "sent", "channel": "email", "lane": "normal", "user_id": "u1"}, True),
        ({"state": "bounced"}, False),
        ({"channel": "sms"}, False),
        ({"lane": "bulk"}, False),
        ({"user_id": "u2"}, False),
        ({"template_id": "t"}, False),
        ({"provider": "p"}, False),
        ({"correlation_id": "c"}, False),
    ],
)
def test_filters(filters: dict[str, str], matches: bool) -> None:
    assert Filters(**filters).match(fact()) is matches


def test_event_as_it_is_on_the_wire() -> None:
    assert encode(Frame("", "", "1-AQA")) == b"id: 1-AQA\n\n"
    assert encode(reset_frame("too_old", "1-AQA")) == b'event: reset\nid: 1-AQA\ndata: {"reason":"too_old"}\n\n'
    assert encode(Frame("gap", '{"missed":3}')) == b'event: gap\ndata: {"missed":3}\n\n'


@given(st.text(max_size=50))
def test_no_text_of_a_fact_breaks_out_of_its_event(text: str) -> None:
    one = fact()
    made = one._replace(event={**one.event, "detail": text})
    body = encode(status_frame(made, {"id": NID, "status": "sent", "reason": None})).decode()
    assert body.count("\n") == 4
    assert "\r" not in body
    assert json.loads(body.splitlines()[2].removeprefix("data: "))["event"]["detail"] == (text or None)


# ---------------------------------------------------------------- who may watch what

TENANT = Access("shop", "key")


def refused(given_: dict[str, list[str]], access: Access = TENANT) -> str:
    with pytest.raises(RefusedError) as caught:
        wanted(given_, access)
    return caught.value.code


def test_what_is_asked_for() -> None:
    assert wanted({"notification_id": [NID.upper(), NID], "until": ["settled"]}, TENANT) == (
        (NID,),
        Filters(),
        True,
    )
    every = {name: ["x"] for name in FILTERS} | {"state": ["sent"]}
    assert wanted(every, TENANT).filters.correlation_id == "x"
    assert {state for state in states().all if wanted({"state": [state]}, TENANT)} == states().all


@pytest.mark.parametrize(
    "given_",
    [
        {"tag": ["x"]},
        {"state": ["nope"]},
        {"state": ["sent", "sent"]},
        {"until": ["dawn"], "notification_id": [NID]},
        {"until": ["settled"]},
        {"notification_id": [NID], "channel": ["email"]},
        {"notification_id": [str(UUID(int=n)) for n in range(101)]},
        {"user_id": ["a\0"]},
        {"user_id": ["a" * 256]},
    ],
)
def test_what_is_refused(given_: dict[str, list[str]]) -> None:
    assert refused(given_) == "invalid_parameter"


def test_token_lets_watch_what_it_was_made_for_and_no_more() -> None:
    other = ids.notification_id(AT, "shop", "other")
    of_one = TENANT._replace(ids=frozenset([NID]))
    assert wanted({}, of_one).ids == (NID,)
    assert wanted({"until": ["settled"]}, of_one) == ((NID,), Filters(), True)
    assert wanted({"notification_id": [NID]}, of_one).ids == (NID,)
    assert refused({"notification_id": [other]}, of_one) == "not_found"
    assert refused({"channel": ["email"]}, of_one) == "not_found"
    of_user = TENANT._replace(user_id="u1")
    assert wanted({}, of_user).filters == Filters(user_id="u1")
    assert wanted({"channel": ["email"]}, of_user).filters == Filters(user_id="u1", channel="email")
    assert refused({"user_id": ["u2"]}, of_user) == "not_found"
    assert refused({"notification_id": [NID]}, of_user) == "not_found"


def test_token_is_read_until_it_ends_and_only_as_it_was_made() -> None:
    now = [AT]
    tokens = StreamTokens(SecretStr("pepper"), lambda: now[0])
    caller = Caller("shop", "key")
    token, expires_at = tokens.issue(caller, [UUID(NID)], None, 600)
    assert expires_at == AT + 600_000
    assert tokens.read(token) == Access("shop", "key", frozenset([NID]), None, expires_at)
    of_user, _ = tokens.issue(caller, None, "zoë", 60)
    assert tokens.read(of_user) == Access("shop", "key", None, "zoë", AT + 60_000)
    assert StreamTokens(SecretStr("other"), lambda: now[0]).read(token) is None
    for index in range(len("hgs_"), len(token)):
        changed = token[:index] + ("A" if token[index] != "A" else "B") + token[index + 1 :]
        found = tokens.read(changed)
        assert found is None or found == tokens.read(token), "only the bits behind the last byte may differ"
    for text in ("", "hgs_", "hgs_*", "hg_x", "hgs_" + "A" * 9_000):
        assert tokens.read(text) is None
    now[0] = expires_at
    assert tokens.read(token) is None


def test_longest_token_fits_into_a_url() -> None:
    tokens = StreamTokens(SecretStr("pepper"))
    many = [UUID(ids.notification_id(AT + n, "shop")) for n in range(100)]
    token, _ = tokens.issue(Caller("shop", "key"), many, None, 600)
    assert len(token) < 4_096
    found = tokens.read(token)
    assert found is not None
    assert found.ids == frozenset(map(str, many))


def test_stream_is_written_by_a_task_that_ends_with_the_write() -> None:
    from api.live.stream import SseStream

    async def scenario() -> list[bytes]:
        sent: list[bytes] = []

        async def send(message: object) -> None:
            assert isinstance(message, dict)
            sent.append(message["body"])

        stream = SseStream(send, 0.0)
        watched = Watched("shop", NID)
        watched.loaded = watched.accepted = watched.complete = True
        watcher = NotificationWatcher("shop", "key", stream.wake, 900.0, 0.0, place=lambda: "1-AQA", until_settled=True)
        watcher.watched = (watched,)
        stream.begin(watcher)
        await asyncio.sleep(0.01)
        stream.keep_alive("1-AQA")
        await asyncio.sleep(0.01)
        push(watcher, watched, fact("sent"))
        await asyncio.sleep(0.01)
        stream.keep_alive("1-AQA")
        await asyncio.sleep(0.01)
        return sent

    sent = asyncio.run(scenario())
    assert sent[0] == b":\n\n"
    assert len(sent) == 2, "nothing after the end"
    assert sent[1].count(b"event: ") == 2

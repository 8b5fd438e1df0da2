"""What a replay chooses, publishes and accepts as a condition; the rest of it is in tests/integration/test_replay.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.choose import check_range, check_topic
from replay.dead_letters import HIDDEN, described
from replay.plan import Decision, Item, Plan, RecordPosition, StoredMessage, decide_message, decide_request
from replay.records import Stamp, copies
from replay.redrive import refusal
from replay.store import StoredDeadLetter
from replay.template import TemplateVersion
from replay.times import UsageError, parse_time
from replay.where import DEAD_LETTER_COLUMNS, MESSAGE_COLUMNS, compile_where
from runtime import ids
from runtime.dead_letters import CUT, REDRIVEN, dead_letter_record, is_redriven, redriven
from runtime.records import ConsumerRecord
from runtime.stores import MemoryStore
from schemas.codec import codec
from schemas.events import ChannelMessage, NotificationRequest, states
from schemas.topics import STATUS, catalogue, dispatch_topic, ledger_ms, requests_topic
from senders.ledger import Ledger
from tests.support.made import message

NOW = 1_790_000_000_000
NID = ids.notification_id(NOW - 60_000, "t", "k")
REQUESTS = requests_topic("normal")
PLACE = RecordPosition(REQUESTS, 1, 7)
STAMP = Stamp("01990000-0000-7000-8000-000000000001", "ann@desk", False, NOW)
SETTLED = sorted(states().settled)


def request(**fields: Any) -> NotificationRequest:
    made: NotificationRequest = {
        "notification_id": NID,
        "tenant": "t",
        "accepted_at": NOW - 60_000,
        "user_id": "u1",
        "template_id": "hello",
    }
    return cast(NotificationRequest, {**made, **fields})


def stored(state: str, channel: str = "email", **fields: Any) -> StoredMessage:
    message_id = fields.pop("message_id", ids.message_id(NID, channel, state))
    return StoredMessage(NID, message_id, channel, state, **fields)


def decide(
    stored_messages: list[StoredMessage], *, resend: bool = False, filtered: bool = False, known: int = 0, **fields: Any
) -> tuple[Item | None, list[Decision]]:
    item, chosen = decide_request(
        PLACE, request(**fields), stored_messages, resend=resend, filtered=filtered, now=NOW, known_generation=known
    )
    return item, [decision for _, decision in chosen]


# -- times --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("-2h", NOW - 7_200_000),
        ("-90s", NOW - 90_000),
        ("-7d", NOW - 604_800_000),
        ("2026-03-01T12:00:00Z", 1_772_366_400_000),
        ("2026-03-01t12:00:00.250+02:00", 1_772_359_200_250),
    ],
)
def test_times_are_rfc_3339_or_how_long_ago(text: str, expected: int) -> None:
    assert parse_time(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "2h", "-2", "yesterday", "2026-03-01", "2026-03-01T12:00:00", "2026-13-01T12:00:00Z"]
)
def test_a_time_without_an_offset_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_time(text, NOW)


def test_a_range_beyond_the_ledger_needs_resend() -> None:
    check_range(NOW - ledger_ms(), NOW, NOW, resend=False)
    check_range(NOW - 2 * ledger_ms(), NOW, NOW, resend=True)
    with pytest.raises(UsageError, match="7 days"):
        check_range(NOW - ledger_ms() - 1, NOW, NOW, resend=False)
    with pytest.raises(UsageError, match="not before"):
        check_range(NOW, NOW, NOW, resend=True)


@pytest.mark.parametrize("topic", ["notify.templates.v1", "notify.status.v1", "notify.timers.v1", "nothing"])
def test_only_requests_and_messages_are_replayed(topic: str) -> None:
    with pytest.raises(UsageError, match="cannot be replayed"):
        check_topic(topic)


# -- conditions ---------------------------------------------------------------------------------------------------------


def test_a_condition_becomes_sql_with_bound_values() -> None:
    made = compile_where(
        "reason = 'retries_exhausted' AND (attempts >= 3 or NOT provider LIKE 'mail-%')", MESSAGE_COLUMNS, NOW
    )
    assert made.sql == (
        "(((`reason` = {w0:String}) AND (((`attempts` >= {w1:Int64})) OR (NOT (`provider` LIKE {w2:String})))))"
    )
    assert made.parameters == {"w0": "retries_exhausted", "w1": 3, "w2": "mail-%"}


def test_values_have_the_types_of_their_columns() -> None:
    text = "accepted_at > '-1h' and possible_duplicate = TRUE and provider is null and settled_at is not null and detail = 'it''s'"
    made = compile_where(text, MESSAGE_COLUMNS, NOW)
    assert made.parameters == {"w0": NOW - 3_600_000, "w1": True, "w2": "it's"}
    assert "(`provider` = '')" in made.sql
    assert "(`settled_at` IS NOT NULL)" in made.sql
    found = compile_where(f"message_id not in ('{NID}')", DEAD_LETTER_COLUMNS, NOW)
    assert found.parameters == {"w0": NID}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a column"),
        ("reason", "a comparison"),
        ("reason = ", "text in single quotes"),
        ("reason = retries_exhausted", "text in single quotes"),
        ('reason = "retries_exhausted"', "cannot read"),
        ("reason = 'no_such_reason'", "is no reason"),
        ("state = 'broken'", "is no state"),
        ("colour = 'red'", "no column 'colour'"),
        ("1 = 1", "a column"),
        ("attempts = '3'", "a number"),
        ("attempts = 3.5", "cannot read"),
        ("attempts like 'a'", "LIKE is for text"),
        ("notification_id > '01990000-0000-7000-8000-000000000001'", "only be compared with ="),
        ("notification_id = 'x'", "a UUID"),
        ("settled_at < 'yesterday'", "is not a time"),
        ("length(reason) = 3", "no column 'length'"),
        ("reason = 'dry_run'; DROP TABLE requests_raw", "cannot read"),
        ("reason = 'dry_run' -- comment", "cannot read"),
        ("reason in (select reason from message_state)", "text in single quotes"),
        ("reason = 'dry_run' or", "a column"),
        ("(reason = 'dry_run'", "should stand"),
        ("reason = 'dry_run')", "AND, OR or the end"),
        ("reason not = 'dry_run'", "IN or LIKE"),
        ("(" * 25 + "attempts = 1" + ")" * 25, "nested deeper"),
        ("attempts = 1 or " * 300 + "attempts = 1", "longer than"),
        ("state = 'failed\\' or true", "is no state"),
    ],
)
def test_anything_else_is_refused_with_a_reason(text: str, words: str) -> None:
    with pytest.raises(UsageError) as on_progress:
        compile_where(text, MESSAGE_COLUMNS, NOW)
    assert words in str(on_progress.value)


@given(st.text(alphabet="reasontp =<>!'()-;,1NOTANDIL%`{}\\\n", max_size=60))
def test_no_text_of_an_operator_is_ever_sql(text: str) -> None:
    try:
        made = compile_where(text, MESSAGE_COLUMNS, NOW)
    except UsageError:
        return
    left = made.sql
    for name, value in made.parameters.items():
        assert f"{{{name}:" in left
        assert value is not None
    assert set(left) <= set("()`{}:,='<>! _0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert "'" not in left.replace("''", "").replace("'UTC'", "")


# -- decisions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", SETTLED)
def test_only_what_nobody_has_is_tried_again(state: str) -> None:
    item, decided = decide([stored(state)])
    assert (item is not None) == (state in states().retriable)
    assert decided[0].publishes == (state in states().retriable)
    remembered, message_id = Ledger(MemoryStore()), stored(state).message_id or ""
    remembered.record(message_id, 2, state, NOW)
    assert (remembered.resumes_at(message_id) is not None) == (state in states().retriable)


@pytest.mark.parametrize("state", SETTLED)
def test_a_resend_sends_every_settled_message_but_cancelled_and_dry_ones(state: str) -> None:
    item, decided = decide([stored(state)], resend=True)
    assert (item is not None) == (state not in ("cancelled", "simulated"))
    assert (decided == [Decision.SEND_AGAIN]) == (item is not None)


@pytest.mark.parametrize("state", ["accepted", "scheduled", "held", "routed", "sending"])
@pytest.mark.parametrize("resend", [False, True])
def test_what_is_on_its_way_is_left_alone(state: str, resend: bool) -> None:
    assert decide([stored(state)], resend=resend) == (None, [Decision.ON_ITS_WAY])


def test_past_its_expiry_cancelled_or_resent_it_is_left_alone() -> None:
    assert decide([stored("failed")], expires_at=NOW) == (None, [Decision.EXPIRED])
    assert decide([stored("failed")], expires_at=NOW, resend=True) == (None, [Decision.EXPIRED])
    assert decide([stored("failed")], dry_run=True) == (None, [Decision.NEVER])
    assert decide([stored("failed")], known=1) == (None, [Decision.RESENT])
    assert decide([stored("failed")], known=1, generation=1)[1] == [Decision.TRY]


def test_what_clickhouse_does_not_know_is_left_to_the_ledger_and_never_sent_again() -> None:
    item, decided = decide([])
    assert item is not None
    assert decided == [Decision.TRY]
    assert decide([], resend=True) == (None, [Decision.UNKNOWN])
    assert decide([], filtered=True) == (None, [])


def test_only_the_channels_with_something_to_try_are_tried() -> None:
    item, decided = decide([stored("sent", "push"), stored("failed", "email")])
    assert item is not None
    assert (item.channels, decided) == (("email",), [Decision.SENT, Decision.TRY])
    whole, _ = decide([stored("failed", "push"), stored("failed", "email")])
    assert whole is not None
    assert whole.channels == ()


def test_beside_a_mail_that_was_sent_no_other_mail_is_tried() -> None:
    two = [stored("sent", message_id=NID), stored("failed")]
    assert decide(two) == (None, [Decision.SENT, Decision.SENT])
    given_two = [{"channel": "email", "value": v, "platform": None} for v in ("a@example.org", "b@example.org")]
    assert decide(two, addresses=given_two)[1] == [Decision.SENT, Decision.TRY]
    devices = [stored("sent", "push", message_id=NID), stored("failed", "push")]
    assert decide(devices)[1] == [Decision.SENT, Decision.TRY]


def test_with_first_available_one_message_that_went_out_is_enough() -> None:
    both = [stored("skipped", "email"), stored("sent", "sms")]
    assert decide(both, strategy="first_available") == (None, [Decision.SENT, Decision.SENT])
    assert decide(both)[1] == [Decision.TRY, Decision.SENT]


def test_a_condition_chooses_among_the_messages() -> None:
    item, decided = decide([stored("failed", "email", selected=False), stored("failed", "push")], filtered=True)
    assert item is not None
    assert (item.channels, decided) == (("push",), [Decision.TRY])
    assert decide([stored("failed", selected=False)], filtered=True) == (None, [])


def test_the_plan_counts_by_channel_state_and_reason_with_samples() -> None:
    plan = Plan()
    for _ in range(5):
        plan.add(
            decide_request(
                PLACE, request(), [stored("failed", reason="retries_exhausted")], resend=False, filtered=False, now=NOW
            )
        )
    plan.add(decide_request(PLACE, request(), [stored("sent")], resend=False, filtered=False, now=NOW))
    first, second = plan.rows()
    assert (first["channel"], first["state"], first["reason"], first["count"]) == (
        "email",
        "failed",
        "retries_exhausted",
        5,
    )
    assert len(first["samples"]) == 3
    assert second["decision"] == "sent already, not sent again"
    assert plan.summary() == {"try": 5, "sent": 1}
    assert len(plan.items) == 5


def test_a_message_in_doubt_keeps_its_flag_and_goes_on_counting() -> None:
    made = message()
    known = StoredMessage(
        made["notification_id"], made["message_id"], "email", "failed", possible_duplicate=True, attempts=4
    )
    item, _ = decide_message(PLACE, made, known, resend=False, filtered=False, now=NOW, attempt=5)
    assert item is not None
    assert (item.possible_duplicate, item.attempt) == (True, 5)


# -- copies -------------------------------------------------------------------------------------------------------------


def test_a_request_comes_back_with_the_replays_id_and_an_event() -> None:
    value = codec("NotificationRequest").encode(request(data=b'{"n": 1}', channels=["email", "push"]))
    record = ConsumerRecord(REQUESTS, 1, 7, NOW, b"t:u1", value, [("traceparent", b"00-1-2-01")])
    item = Item(PLACE, "t", NID, channels=("email",), generation=2)
    again, on_progress = copies(record, item, STAMP)
    decoded = codec("NotificationRequest").decode(again.value)
    assert (again.topic, again.partition, again.key) == (REQUESTS, 1, b"t:u1")
    assert (decoded["replay"], decoded["generation"], decoded["channels"]) == (STAMP.replay_id, 2, ["email"])
    assert decoded["data"] == b'{"n": 1}'
    status = codec("DeliveryStatus").decode(on_progress.value)
    assert on_progress.topic == STATUS
    assert (status["state"], status["notification_id"], status["message_id"]) == ("replayed", NID, None)
    assert status["detail"] == f"replay {STAMP.replay_id} by ann@desk"
    # Published twice it is one event; another replay is another.
    assert codec("DeliveryStatus").decode(copies(record, item, STAMP)[1].value)["event_id"] == status["event_id"]
    other = copies(record, item, Stamp(NID, "ann@desk", False, NOW))[1]
    assert codec("DeliveryStatus").decode(other.value)["event_id"] != status["event_id"]


def test_a_message_comes_back_to_its_partition_with_its_attempts_counted_on() -> None:
    made: ChannelMessage = {**message(), "attempt": 3, "retries": 2, "provider": "mail-1"}
    record = ConsumerRecord(dispatch_topic("email", "normal"), 2, 9, NOW, b"k", codec("ChannelMessage").encode(made))
    item = Item(
        RecordPosition(*record[:3]),
        "t",
        made["notification_id"],
        made["message_id"],
        attempt=4,
        possible_duplicate=True,
    )
    again, _ = copies(record, item, STAMP)
    decoded = codec("ChannelMessage").decode(again.value)
    assert (again.topic, again.partition) == (record.topic, 2)
    assert decoded["message_id"] == made["message_id"]
    assert (decoded["attempt"], decoded["retries"], decoded["provider"]) == (4, 0, None)
    assert (decoded["possible_duplicate"], decoded["replay"]) == (True, STAMP.replay_id)


def test_a_message_sent_again_is_the_message_the_router_would_make() -> None:
    made = message()
    record = ConsumerRecord(dispatch_topic("email", "normal"), 2, 9, NOW, b"k", codec("ChannelMessage").encode(made))
    item = Item(RecordPosition(*record[:3]), "t", made["notification_id"], made["message_id"], generation=1)
    decoded = codec("ChannelMessage").decode(copies(record, item, STAMP)[0].value)
    fingerprint = ids.address_hash("email", made["address"])
    assert decoded["message_id"] == ids.message_id(made["notification_id"], "email", fingerprint, 1)
    assert decoded["generation"] == 1


@pytest.mark.parametrize("headers", [[("a", b"b")], [("a", b"b"), (REDRIVEN, f"{UUID(int=3)}:1".encode())]])
def test_copy_of_a_letter_carries_its_id_and_place(headers: list[tuple[str, bytes]]) -> None:
    letter = str(UUID(int=8))
    for topic, value in (
        (REQUESTS, codec("NotificationRequest").encode(request())),
        (dispatch_topic("email", "normal"), codec("ChannelMessage").encode(message())),
    ):
        record = ConsumerRecord(topic, 1, 7, NOW, b"k", value, headers)
        item = Item(RecordPosition(topic, 1, 7), "t", NID, dead_letter_id=letter)
        again, event = copies(record, item, STAMP)
        assert [h for h in again.headers if h[0] == REDRIVEN] == [(REDRIVEN, f"{letter}:7".encode())]
        assert ("a", b"b") in again.headers
        assert event.topic == STATUS
        without = copies(record._replace(headers=[]), replace(item, dead_letter_id=None), STAMP)[0]
        assert REDRIVEN not in dict(without.headers)


@pytest.mark.parametrize(
    ("template_id", "named", "then", "says"),
    [
        ("hello", None, 3, ", rendered with hello:3"),
        ("hello", 2, 3, ", rendered with hello:3 instead of version 2"),
        ("other", 2, 2, ""),
    ],
)
def test_copy_of_a_replay_with_a_template_names_its_version_and_the_event_says_so(
    template_id: str, named: int | None, then: int, says: str
) -> None:
    value = codec("NotificationRequest").encode(request(template_id=template_id, template_version=named))
    record = ConsumerRecord(REQUESTS, 1, 7, NOW, b"k", value)
    stamp = replace(STAMP, template=TemplateVersion.parse("hello:3"))
    again, event = copies(record, Item(PLACE, "t", NID), stamp)
    assert codec("NotificationRequest").decode(again.value)["template_version"] == then
    assert codec("DeliveryStatus").decode(event.value)["detail"] == stamp.words + says


@pytest.mark.parametrize("text", ["hello", "hello:", ":1", "hello:x", "hello:-1", "hello:1234567890"])
def test_template_without_a_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ID:VERSION"):
        TemplateVersion.parse(text)


def test_record_that_was_redriven_and_is_given_up_again_replaces_its_letter() -> None:
    first = ConsumerRecord(REQUESTS, 1, 7, NOW, b"k", b"x")

    def letter(record: ConsumerRecord) -> tuple[Any, ...]:
        made = dead_letter_record(record, stage="router", reason="undecodable", error=ValueError("no"), now=NOW)
        found = codec("DeadLetter").decode(made.value)
        return found["dead_letter_id"], found["topic"], found["partition"], found["offset"], is_redriven(made.headers)

    *original, counted = letter(first)
    copy = first._replace(offset=900, timestamp=NOW + 5, headers=[redriven(original[0], 7)])
    assert (counted, letter(copy)) == (False, (*original, True))
    for header in (b"", b"x:1", f"{original[0]}:".encode(), f"{original[0]}:-1".encode(), b"\xff" * 40):
        strange = copy._replace(headers=[(REDRIVEN, header)])
        assert letter(strange)[3:] == (900, False)


# -- dead letters -------------------------------------------------------------------------------------------------------


def dead_letter(stage: str, topic: str, value: bytes | None, reason: str = "undecodable") -> StoredDeadLetter:
    record = ConsumerRecord(topic, 0, 1, NOW, b"t:u1", value)
    return StoredDeadLetter(str(UUID(int=7)), record, stage, reason, "DecodeError", "", 1, "t", None, None, NOW)


@pytest.mark.parametrize("stage", ["view", "ledger", "timers", "sink"])
def test_letters_of_stages_that_keep_values_are_refused(stage: str) -> None:
    for topic in catalogue():
        assert refusal(dead_letter(stage, topic, b"x")) is not None


def test_letters_of_router_and_sender_come_back_to_their_topics() -> None:
    whole = codec("ChannelMessage").encode(message())
    mail = dispatch_topic("email", "normal")
    assert refusal(dead_letter("sender", mail, whole, "retries_exhausted")) is None
    assert refusal(dead_letter("router", REQUESTS, codec("NotificationRequest").encode(request()))) is None
    cut = replace(dead_letter("router", REQUESTS, b"anything"), detail=f"{CUT}: 8 of 5,000,000 bytes of the value; x")
    assert "only a part of its record" in (refusal(cut) or "")
    for stage, topic, value in (
        ("sender", mail, b"anything"),
        ("router", REQUESTS, b"anything"),
        ("router", REQUESTS, codec("NotificationRequest").encode(request(accepted_at=1))),
        ("router", REQUESTS, codec("NotificationRequest").encode(request(data=b"[1]"))),
        ("router", REQUESTS, codec("NotificationRequest").encode(request(channels=["pigeon"]))),
    ):
        assert "still does not decode" in (refusal(dead_letter(stage, topic, value)) or "")
    assert "no value" in (refusal(dead_letter("router", REQUESTS, None)) or "")
    assert refusal(dead_letter("sender", "notify.templates.v1", b"x")) is not None


def test_a_letter_is_shown_without_who_it_was_for() -> None:
    made = {**message(), "address": "jane@example.org", "subject": "Secret", "text": "plan"}
    one = dead_letter("sender", dispatch_topic("email", "normal"), codec("ChannelMessage").encode(made))
    shown = described(one, reveal=False)
    assert not any(word in str(shown) for word in ("jane", "Secret", "plan"))
    assert shown["record"]["address"] == HIDDEN
    assert shown["record"]["message_id"] == made["message_id"]
    assert described(one, reveal=True)["record"]["address"] == "jane@example.org"
    broken = described(dead_letter("router", REQUESTS, b"\x00\xff"), reveal=False)
    assert broken["bytes"] == "00ff"

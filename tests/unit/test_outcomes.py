"""A provider's result becomes the right facts, row by row."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.records import ConsumerRecord
from runtime.retry import MAX_RETRY_AFTER_S, parse_retry_after, retry_delay_s, throttle_delay_s
from runtime.stores import MemoryStore
from schemas.codec import codec
from schemas.events import states
from schemas.topics import DEAD_LETTERS, STATUS, TIMERS
from senders.accounts import AccountTrouble, Clearing
from senders.ledger import Ledger
from senders.outcomes import (
    CLAIMED_BY_ENDED,
    NO_LONGER_REPEATED,
    Attempt,
    Outcome,
    from_result,
    no_account_works,
    refuse,
)
from senders.recheck import SenderViews, recheck
from senders.repeats import HEADER, doubt_since, still_repeats
from tests.support.made import NOW, RECORD, message
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent, classify


def outcome(result: SendResult, **fields: Any) -> Outcome:
    return from_result(Attempt(message(**fields), RECORD, NOW, "p", 5), result, jitter=0.5, max_retries=5)


def facts(made: Outcome) -> dict[str, dict[str, Any]]:
    names = {STATUS: "DeliveryStatus", TIMERS: "Timer", DEAD_LETTERS: "DeadLetter", RECORD.topic: "ChannelMessage"}
    return {
        r.topic: codec(names.get(r.topic, "LedgerEntry")).decode(r.value) for r in (*made.records, made.ledger_record)
    }


LEDGER = "notify.ledger.email.normal.v1"


@pytest.mark.parametrize(
    ("result", "fields", "state", "reason"),
    [
        (Sent("id-1"), {}, "sent", None),
        (Rejected(ErrorClass.PERMANENT_RECIPIENT, "550"), {}, "bounced", "hard_bounce"),
        (Rejected(ErrorClass.PERMANENT_RECIPIENT, "1"), {"channel": "sms"}, "bounced", "invalid_number"),
        (Rejected(ErrorClass.PERMANENT_RECIPIENT, "1"), {"channel": "push"}, "bounced", "invalid_token"),
        (Rejected(ErrorClass.PERMANENT_MESSAGE, "552"), {}, "rejected", "provider_rejected"),
        (InDoubt("EOF"), {"delivery": "at_most_once"}, "unknown", "in_doubt"),
        (Retry(ErrorClass.TRANSIENT, "451"), {"retries": 5}, "failed", "retries_exhausted"),
        (Retry(ErrorClass.ACCOUNT, "535"), {"retries": 5}, "failed", "provider_account"),
        (InDoubt("EOF"), {"retries": 5}, "failed", "retries_exhausted"),
    ],
)
def test_settled_outcome(result: SendResult, fields: dict[str, Any], state: str, reason: str | None) -> None:
    made = outcome(result, **fields)
    found = facts(made)
    assert (made.state, made.settled_state, made.next_attempt) == (state, state, 2)
    assert (found[STATUS]["state"], found[STATUS]["reason"], found[STATUS]["attempt"]) == (state, reason, 1)
    ledger = next(record for topic, record in found.items() if topic.startswith("notify.ledger."))
    assert (ledger["next_attempt"], ledger["state"]) == (2, state)
    assert TIMERS not in found
    assert (DEAD_LETTERS in found) == (state == "failed")


@pytest.mark.parametrize(
    ("result", "retries", "duplicate", "reason"),
    [
        (Retry(ErrorClass.TRANSIENT, "451"), 1, False, None),
        (Retry(ErrorClass.THROTTLED, "429", 90), 0, False, "throttled"),
        (InDoubt("EOF"), 1, True, "in_doubt"),
    ],
)
def test_retried_outcome_is_a_timer_with_the_next_attempt(
    result: SendResult, retries: int, duplicate: bool, reason: str | None
) -> None:
    made = outcome(result)
    found = facts(made)
    assert LEDGER not in {fact.topic for fact in made.records}, "the ledger's entry follows the facts"
    again = codec("ChannelMessage").decode(found[TIMERS]["value"])
    assert (again["attempt"], again["retries"], again["possible_duplicate"]) == (2, retries, duplicate)
    assert found[TIMERS]["topic"] == RECORD.topic
    assert (found[STATUS]["state"], found[STATUS]["possible_duplicate"]) == ("retrying", duplicate)
    assert found[STATUS]["reason"] == reason
    assert reason is None or reason in states().event_reasons
    assert (found[LEDGER]["next_attempt"], found[LEDGER]["state"]) == (2, None)
    assert made.settled_state is None
    assert isinstance(result, Retry | InDoubt)
    assert (found[STATUS]["code"], found[STATUS]["due_at"]) == (result.code, found[TIMERS]["due_at"])
    if isinstance(result, Retry) and result.retry_after_s:
        assert found[TIMERS]["due_at"] >= NOW + 90_000


def test_what_a_sender_notes_of_how_a_message_went_out_is_in_its_status() -> None:
    assert facts(outcome(Sent("1", "2 parts of UCS-2")))[STATUS]["detail"] == "2 parts of UCS-2"
    assert facts(outcome(Sent("1")))[STATUS]["detail"] is None


def test_ledger_entry_is_on_the_partition_of_its_dispatch_record() -> None:
    assert (outcome(Sent()).ledger_record.topic, outcome(Sent()).ledger_record.partition) == (LEDGER, 2)


def test_message_claimed_by_a_sender_that_ended_costs_a_retry_and_is_flagged_with_a_reason_on_record() -> None:
    made = from_result(Attempt(message(), RECORD, NOW), CLAIMED_BY_ENDED, jitter=0.5, max_retries=5)
    status = facts(made)[STATUS]
    again = codec("ChannelMessage").decode(facts(made)[TIMERS]["value"])
    assert (status["state"], status["reason"], status["possible_duplicate"]) == ("retrying", "in_doubt", True)
    assert status["detail"] == "in doubt: claimed by a sender that ended"
    assert (again["retries"], again["possible_duplicate"]) == (1, True)


def test_definite_not_sent_fails_over_at_once_and_names_the_next_account() -> None:
    attempt = Attempt(message(), RECORD, NOW, "first", 5)
    not_sent = Retry(ErrorClass.TRANSIENT, "451")
    made = from_result(attempt, not_sent, jitter=0.5, max_retries=5, next_provider="second")
    dispatched = next(record for record in made.records if record.topic == RECORD.topic)
    again = codec("ChannelMessage").decode(dispatched.value)
    assert (again["attempt"], again["retries"], again["provider"]) == (2, 1, "second")
    assert (dispatched.key, dispatched.partition) == (RECORD.key, RECORD.partition)
    assert facts(made)[STATUS]["state"] == "failed_over"
    assert TIMERS not in {record.topic for record in made.records}


@pytest.mark.parametrize("doubt", [InDoubt("EOF"), CLAIMED_BY_ENDED])
def test_doubt_never_fails_over_and_stays_with_its_account(doubt: InDoubt) -> None:
    attempt = Attempt(message(), RECORD, NOW, "first", 5)
    made = from_result(attempt, doubt, jitter=0.5, max_retries=5, next_provider="second")
    again = codec("ChannelMessage").decode(facts(made)[TIMERS]["value"])
    assert (made.state, again["provider"]) == ("retrying", "first")


SINCE = NOW - 5_000
REPEATS = RECORD._replace(headers=[("ce_id", b"1"), (HEADER, str(SINCE).encode())])


def headers_of_next(made: Outcome) -> dict[str, bytes]:
    return {header["name"]: header["value"] for header in facts(made)[TIMERS]["headers"]}


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
@pytest.mark.parametrize(("record", "since"), [(RECORD, RECORD.timestamp), (REPEATS, SINCE)], ids=["first", "next"])
def test_repeated_doubt_is_unflagged_and_its_next_record_says_since_when(
    record: ConsumerRecord, since: int, delivery: str
) -> None:
    attempt = Attempt(message(delivery=delivery, provider="p"), record, NOW, "p", 5)
    made = from_result(attempt, InDoubt("EOF"), jitter=0.5, max_retries=5, cleared_by=Clearing("p"))
    again = codec("ChannelMessage").decode(facts(made)[TIMERS]["value"])
    assert (facts(made)[STATUS]["state"], facts(made)[STATUS]["possible_duplicate"]) == ("retrying", False)
    assert (again["provider"], again["possible_duplicate"], again["retries"]) == ("p", False, 1)
    assert headers_of_next(made)[HEADER] == b"%d" % since
    assert made.in_doubt, "an outcome that takes its place must know"


def test_refusal_of_a_repetition_stays_with_its_account_and_keeps_the_time_of_the_doubt() -> None:
    attempt = Attempt(message(provider="p"), REPEATS, NOW, "p", 5)
    made = from_result(attempt, Retry(ErrorClass.TRANSIENT, "no connection"), jitter=0.5, max_retries=5)
    again = codec("ChannelMessage").decode(facts(made)[TIMERS]["value"])
    assert (again["provider"], again["possible_duplicate"]) == ("p", False)
    assert headers_of_next(made) == dict(REPEATS.headers)


def test_doubt_that_is_no_longer_repeated_is_flagged_and_its_next_record_is_plain() -> None:
    made = from_result(Attempt(message(provider="p"), REPEATS, NOW), NO_LONGER_REPEATED, jitter=0.5, max_retries=5)
    again = codec("ChannelMessage").decode(facts(made)[TIMERS]["value"])
    assert (again["provider"], again["possible_duplicate"]) == ("p", True)
    assert HEADER not in headers_of_next(made)


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (Sent("1"), "sent"),
        (Rejected(ErrorClass.PERMANENT_RECIPIENT, "gone"), "bounced"),
        (Rejected(ErrorClass.PERMANENT_MESSAGE, "400"), "rejected"),
    ],
)
def test_answer_to_a_repetition_is_the_answer_to_the_first_request(result: SendResult, state: str) -> None:
    made = from_result(Attempt(message(provider="p"), REPEATS, NOW, "p", 5), result, jitter=0.5, max_retries=5)
    assert (facts(made)[STATUS]["state"], facts(made)[STATUS]["possible_duplicate"]) == (state, False)
    assert list(made.ledger_record.headers) == []


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
@pytest.mark.parametrize(
    "result", [InDoubt("EOF"), Retry(ErrorClass.TRANSIENT, "451"), Retry(ErrorClass.ACCOUNT, "401")]
)
def test_last_repetition_without_an_answer_leaves_the_doubt(result: SendResult, delivery: str) -> None:
    attempt = Attempt(message(provider="p", retries=5, delivery=delivery), REPEATS, NOW, "p", 5)
    made = from_result(attempt, result, jitter=0.5, max_retries=5, cleared_by=Clearing("p"))
    once = delivery == "at_most_once"
    assert (facts(made)[STATUS]["state"], facts(made)[STATUS]["possible_duplicate"]) == (
        ("unknown", False) if once else ("failed", True)
    )
    assert (DEAD_LETTERS in facts(made)) == (not once)


def test_refusal_before_a_repetition_ends_unknown() -> None:
    made = refuse(Attempt(message(provider="p"), REPEATS, NOW), "expired", "past_expiry")
    assert (made.state, facts(made)[STATUS]["reason"]) == ("unknown", "in_doubt")


@pytest.mark.parametrize(
    ("value", "since"), [(b"12", 12), (b"", 0), (b"-1", 0), (b"9" * 17, 0), (b"x", 0), (None, 0), ("٣".encode(), 0)]
)
def test_time_of_a_doubt_that_cannot_be_read_is_long_ago(value: Any, since: int) -> None:
    assert doubt_since([("a", b"1"), (HEADER, value)]) == since
    assert not still_repeats(0, 30 * 86_400.0, NOW)
    assert not still_repeats(NOW + 1, 30 * 86_400.0, NOW), "nor is one of the future believed"


def test_message_whose_accounts_all_fail_is_dead_lettered_without_an_attempt() -> None:
    troubles = [AccountTrouble("sms-1", "401 20003", 20.4, 3.0), AccountTrouble("sms-2", "timeout", 7.0, 0.0)]
    made = no_account_works(Attempt(message(), RECORD, NOW), troubles)
    found = facts(made)
    words = "no account works: sms-1: 401 20003, for 20 s; sms-2: timeout, for 7 s"
    assert (found[STATUS]["detail"], found[STATUS]["provider"], found[DEAD_LETTERS]["detail"]) == (
        words,
        "sms-1",
        words,
    )
    assert (found[STATUS]["state"], found[STATUS]["reason"]) == ("failed", "provider_account")
    assert (found[DEAD_LETTERS]["reason"], found[DEAD_LETTERS]["attempts"]) == ("provider_account", 1)


@given(st.integers(0, 100), st.floats(0, 0.999), st.none() | st.floats(0, 10**9))
def test_delay_follows_the_retry_law(retries: int, jitter: float, asked: float | None) -> None:
    delay = retry_delay_s(retries, jitter, asked)
    assert delay >= 0.5 * min(60, 2**retries)
    if asked is None:
        assert delay <= min(60, 2**retries)
    else:
        assert delay >= min(asked, MAX_RETRY_AFTER_S)
        assert delay <= max(60, MAX_RETRY_AFTER_S * 1.1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Fri, 15 Jan 2027 08:01:30 GMT", 90.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("-5", None),
        ("9" * 40, 999999999999.0 and 10.0**9),
        ("٣", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, NOW) == expected


_WORDS = st.sampled_from(
    [
        "Sun",
        "Fri,",
        "06",
        "31",
        "Nov",
        "Dec",
        "1994",
        "9999",
        "0001",
        "9" * 20,
        "08:49:37",
        "8:9",
        "24:60:61",
        f"08:{'9' * 20}:37",
        "GMT",
        "-2359",
        "+2359",
        "+99999999999999",
        "EST",
        "-",
        ":",
        "\x00",
        "é",
        "9" * 5_000,
    ]
)


@given(
    st.text(max_size=60) | st.lists(_WORDS, max_size=8).map(" ".join), st.sampled_from([0, NOW, 253_402_300_799_000])
)
def test_retry_after_is_total(value: str, now: int) -> None:
    seconds = parse_retry_after(value, now)
    assert seconds is None or 0 <= seconds < 1e12


@given(st.integers(-(2**63), 2**63), st.floats(0, 0.999), st.none() | st.floats())
def test_delays_are_total(count: int, jitter: float, asked: float | None) -> None:
    assert 0.5 <= retry_delay_s(count, jitter, asked) <= MAX_RETRY_AFTER_S * 1.1
    assert 1 <= throttle_delay_s(count, jitter, asked) <= MAX_RETRY_AFTER_S * 1.1


@given(st.lists(st.tuples(st.sampled_from([None, "failed", "sent", "unknown"]), st.booleans()), min_size=1, max_size=6))
def test_ledger_keeps_in_doubt_and_never_forgets_what_was_sent(entries: list[tuple[str | None, bool]]) -> None:
    ledger, id_ = Ledger(MemoryStore()), message()["message_id"]
    for state, doubt in entries:
        ledger.record(id_, 2, state, NOW, doubt)
    final = any(state in ("sent", "unknown") for state, _ in entries)
    failed = any(state == "failed" for state, _ in entries)
    assert ledger.resumes_at(id_) == (2 if failed and not final else None)
    assert ledger.in_doubt(id_) == (not final and ("failed", True) in entries)


@pytest.mark.parametrize("next_attempt", [-1, 2**30, 2**31 - 1])
def test_ledger_refuses_a_number_it_cannot_keep_and_is_as_it_was(next_attempt: int) -> None:
    ledger, id_ = Ledger(MemoryStore()), message()["message_id"]
    with pytest.raises(struct.error):
        ledger.record(id_, next_attempt, "sent", NOW) if next_attempt > 0 else ledger.record(id_, 2, "sent", -NOW)
    assert ledger.duplicate(id_, 1) is None


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([None, "failed", "sent", "unknown"])), max_size=20))
def test_ledger_drops_made_attempts_and_settled_messages_in_any_order(entries: list[tuple[int, str | None]]) -> None:
    ledger = Ledger(MemoryStore())
    for next_attempt, state in entries:
        ledger.record(message()["message_id"], next_attempt, state, NOW)
    order = {None: 0, "failed": 1, "sent": 2, "unknown": 2}
    newest, state = max(entries, default=(0, None), key=lambda entry: (entry[0], order[entry[1]]))
    for attempt in range(1, 8):
        cause = ledger.duplicate(message()["message_id"], attempt)
        assert cause == ("settled" if state else "attempt" if attempt < newest else None)
    assert ledger.resumes_at(message()["message_id"]) == (newest if state == "failed" else None)


def test_error_classes_become_results() -> None:
    assert classify(ErrorClass.IN_DOUBT, "500") == InDoubt("500")
    assert classify(ErrorClass.THROTTLED, "429", 3.0) == Retry(ErrorClass.THROTTLED, "429", 3.0)
    assert classify(ErrorClass.PERMANENT_RECIPIENT, "550") == Rejected(ErrorClass.PERMANENT_RECIPIENT, "550")


@pytest.mark.parametrize(
    ("fields", "world", "expected"),
    [
        ({}, {}, None),
        ({"expires_at": NOW}, {}, ("expired", "past_expiry")),
        ({"expires_at": NOW, "possible_duplicate": True}, {}, ("unknown", "in_doubt")),
        ({}, {"cancellations": {message()["notification_id"]: {"tenant": "t"}}}, ("cancelled", "by_caller")),
        ({}, {"cancellations": {message()["notification_id"]: {"tenant": "other"}}}, None),
        ({}, {"opt_outs": {"t:u": {"channels": {"email": False}, "categories": {}}}}, ("skipped", "opted_out")),
        (
            {},
            {"opt_outs": {"t:u": {"channels": {}, "categories": {"orders": {"email": False}}}}},
            ("skipped", "opted_out"),
        ),
        (
            {"lane": "critical"},
            {"opt_outs": {"t:u": {"channels": {}, "categories": {"orders": {"email": False}}}}},
            None,
        ),
    ],
)
def test_last_look_before_a_send(
    fields: dict[str, Any], world: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    views = SenderViews(world.get("suppressions", {}), world.get("opt_outs", {}), world.get("cancellations", {}))
    assert recheck(message(**fields), views, NOW) == expected

"""Which device or address a status calls invalid, and when none is dropped or suppressed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.reference.database import InputRefused
from producers.reference.feedback import (
    OTHER,
    DeadDevice,
    Feedback,
    bounced_address,
    dead_device,
)
from producers.reference.store import Bounced, ReferenceStore
from producers.reference.suppression_brake import MIN_INVALID, SuppressionBrake
from runtime import ids
from runtime.errors import UnavailableError
from runtime.metrics import DROP_BRAKE, FEEDBACK_SKIPPED
from runtime.status import message_status
from schemas.codec import codec
from schemas.events import DeliveryStatus
from tests.support.made import NOW, encoded, message
from tests.support.records import hostile_records

NID = message()["notification_id"]


def status(token: str = "tok", generation: int = 0, **fields: Any) -> DeliveryStatus:
    message_id = ids.message_id(NID, "push", ids.address_hash("push", token), generation)
    pushed = message(channel="push", address=token, message_id=message_id)
    made = message_status(pushed, "bounced", now=NOW, attempt=1, reason="invalid_token", detail="404", provider="apple")
    return {**made, **fields}  # type: ignore[typeddict-item]


def sent(token: str = "tok") -> DeliveryStatus:
    return status(token, state="sent", reason=None)


def records(*statuses: DeliveryStatus) -> list[bytes | None]:
    return [codec("DeliveryStatus").encode(each) for each in statuses]


def dead(**fields: Any) -> DeadDevice:
    found = dead_device(status(**fields))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("token", "generation", "registered_at", "expected"),
    [
        ("tok", 0, None, True),
        ("tok", 3, None, True),
        ("other", 0, None, False),
        ("tok", 0, NOW - 1, True),
        ("tok", 0, NOW, False),
        ("tok", 0, NOW + 1, False),
    ],
)
def test_device_is_found_by_the_id_of_its_message(
    token: str, generation: int, registered_at: int | None, expected: bool
) -> None:
    assert dead(generation=generation).is_device(token, registered_at) is expected


def test_device_registered_after_the_report_is_kept() -> None:
    gone = dead(invalid_since=NOW - 5_000)
    assert gone.is_device("tok", NOW - 5_001)
    assert not gone.is_device("tok", NOW - 5_000)


def test_other_bounces_and_bare_addresses_call_no_device_dead() -> None:
    assert dead_device(sent()) is None
    assert dead_device(status(reason="hard_bounce")) is None
    assert dead_device(status(recipient=None)) is None


def test_status_names_the_recipient_but_no_address() -> None:
    assert status()["recipient"] == "u"
    bare = message(channel="push", address="tok", user_id=None)
    assert message_status(bare, "sent", now=NOW, attempt=1)["recipient"] == f"addr:{ids.address_hash('push', 'tok')}"


@pytest.mark.parametrize(
    ("invalid", "fine", "expected"),
    [
        (MIN_INVALID - 1, 0, False),
        (MIN_INVALID, 0, True),
        (MIN_INVALID, 19 * MIN_INVALID, False),
        (MIN_INVALID, 19 * MIN_INVALID - 1, True),
    ],
)
def test_brake_is_on_above_its_share_and_minimum(invalid: int, fine: int, expected: bool) -> None:
    brake = SuppressionBrake()
    for said, count in ((True, invalid), (False, fine)):
        for _ in range(count):
            brake.saw("apple", 0.0, invalid=said)
    assert brake.holds("apple", 59.9) is expected
    assert not brake.holds("google", 0.0)
    assert not brake.holds("apple", 60.0)


class Store(ReferenceStore):
    """One user whose devices are tokens."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.suppressed: list[tuple[str, str, str, str]] = []

    async def drop_devices(self, tenant: str, user_id: str, is_dead: Callable[[str, int | None], bool]) -> int:
        before = len(self.tokens)
        self.tokens = [token for token in self.tokens if not is_dead(token, None)]
        return before - len(self.tokens)

    async def suppress_bounced(self, bounced: Bounced) -> str:
        found = bounced.is_address(bounced.recipient.removeprefix("addr:"))
        if found:
            self.suppressed.append((bounced.tenant, bounced.channel, bounced.reason, bounced.source))
        return "suppressed" if found else "unknown"


async def test_invalid_device_is_removed_and_processing_again_changes_nothing() -> None:
    store = Store("tok", "other")
    feedback = Feedback(store)
    for _ in range(2):
        await feedback.process(records(status()), 0.0)
        assert store.tokens == ["other"]


async def test_brake_stops_drops_from_the_first_device_of_a_batch_on_and_lets_go_after_a_minute() -> None:
    tokens = [f"t{n}" for n in range(MIN_INVALID)]
    store = Store(*tokens)
    feedback = Feedback(store)
    await feedback.process(records(*map(status, tokens)), 0.0)
    assert store.tokens == tokens
    await feedback.process(records(status("t0")), 61.0)
    assert store.tokens == tokens[1:]


async def test_status_of_another_publisher_is_skipped() -> None:
    store = Store("tok")
    await Feedback(store).process([b"\xff", None, *records(status(notification_id="x", message_id="y"))], 0.0)
    assert store.tokens == ["tok"]


def bounce(
    channel: str, reason: str, detail: str = "550 5.1.1", address: str = "a@x.de", **fields: Any
) -> DeliveryStatus:
    """A status about a bare address."""
    message_id = ids.message_id(NID, channel, ids.address_hash(channel, address))
    made = message(channel=channel, address=address, message_id=message_id, user_id=None)
    reported = message_status(made, "bounced", now=NOW, attempt=1, reason=reason, detail=detail, provider="mail-1")
    return {**reported, **fields}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("channel", "reason", "stopped", "expected"),
    [
        ("email", "hard_bounce", False, "hard_bounce"),
        ("sms", "invalid_number", False, "invalid_number"),
        ("sms", "invalid_number", True, "unsubscribe"),
        ("email", "soft_bounce", False, None),
        ("email", "invalid_number", False, None),
        ("sms", "hard_bounce", False, None),
        ("push", "invalid_token", False, None),
    ],
)
def test_bounce_that_suppresses(channel: str, reason: str, stopped: bool, expected: str | None) -> None:
    found = bounced_address(bounce(channel, reason, opted_out=stopped))
    assert (found.reason if found else None) == expected


@pytest.mark.parametrize("fields", [{"state": "failed"}, {"recipient": None}, {"message_id": None}])
def test_status_that_is_no_bounce_of_an_address_suppresses_nothing(fields: dict[str, Any]) -> None:
    assert bounced_address(bounce("email", "hard_bounce", **fields)) is None


async def test_bounced_address_is_suppressed_with_what_its_provider_said() -> None:
    store = Store()
    await Feedback(store).process(records(bounce("email", "hard_bounce")), 0.0)
    assert store.suppressed == [(message()["tenant"], "email", "hard_bounce", "mail-1: 550 5.1.1")]


async def test_bounce_of_another_publisher_is_skipped() -> None:
    store = Store()
    forged = bounce("email", "hard_bounce", recipient=f"addr:{ids.address_hash('email', 'other@x.de')}")
    await Feedback(store).process(records(forged, bounce("email", "hard_bounce", notification_id="x")), 0.0)
    assert store.suppressed == []


async def test_brake_keeps_addresses_but_not_a_stop() -> None:
    store = Store()
    bounces = [bounce("sms", "invalid_number", "400 21211", f"+49151{n:07}") for n in range(MIN_INVALID)]
    stop = bounce("sms", "invalid_number", "400 21610", "+491510000099", opted_out=True)
    await Feedback(store).process(records(*bounces, stop), 0.0)
    assert [reason for _, _, reason, _ in store.suppressed] == ["unsubscribe"]


async def test_many_stops_do_not_brake() -> None:
    store = Store()
    stops = [
        bounce("sms", "invalid_number", "400 21610", f"+49151{n:07}", opted_out=True) for n in range(2 * MIN_INVALID)
    ]
    await Feedback(store).process(records(*stops, bounce("sms", "invalid_number", "400 21211", "+49")), 0.0)
    assert len(store.suppressed) == 2 * MIN_INVALID + 1


# -- opt-outs that a vendor reports, with a message or without ---------------------------------------------------------


def receipt(state: str = "unsubscribed", address: str = "+4915112345678", **fields: Any) -> bytes:
    opt_out = {
        "provider": "sms-1",
        "state": state,
        "channel": "sms",
        "tenants": ["a", "b"],
        "recipient": f"addr:{ids.address_hash('sms', address)}",
        "occurred_at": NOW,
    }
    return encoded("ProviderReceipt", **{**opt_out, **fields})


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("unsubscribed", "unsubscribe"),
        ("complained", "complaint"),
        ("undelivered", "unsubscribe"),
        ("bounced", "unsubscribe"),
    ],
)
async def test_an_opt_out_holds_for_every_tenant_of_its_account(state: str, reason: str) -> None:
    store = Store()
    await Feedback(store).process_receipts([receipt(state)], 0.0)
    assert store.suppressed == [(tenant, "sms", reason, f"sms-1: {reason}") for tenant in ("a", "b")]


async def test_other_receipts_suppress_nobody() -> None:
    store, before = Store(), FEEDBACK_SKIPPED.labels("implausible")._value.get()
    others = [
        receipt(tenants=[]),
        receipt(recipient=None),
        receipt("delivered", tenants=[], recipient=None),
        b"x",
        None,
    ]
    await Feedback(store).process_receipts(others, 0.0)
    assert (store.suppressed, FEEDBACK_SKIPPED.labels("implausible")._value.get()) == ([], before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenants": ["a:b"]},
        {"tenants": ["a", ""]},
        {"tenants": ["a"] * 1_001},
        {"channel": "push"},
        {"channel": None},
        {"recipient": "u-1"},
        {"recipient": "addr:../x"},
        {"occurred_at": -1},
        {"occurred_at": 1 << 50},
    ],
)
async def test_receipt_that_cannot_be_is_counted_and_those_behind_it_are_taken(wrong: dict[str, Any]) -> None:
    store, before = Store(), FEEDBACK_SKIPPED.labels("implausible")._value.get()
    await Feedback(store).process_receipts([receipt(**wrong), receipt(tenants=["c"])], 0.0)
    assert [tenant for tenant, *_ in store.suppressed] == ["c"]
    assert FEEDBACK_SKIPPED.labels("implausible")._value.get() == before + 1


async def test_the_brake_counts_opt_outs_and_delays_none() -> None:
    store = Store()
    feedback = Feedback(store, ["sms-1"])
    await feedback.process_receipts(
        [receipt(address=f"+49151{n:07}", tenants=["a"]) for n in range(2 * MIN_INVALID)], 0.0
    )
    assert len(store.suppressed) == 2 * MIN_INVALID
    await feedback.process(records(bounce("sms", "invalid_number", "400 21211", "+49", provider="sms-1")), 0.0)
    assert len(store.suppressed) == 2 * MIN_INVALID
    assert DROP_BRAKE.labels("sms-1")._value.get() == 1


@pytest.mark.parametrize(("error", "cause"), [(InputRefused("no"), "refused"), (KeyError("x"), "error")])
async def test_receipt_that_cannot_be_processed_is_passed_over(error: Exception, cause: str) -> None:
    class Refusing(Store):
        async def suppress_bounced(self, bounced: Bounced) -> str:
            raise error

    before = FEEDBACK_SKIPPED.labels(cause)._value.get()
    await Feedback(Refusing()).process_receipts([receipt(tenants=["a"])], 0.0)
    assert FEEDBACK_SKIPPED.labels(cause)._value.get() == before + 1


async def test_receipts_of_a_store_that_is_away_are_processed_again() -> None:
    class Away(Store):
        async def suppress_bounced(self, bounced: Bounced) -> str:
            raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        await Feedback(Away()).process_receipts([receipt()], 0.0)


# -- what strangers write ---------------------------------------------------------------------------------------------


class StrictStore(Store):
    """Takes what PostgreSQL takes."""

    async def drop_devices(self, tenant: str, user_id: str, is_dead: Callable[[str, int | None], bool]) -> int:
        self._check(tenant, user_id)
        return await super().drop_devices(tenant, user_id, is_dead)

    async def suppress_bounced(self, bounced: Bounced) -> str:
        self._check(bounced.tenant, bounced.recipient, bounced.source, bounced.reason)
        assert -(1 << 63) <= bounced.occurred_at < 1 << 63
        return await super().suppress_bounced(bounced)

    @staticmethod
    def _check(*texts: str) -> None:
        assert not any("\0" in text for text in texts), "PostgreSQL's text takes no NUL"
        assert all(len(text.encode()) < 2_000 for text in texts), "nor an index a key as long"


_CALLS_INVALID = st.sampled_from(
    [("push", "invalid_token"), ("email", "hard_bounce"), ("sms", "invalid_number"), ("fax", "hard_bounce")]
)


@given(
    hostile_records("DeliveryStatus", state=st.just("bounced")),
    _CALLS_INVALID,
    st.fixed_dictionaries(
        {},
        optional={
            "notification_id": st.just(NID),
            "message_id": st.just(status()["message_id"]),
            "tenant": st.just("shop"),
            "recipient": st.just("u"),
            "occurred_at": st.just(NOW),
        },
    ),
)
@settings(max_examples=150, deadline=None)
def test_no_status_that_decodes_stops_the_feedback(
    hostile: dict[str, Any], what: tuple[str, str], honest: dict[str, Any]
) -> None:
    forged = {**hostile, "channel": what[0], "reason": what[1], **honest}
    store = StrictStore("tok", "other")
    asyncio.run(Feedback(store, ["apple"]).process(records(cast(DeliveryStatus, forged), status("other")), 0.0))
    assert "other" not in store.tokens, "the honest status behind it is judged"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "a\0b"),
        ("tenant", "a:b"),
        ("recipient", "u\0"),
        ("recipient", "addr:../x"),
        ("recipient", "u" * 256),
        ("recipient", "\u202eu"),
        ("message_id", "x"),
        ("notification_id", "x"),
        ("occurred_at", -1),
        ("occurred_at", 1 << 62),
    ],
)
async def test_status_whose_ids_are_not_of_our_forms_is_counted_and_passed_over(field: str, value: Any) -> None:
    before = FEEDBACK_SKIPPED.labels("implausible")._value.get()
    store = StrictStore("tok")
    await Feedback(store).process(records(status(**{field: value})), 0.0)
    assert store.tokens == ["tok"]
    assert FEEDBACK_SKIPPED.labels("implausible")._value.get() == before + 1


@pytest.mark.parametrize(
    ("error", "cause"), [(InputRefused("no"), "refused"), (KeyError("x"), "error"), (RecursionError(), "error")]
)
async def test_status_that_cannot_be_judged_is_passed_over_and_those_behind_it_are_judged(
    error: Exception, cause: str
) -> None:
    class Refusing(Store):
        async def suppress_bounced(self, bounced: Bounced) -> str:
            raise error

    before = FEEDBACK_SKIPPED.labels(cause)._value.get()
    store = Refusing("tok")
    await Feedback(store).process(records(bounce("email", "hard_bounce"), status()), 0.0)
    assert store.tokens == []
    assert FEEDBACK_SKIPPED.labels(cause)._value.get() == before + 1


async def test_unavailable_store_leaves_the_batch_to_be_processed_again() -> None:
    class Away(Store):
        async def suppress_bounced(self, bounced: Bounced) -> str:
            raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        await Feedback(Away()).process(records(bounce("email", "hard_bounce")), 0.0)


async def test_forged_status_does_not_hold_the_brake() -> None:
    store = StrictStore("tok")
    await Feedback(store).process(records(*[status(tenant="a:b")] * (2 * MIN_INVALID), status()), 0.0)
    assert store.tokens == []


async def test_made_up_accounts_share_one_window_and_one_label() -> None:
    brake = [sample.labels["provider"] for metric in DROP_BRAKE.collect() for sample in metric.samples]
    feedback = Feedback(Store(), ["apple"])
    made_up = [status(f"t{n}", provider=f"made-up-{n}") for n in range(2_000)]
    await feedback.process(records(*made_up, status("fine", provider="apple", state="sent", reason=None)), 0.0)
    now = [sample.labels["provider"] for metric in DROP_BRAKE.collect() for sample in metric.samples]
    assert set(now) - set(brake) <= {"apple", OTHER}
    assert sorted(feedback._brake.providers) == ["apple", OTHER]
    assert not feedback._brake.holds("apple", 0.0), "what a stranger says of others does not hold it"


def test_windows_of_the_brake_are_bounded_by_time_whatever_is_reported() -> None:
    brake = SuppressionBrake()
    for second in range(200):
        for _ in range(500):
            brake.saw("apple", float(second), invalid=1)
        brake.holds("apple", float(second))
    assert len(brake._windows["apple"]) <= 60


async def test_what_a_provider_says_is_stored_without_control_characters() -> None:
    store = StrictStore()
    await Feedback(store).process(records(bounce("email", "hard_bounce", "550\0 5.1.1\r\nno")), 0.0)
    assert [source for *_, source in store.suppressed] == ["mail-1: 550  5.1.1  no"]

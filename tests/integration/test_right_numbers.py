"""What an analyst reads from the views, against what was stated: each number once, parts that sum to their whole, NULL where
nothing is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from runtime import ids
from runtime.clock import system_clock
from runtime.records import ConsumerRecord
from schemas.codec import codec
from schemas.topics import CONDITIONS, RECEIPTS, RECIPIENTS, requests_topic
from sinks import clickhouse, columns
from sinks.schema_files import sql_views
from tests.integration.test_analytics import priced, provider
from tests.integration.test_clickhouse_schema import (
    EVENTS,
    HOUR,
    NOW,
    REQUESTS,
    Store,
    many,
    notification,
    record,
    request,
    status,
)
from tests.support.clickhouse import Server
from tracking.story import Facts, explain_facts

pytestmark = pytest.mark.clickhouse

ASKED = {"sent", "retrying", "failed_over", "rejected", "failed", "unknown"}
SOURCE = {"topic": "notify.requests.normal.v1", "partition": 0, "offset": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield Store(server)
    assert server.stop() == 0


@pytest.fixture
def empty(store: Store) -> Store:
    store.clear()
    return store


def profile(version: int, after: int, **more: Any) -> ConsumerRecord:
    value = {"tenant": "t", "user_id": "u1", "version": version, "updated_at": NOW + after, "devices": [], **more}
    return record(RECIPIENTS, "RecipientProfile", value)


def receipt_of(nid: str, account: str, vendor_id: str, after: int) -> ConsumerRecord:
    value = {
        "event_id": ids.receipt_id(account, vendor_id, "delivered"),
        "provider": account,
        "provider_message_id": vendor_id,
        "message_id": ids.message_id(nid, "sms", "x"),
        "state": "delivered",
        "reason": None,
        "code": None,
        "occurred_at": ids.accepted_at(nid) + after,
        "received_at": ids.accepted_at(nid) + after,
        "raw": b"",
    }
    return record(RECEIPTS, "ProviderReceipt", value)


# ---------------------------------------------------------------- what was wrong


def test_category_is_the_one_that_decided_and_both_are_there(empty: Store) -> None:
    named, not_named, unrouted = notification(3), notification(2), notification(1)
    empty.insert(
        [
            request(named, category="orders"),
            status(named, "email", "routed", category="orders"),
            request(not_named),
            status(not_named, "email", "skipped", reason="opted_out", category="marketing"),
            request(unrouted),
        ]
    )
    wanted = "category, requested_category"
    assert empty.rows(f"SELECT {wanted} FROM requests ORDER BY accepted_at") == [
        ("orders", "orders"),
        ("marketing", "default"),
        ("default", "default"),
    ]
    assert empty.rows(f"SELECT {wanted} FROM v_messages ORDER BY accepted_at") == [
        ("orders", "orders"),
        ("marketing", "default"),
    ]


def test_duplicates_are_messages_and_the_vendors_ids_confirm_them(empty: Store) -> None:
    flagged, confirmed, resolved = (ids.notification_id((NOW // HOUR - 2) * HOUR + n, "t") for n in (5, 6, 7))
    facts = [request(nid) for nid in (flagged, confirmed, resolved)]
    for nid, vendor_id in ((flagged, "f2"), (confirmed, "c2")):
        facts += [
            status(nid, "sms", "retrying", attempt=1, provider="sms-1", possible_duplicate=True, latency_ms=9),
            status(
                nid,
                "sms",
                "sent",
                attempt=2,
                provider="sms-1",
                provider_message_id=vendor_id,
                possible_duplicate=True,
                latency_ms=9,
                after=2_000,
            ),
            receipt_of(nid, "sms-1", vendor_id, 3_000),
        ]
    facts.append(receipt_of(confirmed, "sms-1", "c1", 4_000))
    facts += [
        status(resolved, "sms", "unknown", attempt=1, provider="sms-1", latency_ms=9),
        status(resolved, "sms", "delivered", attempt=1, provider="sms-1", provider_message_id="r1", after=4_500),
        receipt_of(resolved, "sms-1", "r1", 4_500),
    ]
    priced(empty, provider("sms-1", price_per_message="0.5", currency="EUR"))
    empty.insert([*facts, *facts])
    row = empty.rows(
        "SELECT sum(attempts), sum(sent), sum(in_doubt), sum(possible_duplicates), sum(confirmed_duplicates), "
        "sum(accepted), sum(cost), sum(cost_accepted) FROM v_provider_scorecard"
    )[0]
    assert [float(value) for value in row] == [5, 2, 1, 2, 1, 4, 1.0, 2.0]
    assert empty.rows("SELECT errors['in_doubt'], in_doubt, unknown FROM v_provider_scorecard") == [(1, 1, 1)]


def test_account_whose_requests_all_fail_over_has_attempts(empty: Store) -> None:
    facts = []
    for number in range(5):
        nid = notification(HOUR + number)
        facts += [
            request(nid),
            status(nid, "email", "failed_over", attempt=1, provider="mail-a", latency_ms=3, code="451 4.7.1"),
            status(nid, "email", "sent", attempt=2, provider="mail-b", latency_ms=3, after=2_000),
        ]
    empty.insert(facts)
    assert empty.rows(
        "SELECT provider, sum(attempts), min(sent_share) FROM v_provider_scorecard GROUP BY 1 ORDER BY 1"
    ) == [
        ("mail-a", 5, 0.0),
        ("mail-b", 5, 1.0),
    ]
    assert empty.rows("SELECT DISTINCT failed_over_from, provider, attempts, last_error FROM v_messages") == [
        ("mail-a", "mail-b", 2, "451 4.7.1")
    ]


@pytest.mark.parametrize("proof", ["delivered", "undelivered"])
def test_report_that_resolves_a_doubt_is_the_proof_that_it_was_sent(empty: Store, proof: str) -> None:
    nid = ids.notification_id((NOW // HOUR - 2) * HOUR, "t")
    empty.insert(
        [
            request(nid),
            status(nid, "sms", "unknown", attempt=1, provider="sms-1", after=900),
            status(nid, "sms", proof, attempt=1, provider="sms-1", after=2_000),
        ]
    )
    assert empty.rows("SELECT sent_ms FROM v_messages") == [(2_000,)]
    assert empty.rows("SELECT sent, sent_ms_p50 FROM v_latency") == [(1, 2_000)]
    assert empty.rows("SELECT sent_5s, sent_share_5s FROM v_slo") == [(1, 1.0)]


def test_what_no_account_reports_is_null(empty: Store) -> None:
    mail, sms = notification(2), notification(1)
    empty.insert(
        [
            request(mail),
            status(mail, "email", "sent", attempt=1, provider="mail-1", latency_ms=4),
            request(sms),
            status(sms, "sms", "sent", attempt=1, provider="sms-1", latency_ms=4),
            status(sms, "sms", "delivered", attempt=1, provider="sms-1", after=2_000),
        ]
    )
    assert empty.rows(
        "SELECT channel, delivered, opened, reports FROM v_funnel WHERE channel != '' ORDER BY channel"
    ) == [
        ("email", None, None, []),
        ("sms", 1, None, ["delivered"]),
    ]
    assert empty.rows(
        "SELECT channel, delivered, delivered_ms_p95, delivered_ms_p50_p95_p99 FROM v_latency ORDER BY 1"
    ) == [
        ("email", None, None, []),
        ("sms", 1, 2_000, [2_000, 2_000, 2_000]),
    ]
    assert empty.rows("SELECT channel, delivered_5s, delivered_share_30s FROM v_slo ORDER BY channel") == [
        ("email", None, None),
        ("sms", 1, 1.0),
    ]
    assert empty.rows(
        "SELECT provider, delivered, accepted, complained FROM v_provider_scorecard ORDER BY provider"
    ) == [
        ("mail-1", None, None, None),
        ("sms-1", 1, 1, None),
    ]
    assert empty.rows("SELECT channel, was_delivered, was_opened FROM v_messages ORDER BY channel") == [
        ("email", None, None),
        ("sms", True, None),
    ]


def test_attempts_are_requests_to_a_provider(empty: Store) -> None:
    nid = notification(1)
    empty.insert([request(nid), status(nid, "email", "suppressed", attempt=1)])
    assert empty.rows("SELECT state, attempts FROM message_state") == [("suppressed", 0)]


def test_residual_has_a_row_for_each_part(empty: Store) -> None:
    orphan = notification(60_000)
    facts = [
        status(orphan, channel, state, attempt=1, provider="p")
        for channel in ("sms", "email")
        for state in ("sent", "rejected")
    ]
    empty.insert(facts)
    findings = Counter(row[0] for row in empty.rows("SELECT finding FROM v_residual"))
    assert findings == {"a status without a request": 1, "conflicting outcomes of one attempt": 2}
    assert empty.rows("SELECT residual FROM v_accounting") == [(3,)]


# ---------------------------------------------------------------- what is stored


def test_message_tells_what_was_rendered_and_for_whom(empty: Store) -> None:
    nid = notification(1)
    said: dict[str, Any] = {
        "recipient": "u1",
        "category": "orders",
        "locale": "de",
        "domain": "mail.example",
        "source": SOURCE,
    }
    report: dict[str, Any] = {"provider": "mail-1", "recipient": "addr:ff", "code": "5.1.1"}
    empty.insert(
        [
            request(nid, tags=["spring"], template_version=2),
            status(nid, "email", "routed", preference_version=7, **said),
            status(nid, "email", "bounced", attempt=1, after=3_000, **report),
        ]
    )
    wanted = (
        "recipient, tags, category, locale, domain, requested_template_version, template_version, preference_version, "
        "last_error, reason"
    )
    assert empty.rows(f"SELECT {wanted} FROM v_messages") == [
        ("u1", ["spring"], "orders", "de", "mail.example", 2, 3, 7, "5.1.1", "hard_bounce")
    ]
    assert empty.rows("SELECT code FROM delivery_events ORDER BY occurred_at") == [("",), ("5.1.1",)]


def test_preferences_have_a_history(empty: Store) -> None:
    versions = [
        profile(1, 0),
        profile(2, 10, categories={"marketing": {"email": False, "sms": True}}),
        profile(3, 20, categories={"marketing": {"email": False}}, channels={"sms": False}),
        profile(4, 30, categories={"marketing": {"email": True}}, channels={"sms": False}),
        profile(5, 40, channels={}),
    ]
    tombstone = ConsumerRecord(RECIPIENTS, 0, 9, 0, b"t:u1", None)
    empty.insert([*reversed(versions), *versions, tombstone])
    wanted = "category, channel, opted_out, profile_version, toUnixTimestamp64Milli(changed_at)"
    assert empty.rows(f"SELECT {wanted} FROM preference_history ORDER BY changed_at") == [
        ("marketing", "email", True, 2, NOW + 10),
        ("", "sms", True, 3, NOW + 20),
        ("marketing", "email", False, 4, NOW + 30),
        ("", "sms", False, 5, NOW + 40),
    ]


def test_every_row_says_when_it_was_stored(empty: Store) -> None:
    nid = notification(1)
    before = empty.rows("SELECT now64(3, 'UTC') - INTERVAL 5 SECOND")[0][0]
    empty.insert(
        [
            request(nid),
            status(nid, "sms", "sent", attempt=1),
            receipt_of(nid, "sms-1", "x", 5),
            profile(1, 0, channels={"sms": False}),
        ]
    )
    for view in ("requests", "delivery_events", "receipts", "preference_history"):
        ((stored_at,),) = empty.rows(f"SELECT stored_at FROM {view}")
        assert stored_at >= before, view


# ---------------------------------------------------------------- what a message waits for


def test_why_says_what_a_message_waits_for(empty: Store) -> None:
    retried, routed, scheduled = notification(9_000), notification(8_000), notification(7_000)
    error: dict[str, Any] = {"attempt": 1, "provider": "mail-1", "code": "451 4.3.0", "latency_ms": 5}
    empty.insert(
        [
            request(retried),
            status(retried, "email", "routed"),
            status(retried, "email", "retrying", after=2_000, due_at=1_790_000_000_000, **error),
            request(routed),
            status(routed, "email", "routed"),
            request(scheduled, send_at=1_790_000_000_000),
            status(scheduled, None, "scheduled"),
        ]
    )
    waits = [row[0] for row in empty.rows("SELECT why FROM v_why ORDER BY accepted_at")]
    assert waits[0].startswith("Waits for a retry after 451 4.3.0 at mail-1, due at 2026-09-21 14:13:20 UTC")
    assert waits[1].startswith("Routed, waits for a sender; mail-1 has taken nothing yet (451 4.3.0 at ")
    assert waits[2] == "Waits for its send_at, 2026-09-21 14:13:20 UTC"
    taken = notification(1_000)
    empty.insert([request(taken), status(taken, "email", "sent", attempt=1, provider="mail-1", after=500)])
    ((why,),) = empty.rows(f"SELECT why FROM v_why WHERE notification_id = '{routed}'")
    assert "; mail-1 took its last message at " in why or "; mail-1 has taken nothing since " in why


def condition(subject: str, name: str, channel: str | None, **more: Any) -> ConsumerRecord:
    value = {
        "subject": subject,
        "name": name,
        "channel": channel,
        "process": "p",
        "state": "down",
        "detail": "",
        **more,
    }
    return record(CONDITIONS, "Condition", {"since": None, "next_at": None, "stated_at": system_clock(), **value})


def test_why_waits_for_what_explain_says(empty: Store) -> None:
    nids = {name: notification(9_000 - 100 * n) for n, name in enumerate(WAITING)}
    error: dict[str, Any] = {"attempt": 1, "provider": "mail-1", "detail": "451 4.3.0", "latency_ms": 5}
    empty.insert(
        [
            *(
                request(nid, send_at=NOW + HOUR if name == "scheduled" else None)._replace(
                    topic=requests_topic("bulk" if name == "nothing known" else "normal")
                )
                for name, nid in nids.items()
            ),
            status(nids["accounts down"], "email", "routed"),
            status(nids["failed over"], "email", "failed_over", **error),
            status(nids["sender halted"], "sms", "routed"),
            status(nids["nothing known"], "push", "routed", lane="bulk"),
            status(nids["retry with a time"], "email", "retrying", **{**error, "attempt": 3}, due_at=NOW + 500),
            status(nids["retry without"], "email", "retrying", **error),
            status(nids["held"], "email", "held"),
            status(nids["sent"], "email", "sent", **error),
            status(nids["scheduled"], None, "scheduled"),
            condition("account", "mail-1", "email", detail="451 4.3.0", since=NOW - 5_000, next_at=NOW + 5_123),
            condition("account", "mail-2", "email", detail="it's off"),
            condition("account", "sms-1", "sms", detail="20003"),
            condition("sender", "sms", "sms", detail="too many", since=NOW),
            status(nids["sender of its lane halted"], "push", "routed"),
            condition("sender", "push normal", "push", detail="too many", since=NOW),
            condition("router", "normal", None, detail="3 of 4", since=NOW - 1),
            condition("router", "bulk", None, state="up"),
        ]
    )
    rows = empty.rows("SELECT toString(notification_id), waits_for, why FROM v_why")
    found = {row[0]: row[1:] for row in rows}
    asked = {"tenant": "t"}
    for name, nid in nids.items():
        identity = {**asked, "hour": ids.accepted_at(nid) // HOUR * 3600, "id": nid.replace("-", "")}

        def select(query: str, parameters: dict[str, Any] = identity) -> list[dict[str, Any]]:
            return clickhouse.select(empty.settings, empty.client, query, parameters)

        (stored,) = select("explain_request")
        facts = Facts(
            nid, ids.accepted_at(nid), accepted=True, events=select("events"), request=stored,
            conditions=select("conditions", {}),
        )  # fmt: skip
        story = explain_facts(facts)
        says = story["messages"][0]["waits_for"] if story["messages"] else story["waits_for"]
        assert found[nid][0] == (says or ""), name
        assert bool(says) == (name not in ("nothing known", "held", "sent")), name
    assert found[nids["accounts down"]][1] == found[nids["accounts down"]][0]
    assert "mail-2: it's off" in found[nids["failed over"]][0]


WAITING = (
    "accepted", "accounts down", "failed over", "sender halted", "sender of its lane halted", "nothing known", "retry with a time", "retry without", "held",
    "sent", "scheduled",
)  # fmt: skip


@pytest.mark.parametrize(
    "where",
    [
        "category = 'orders'",
        "requested_category = 'default'",
        "user_id = 'u1'",
        "has(tags, 'a')",
        "accepted_at > '2020-01-01'",
    ],
)
def test_any_column_may_be_filtered(empty: Store, where: str) -> None:
    nid = notification(1)
    empty.insert([request(nid, tags=["a"]), status(nid, "email", "routed", category="orders")])
    for view in ("requests", "v_messages"):
        assert empty.rows(f"SELECT count() FROM {view} WHERE {where}") == [(1,)], view
        assert empty.rows(f"SELECT count() FROM {view} WHERE NOT ({where})") == [(0,)], view


def test_no_public_column_is_of_an_aggregates_type(store: Store) -> None:
    leaked = "table IN (SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View')"
    assert store.rows(f"SELECT table, name, type FROM system.columns WHERE {leaked} AND type LIKE '%Aggregate%'") == []


def test_every_public_column_says_what_it_means(store: Store) -> None:
    statements = {view.name: view.statement for view in sql_views()}
    for view, said in columns.texts()[1].items():
        there = "database = currentDatabase() AND table = {view:String}"
        found = dict(store.rows(f"SELECT name, comment FROM system.columns WHERE {there} ORDER BY position", view=view))
        assert found == columns.comments_of(view, columns.columns_of(view, statements)), view
        assert all(found.values()), view
        about = store.rows(
            "SELECT comment FROM system.tables WHERE database = currentDatabase() AND name = {view:String}", view=view
        )
        assert about == [(said.about,)]


# ---------------------------------------------------------------- sums


WHOLES = {
    "the funnel's requests": ("SELECT sum(requests) FROM v_funnel", "SELECT count() FROM requests"),
    "the funnel's messages": ("SELECT sum(messages) FROM v_funnel", "SELECT count() FROM message_state"),
    "the funnel's parts": (
        "SELECT sum(succeeded + unknown + simulated + failed + not_wanted + in_flight) FROM v_funnel",
        "SELECT sum(messages + alone) FROM v_funnel",
    ),
    "the wide rows": ("SELECT count() FROM v_messages", "SELECT count() FROM message_state"),
    "the attempts": ("SELECT sum(attempts) FROM v_provider_scorecard", "SELECT sum(attempts) FROM v_minutes"),
    "the scorecard's parts": (
        "SELECT sum(sent + retried + failed_over + refused + unknown + bounced_at_once) FROM v_provider_scorecard",
        "SELECT sum(attempts) FROM v_provider_scorecard",
    ),
    "the accounting": (
        "SELECT sum(unknown + dead_lettered + simulated + skipped + suppressed + expired + cancelled + rejected + failed "
        "+ sent + undelivered + delivered + bounced + in_flight) FROM v_accounting",
        "SELECT sum(accepted) FROM v_accounting",
    ),
    "the findings": ("SELECT count() FROM v_residual", "SELECT sum(residual) FROM v_accounting"),
    "the facts by minute": (
        "SELECT sum(facts) FROM v_minutes",
        "SELECT count() + (SELECT count() FROM requests) FROM delivery_events",
    ),
    "the flagged messages": (
        "SELECT sum(possible_duplicates) FROM v_provider_scorecard",
        "SELECT uniqExact(message_id) FROM delivery_events "
        "WHERE possible_duplicate AND provider != '' AND message_id IS NOT NULL",
    ),
}


def assert_sums(store: Store) -> None:
    for name, (parts, whole) in WHOLES.items():
        assert store.rows(parts) == store.rows(whole), name


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(REQUESTS, EVENTS)
def test_parts_sum_to_the_whole_for_any_history(
    store: Store, requests: list[ConsumerRecord], events: list[ConsumerRecord]
) -> None:
    store.clear()
    store.insert([*requests, *events, *events[:3]])
    assert_sums(store)
    # Copies of one fact may differ here in what they say: distinct ids are what was asked.
    stated: dict[str, list[dict[str, Any]]] = {}
    for each in events:
        fact = codec("DeliveryStatus").decode(each.value)
        stated[fact["event_id"]] = [*stated.get(fact["event_id"], []), fact]
    sure = sum(all(was_asked(f) and f["message_id"] for f in same) for same in stated.values())
    possible = sum(any(was_asked(f) for f in same) for same in stated.values())
    ((attempts,),) = store.rows("SELECT sum(attempts) FROM v_provider_scorecard")
    assert sure <= attempts <= possible


def was_asked(fact: dict[str, Any]) -> bool:
    """Whether a fact is the answer to a request of ours, and not what a report repeats of it."""
    latency_ms = fact["latency_ms"]
    repeated = fact["state"] == "sent" and fact["source"] is None and (latency_ms is None or latency_ms < 0)
    return bool(fact["provider"]) and fact["state"] in ASKED and not repeated


def test_parts_sum_to_the_whole_of_two_days(empty: Store) -> None:
    facts = many(1_500, seed=8)
    empty.insert([*facts, *facts[:500]])
    assert_sums(empty)

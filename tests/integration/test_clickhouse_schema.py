"""The schema on the real engine: any shuffle, duplication and re-cutting of the facts gives the same answers."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import ids
from runtime.errors import UnavailableError
from runtime.records import ConsumerRecord, group_by_partition
from runtime.settings import ClickHouseSettings
from schemas.channels import CHANNELS
from schemas.codec import codec
from schemas.events import states
from schemas.topics import DEAD_LETTERS, RECEIPTS, STATUS, requests_topic
from sinks import clickhouse, schema, schema_files
from sinks.batching import Batch
from sinks.storing import store_batch
from tests.support.clickhouse import Server, free_port
from tests.support.earlier_store import make_earlier_store
from tracking.status import rollup

pytestmark = pytest.mark.clickhouse

HOUR = 3_600_000
NOW = time.time_ns() // 1_000_000
VIEWS = (
    "requests",
    "delivery_events",
    "receipts",
    "dead_letters",
    "message_state",
    "notification_state",
    "v_accounting",
    "v_residual",
    "v_funnel",
    "v_provider_scorecard",
    "v_latency",
    "v_failures",
    "v_why",
)
STORED = ("requests", "delivery_events", "receipts", "dead_letters")
COLUMNS = dict.fromkeys(STORED, "* EXCEPT (stored_at)")
"""When a row was stored is of the storing, not of the row."""
RAW = (
    "requests_raw",
    "delivery_events_raw",
    "receipts_raw",
    "dead_letters_raw",
    "message_states",
    "notification_states",
    "preferences_raw",
    "account_states",
    "conditions_raw",
    "hour_sums",
)


class Store:
    """A migrated database on a running engine."""

    def __init__(self, server: Server, database: str = "heliograph") -> None:
        self.settings = ClickHouseSettings(url=f"http://127.0.0.1:{server.port}", database=database)
        schema.migrate(self.settings)
        self.client: Client = clickhouse.connect(self.settings)

    def insert(self, records: Sequence[ConsumerRecord]) -> None:
        batch = Batch(max_rows=1_000_000)
        batch.add(group_by_partition(records))
        store_batch(self.settings, self.client, batch)
        assert not batch.poison

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        sql = schema_files.in_database(sql, self.settings.internal_database, schema_files.helper_views())
        return list(self.client.query(sql, parameters=parameters).result_rows)

    def answers(self) -> dict[str, list[str]]:
        """Every row of every view, in an order of its own."""
        return {view: sorted(map(repr, self.rows(f"SELECT {COLUMNS.get(view, '*')} FROM {view}"))) for view in VIEWS}

    def clear(self) -> None:
        for table in RAW:
            self.client.command(f"TRUNCATE TABLE {table}")

    def merge(self) -> None:
        for table in RAW:
            self.client.command(f"OPTIMIZE TABLE {table} FINAL")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def store(server: Server) -> Store:
    return Store(server)


@pytest.fixture
def empty(store: Store) -> Store:
    store.clear()
    return store


# ---------------------------------------------------------------- records


def record(topic: str, name: Any, value: dict[str, Any]) -> ConsumerRecord:
    return ConsumerRecord(topic, 0, 0, 0, None, codec(name).encode(value))


def notification(age_ms: int, tenant: str = "t") -> str:
    return ids.notification_id(NOW - age_ms, tenant)


def request(notification_id: str, tenant: str = "t", **more: Any) -> ConsumerRecord:
    value = {
        "notification_id": notification_id,
        "tenant": tenant,
        "accepted_at": ids.accepted_at(notification_id),
        "user_id": "u1",
        "template_id": "order",
        **more,
    }
    return record(requests_topic("normal"), "NotificationRequest", value)


def status(
    notification_id: str,
    channel: str | None,
    state: str,
    *,
    attempt: int = 0,
    after: int = 1_000,
    tenant: str = "t",
    **more: Any,
) -> ConsumerRecord:
    message_id = None if channel is None else ids.message_id(notification_id, channel, "x")
    reasons = states().reasons.get(state, ())
    value = {
        "event_id": ids.event_id(message_id or notification_id, state, attempt),
        "notification_id": notification_id,
        "message_id": message_id,
        "tenant": tenant,
        "channel": channel,
        "lane": "normal",
        "state": state,
        "reason": reasons[0] if reasons else None,
        "detail": None,
        "attempt": attempt,
        "provider": None,
        "provider_message_id": None,
        "possible_duplicate": False,
        "template_id": "order",
        "template_version": 3,
        "preference_version": None,
        "occurred_at": ids.accepted_at(notification_id) + after,
        "latency_ms": None,
        "source": None,
        "correlation_id": None,
        **more,
    }
    return record(STATUS, "DeliveryStatus", value)


def receipt(number: int) -> ConsumerRecord:
    value = {
        "event_id": str(UUID(int=number)),
        "provider": "sms-1",
        "provider_message_id": f"pm{number % 3}",
        "message_id": None,
        "state": "delivered",
        "reason": None,
        "code": "30",
        "occurred_at": NOW,
        "received_at": NOW,
        "raw": b"To=+491700000000",
    }
    return record(RECEIPTS, "ProviderReceipt", value)


def dead_letter(number: int, value: bytes = b"\xff\x00poison") -> ConsumerRecord:
    content = {
        "dead_letter_id": ids.dead_letter_id("t", 0, number, 0, None, b"x"),
        "topic": "t",
        "partition": 0,
        "offset": number,
        "key": b"k\xfe",
        "value": value,
        "headers": [],
        "stage": "router",
        "reason": "undecodable",
        "error_class": "DecodeError",
        "detail": None,
        "attempts": 1,
        "tenant": None,
        "notification_id": "not an id",
        "message_id": None,
        "occurred_at": NOW,
    }
    return record(DEAD_LETTERS, "DeadLetter", content)


# ---------------------------------------------------------------- shuffles

IDS = [ids.notification_id(NOW - age, "t", str(age)) for age in (60_000, 90_000, 40 * 24 * HOUR)]
EVENTS = st.lists(
    st.builds(
        lambda nid, channel, state, attempt, after, flagged, provider: status(
            nid,
            channel,
            state,
            attempt=attempt,
            after=after,
            possible_duplicate=flagged,
            provider=provider,
            provider_message_id=provider and f"pm-{attempt}",
        ),
        st.sampled_from(IDS),
        st.sampled_from([None, *CHANNELS]),
        st.sampled_from(sorted(states().all)),
        st.integers(0, 2),
        st.integers(0, 5),
        st.booleans(),
        st.sampled_from([None, "a", "b"]),
    ),
    max_size=14,
)
REQUESTS = st.lists(
    st.builds(
        lambda nid, send_at, dry_run: request(nid, send_at=send_at, dry_run=dry_run),
        st.sampled_from(IDS),
        st.sampled_from([None, NOW + HOUR]),
        st.booleans(),
    ),
    max_size=4,
)
OTHERS = st.lists(st.one_of(st.integers(1, 4).map(receipt), st.integers(1, 4).map(dead_letter)), max_size=3)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(REQUESTS, EVENTS, OTHERS, st.randoms(use_true_random=False), st.booleans())
def test_any_shuffle_duplication_and_cutting_gives_the_same_rows(
    store: Store,
    requests: list[ConsumerRecord],
    events: list[ConsumerRecord],
    others: list[ConsumerRecord],
    rng: random.Random,
    merge: bool,
) -> None:
    facts = [*requests, *events, *others]
    store.clear()
    store.insert(facts)
    expected = store.answers()
    store.clear()
    shuffled(store, facts, rng)
    if merge:
        store.merge()
    assert store.answers() == expected
    assert_accounted(store)


def shuffled(store: Store, facts: list[ConsumerRecord], rng: random.Random) -> None:
    """Insert in any order, some twice, in pieces."""
    again = [*facts, *(rng.choices(facts, k=len(facts) // 2) if facts else [])]
    rng.shuffle(again)
    while again:
        size = rng.randint(1, max(1, len(again)))
        store.insert(again[:size])
        again = again[size:]


def assert_accounted(store: Store) -> None:
    columns = ", ".join(states().settled)
    total = " + ".join(states().settled)
    for accepted, in_flight, settled, *_ in store.rows(
        f"SELECT accepted, in_flight, {total}, {columns} FROM v_accounting"
    ):
        assert accepted == settled + in_flight


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS)
def test_rollup_of_the_api_agrees_with_the_view(store: Store, events: list[ConsumerRecord]) -> None:
    # One form per fact: which of two forms is shown may differ where a flagged one is older than an unflagged.
    events = list({codec("DeliveryStatus").decode(e.value)["event_id"]: e for e in events}.values())
    store.clear()
    store.insert(events)
    view = {
        str(row[0]): (row[1], row[2] or None, row[3], row[4])
        for row in store.rows(
            "SELECT notification_id, state, reason, messages, possible_duplicate FROM notification_state"
        )
    }
    messages = {
        str(row[0]): (row[1], row[2] or None, row[3] or None, row[4] or None, row[5])
        for row in store.rows(
            "SELECT message_id, state, reason, provider, provider_message_id, possible_duplicate FROM message_state"
        )
    }
    of_api: dict[str, Any] = {}
    for notification_id in view:
        hour = ids.accepted_at(notification_id) // HOUR * 3600
        parameters = {"tenant": "t", "hour": hour, "id": UUID(notification_id).hex}
        found = clickhouse.select(store.settings, store.client, "events", parameters)
        answer = rollup(notification_id, ids.accepted_at(notification_id), found)
        assert (answer["status"], answer["reason"], len(answer["messages"])) == view[notification_id][:3]
        for message in answer["messages"]:
            of_api[message["id"]] = (
                message["status"],
                message["reason"],
                message["provider"],
                message["provider_message_id"],
                message["possible_duplicate"],
            )
    assert of_api == messages


def many(count: int, seed: int) -> list[ConsumerRecord]:
    """A day of plausible notifications."""
    rng = random.Random(seed)
    facts: list[ConsumerRecord] = []
    for _ in range(count):
        nid = notification(rng.randrange(HOUR, 24 * HOUR))
        facts.append(request(nid))
        if rng.random() < 0.1:
            facts.append(status(nid, None, rng.choice(["rejected", "expired", "cancelled", "simulated"])))
            continue
        for channel in rng.sample(CHANNELS, rng.randint(1, 3)):
            facts.append(status(nid, channel, "routed"))
            attempt = 1
            while rng.random() < 0.2:
                facts.append(
                    status(nid, channel, "retrying", attempt=attempt, after=1_000 * attempt + 500, provider="p0")
                )
                attempt += 1
            end = rng.choice(["sent", "sent", "sent", "failed", "bounced", "suppressed"])
            facts.append(
                status(nid, channel, end, attempt=attempt, after=1_000 * attempt + 900, provider="p1", latency_ms=9)
            )
            if end == "sent" and rng.random() < 0.5:
                facts.append(status(nid, channel, "delivered", attempt=attempt, after=60_000, provider="p1"))
    return facts


def test_three_thousand_notifications_are_accounted_for_in_any_order(empty: Store) -> None:
    facts = many(3_000, seed=7)
    empty.insert(facts)
    expected = empty.answers()
    ((accepted, in_flight, residual),) = empty.rows(
        "SELECT sum(accepted), sum(in_flight), sum(residual) FROM v_accounting"
    )
    assert (accepted, in_flight, residual) == (3_000, 0, 0)
    assert_accounted(empty)
    shuffled(empty, facts, random.Random(8))
    assert empty.answers() == expected
    empty.merge()
    assert empty.answers() == expected


# ---------------------------------------------------------------- single cases


def one(store: Store, sql: str) -> Any:
    (row,) = store.rows(sql)
    return row


def test_higher_rank_wins_over_a_later_fact(empty: Store) -> None:
    nid = notification(60_000)
    for state, after in (("delivered", 5), ("sent", 9_000), ("routed", 20_000)):
        empty.insert([status(nid, "sms", state, attempt=1, after=after)])
    assert one(empty, "SELECT state, rank, settled_at > accepted_at FROM message_latest") == ("delivered", 41, True)


def test_equal_ranks_are_settled_by_time_then_by_id(empty: Store) -> None:
    nid = notification(60_000)
    empty.insert([status(nid, "sms", "suppressed", after=7), status(nid, "sms", "skipped", after=8)])
    assert one(empty, "SELECT state FROM message_state") == ("skipped",)
    # the same millisecond: the greater event id, whichever is inserted last
    other = notification(50_000)
    pair = [status(other, "sms", state, after=9) for state in ("rejected", "cancelled")]
    message_id = ids.message_id(other, "sms", "x")
    wanted = max(("rejected", "cancelled"), key=lambda state: ids.event_id(message_id, state))
    for order in (pair, pair[::-1]):
        for fact in order:
            empty.insert([fact])
        sql = f"SELECT state FROM message_state WHERE notification_id = '{other}'"
        assert one(empty, sql) == (wanted,)


def test_scheduled_request_that_comes_back_keeps_its_time(empty: Store) -> None:
    nid = notification(60_000)
    empty.insert([request(nid, send_at=NOW + HOUR)])
    empty.insert([request(nid, send_at=None)])
    assert one(empty, "SELECT count(), countIf(send_at IS NOT NULL) FROM requests") == (1, 1)
    assert one(empty, "SELECT accepted, in_flight, residual FROM v_accounting") == (1, 1, 0)


def test_one_fact_in_two_forms_is_one_row_and_stays_flagged(empty: Store) -> None:
    nid = notification(60_000)
    forms = [
        status(nid, "sms", "sent", attempt=1, after=50, possible_duplicate=True, provider_message_id="second"),
        status(nid, "sms", "sent", attempt=1, after=10, provider_message_id="first"),
    ]
    for form in forms:
        empty.insert([form])
    assert one(empty, "SELECT provider_message_id, possible_duplicate FROM delivery_events") == ("second", True)
    assert one(empty, "SELECT provider_message_id, possible_duplicate FROM message_state") == ("second", True)


def residual(store: Store) -> tuple[int, list[str]]:
    ((total,),) = store.rows("SELECT sum(residual) FROM v_accounting")
    return int(total), sorted(row[0] for row in store.rows("SELECT finding FROM v_residual"))


def test_status_without_a_request_is_a_residual_until_the_request_comes(empty: Store) -> None:
    nid = notification(60_000)
    empty.insert([status(nid, "sms", "sent", attempt=1)])
    assert residual(empty) == (1, ["a status without a request"])
    assert one(empty, "SELECT accepted, sent, in_flight FROM v_accounting") == (0, 0, 0)
    empty.insert([request(nid)])
    assert residual(empty) == (0, [])
    assert one(empty, "SELECT accepted, sent, in_flight FROM v_accounting") == (1, 1, 0)


MINUTE = 60_000


@pytest.mark.parametrize(
    ("age", "times", "events", "overdue"),
    [
        (14 * MINUTE, {}, [], False),
        (16 * MINUTE, {}, [], True),
        (16 * MINUTE, {"send_at": HOUR}, [(None, "scheduled", 0)], False),
        (2 * HOUR, {"send_at": -14 * MINUTE}, [(None, "scheduled", 0)], False),
        (2 * HOUR, {"send_at": -16 * MINUTE}, [(None, "scheduled", 0)], True),
        (2 * HOUR, {}, [("sms", "routed", 2 * HOUR - MINUTE)], False),
        (2 * HOUR, {"expires_at": -16 * MINUTE}, [("sms", "routed", 2 * HOUR - MINUTE)], True),
        (2 * HOUR, {}, [("sms", "retrying", HOUR)], False),  # may wait for an hour's Retry-After
        (3 * HOUR, {}, [("sms", "retrying", HOUR)], True),
    ],
)
def test_in_flight_is_overdue_after_its_time_and_fifteen_minutes(
    empty: Store, age: int, times: dict[str, int], events: list[tuple[str | None, str, int]], overdue: bool
) -> None:
    now = time.time_ns() // 1_000_000
    nid = ids.notification_id(now - age, "t")
    due: dict[str, Any] = {name: now + offset for name, offset in times.items()}
    asked = request(nid, **due)
    empty.insert([asked, *(status(nid, c, s, after=after) for c, s, after in events)])
    assert one(empty, "SELECT in_flight, residual FROM v_accounting") == (1, int(overdue))


@pytest.mark.parametrize(
    ("facts", "conflict"),
    [
        ([("sent", 1, False), ("failed", 1, False)], True),
        ([("sent", 1, False), ("failed", 1, True)], False),  # flagged: explained
        ([("failed", 1, False), ("sent", 2, False)], False),  # re-driven
        ([("sent", 1, False), ("delivered", 1, False), ("bounced", 1, False)], False),
        ([("skipped", 0, False), ("sent", 1, False)], False),  # replayed after an opt-out
        ([("unknown", 1, False), ("delivered", 1, False)], False),
    ],
)
def test_two_outcomes_of_one_attempt_are_a_conflict_unless_flagged(
    empty: Store, facts: list[tuple[str, int, bool]], conflict: bool
) -> None:
    nid = notification(60_000)
    empty.insert(
        [request(nid), *(status(nid, "sms", s, attempt=attempt, possible_duplicate=flag) for s, attempt, flag in facts)]
    )
    assert residual(empty)[0] == int(conflict)


def test_made_up_ids_break_no_insert_and_make_few_partitions(empty: Store) -> None:
    rng = random.Random(3)
    hostile = [ids.notification_id(rng.randrange(1 << 48), "t") for _ in range(2_000)]
    hostile += [ids.notification_id(moment, "t") for moment in (0, (1 << 48) - 1)]
    months = [ids.notification_id(NOW + month * 31 * 24 * HOUR, "t") for month in range(-60, 150)]
    empty.insert([request(nid) for nid in hostile + months])
    assert one(empty, "SELECT count(), uniqExact(notification_id) FROM requests") == (2_212, 2_212)
    assert one(empty, "SELECT sum(accepted) FROM v_accounting") == (2_212,)
    sql = "SELECT uniqExact(partition) FROM system.parts WHERE database = currentDatabase() AND table = 'requests_raw' AND active"
    assert one(empty, sql)[0] <= 241
    assert empty.rows("SELECT notification_id FROM requests WHERE accepted_at > '2099-12-31'")


def test_tenants_with_the_same_id_stay_apart(empty: Store) -> None:
    nid = notification(60_000)
    empty.insert([request(nid, tenant="a"), request(nid, tenant="b"), status(nid, "sms", "sent", tenant="b")])
    assert empty.rows("SELECT tenant, state FROM notification_state ORDER BY tenant") == [
        ("a", "accepted"),
        ("b", "sent"),
    ]


def test_dead_letter_keeps_its_bytes_and_a_receipt_loses_them(empty: Store) -> None:
    empty.insert([dead_letter(1), receipt(1)])
    (row,) = empty.client.query("SELECT key, value FROM dead_letters", query_formats={"String": "bytes"}).result_rows
    assert row == (b"k\xfe", b"\xff\x00poison")
    assert "+4917" not in repr(empty.rows("SELECT * FROM receipts_raw"))


def test_why_says_it_in_words(empty: Store) -> None:
    nid, refused = notification(60_000), notification(50_000)
    empty.insert(
        [
            request(nid),
            status(nid, "email", "retrying", attempt=1, after=5, provider="mail-1"),
            status(nid, "email", "failed", attempt=2, provider="mail-1", possible_duplicate=True),
            request(refused),
            status(refused, None, "rejected", reason="unknown_template"),
        ]
    )
    # By time, not by id: ClickHouse sorts UUIDs by their second half first.
    assert empty.rows("SELECT why FROM v_why ORDER BY accepted_at") == [
        ("The provider did not take it: every attempt failed, after 2 attempts; it may have arrived more than once",),
        ("Cannot be sent: the template or its version does not exist",),
    ]
    hour = ids.accepted_at(nid) // HOUR * 3600
    parameters = {"tenant": "t", "hour": hour, "id": nid}
    (why,) = clickhouse.select(empty.settings, empty.client, "why", parameters)
    assert (why["channel"], why["attempts"]) == ("email", 2)
    failures = empty.rows("SELECT channel, state, reason, failures FROM v_failures ORDER BY channel")
    assert failures == [("", "rejected", "unknown_template", 1), ("email", "failed", "retries_exhausted", 1)]


def test_report_and_accounting_count_from_a_time_on(empty: Store) -> None:
    old, new = notification(5_000), notification(1_000)
    for nid in (old, new):
        empty.insert([request(nid), status(nid, "sms", "sent", attempt=1)])
    since = {"tenant": "t", "since": ids.accepted_at(new)}
    (line,) = clickhouse.select(empty.settings, empty.client, "report", since)
    assert (line["channel"], line["state"], line["messages"]) == ("sms", "sent", 1)
    (totals,) = clickhouse.select(empty.settings, empty.client, "accounting", since)
    assert totals == {"accepted": 1, "settled": 1, "in_flight": 0, "residual": 0}
    assert not clickhouse.select(empty.settings, empty.client, "why_not_sent", since)


# ---------------------------------------------------------------- the contract's names


CONTRACT = {
    "delivery_events": (
        "event_id notification_id message_id tenant channel lane state reason provider provider_message_id attempt "
        "possible_duplicate template_id template_version accepted_at occurred_at latency_ms correlation_id"
    ),
    "requests": (
        "notification_id tenant accepted_at lane category template_id strategy delivery tags source correlation_id"
    ),
    "message_state": "message_id state reason channel provider attempts accepted_at settled_at",
    "notification_state": "notification_id state reason channel provider attempts accepted_at settled_at",
    "v_accounting": f"tenant hour accepted {' '.join(states().reasons)} in_flight residual",
}


@pytest.mark.parametrize("view", CONTRACT)
def test_view_has_the_columns_of_the_contract(store: Store, view: str) -> None:
    columns = {row[0]: row[1] for row in store.rows(f"DESCRIBE TABLE {view}")}
    wanted = CONTRACT[view].split()
    assert set(wanted) <= set(columns)
    if view in ("v_accounting", "delivery_events", "requests"):
        assert list(columns)[: len(wanted)] == wanted
    for name in ("notification_id", "event_id"):
        assert columns.get(name, "UUID") == "UUID"
    if view == "delivery_events":
        assert columns["message_id"] == "Nullable(UUID)"


# ---------------------------------------------------------------- migrations


def test_server_that_is_too_old_is_refused_by_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST", (99, 1))
    with pytest.raises(clickhouse.StoreError, match=r"use 99\.1 or a newer one"):
        Store(server, "old")


def test_migrations_run_once_and_two_at_once_agree(server: Server) -> None:
    settings = ClickHouseSettings(url=f"http://127.0.0.1:{server.port}", database="fresh")
    done: list[list[str]] = []
    threads = [threading.Thread(target=lambda: done.append(schema.migrate(settings))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3
    assert schema.migrate(settings) == []
    client = clickhouse.connect(settings)
    assert len(client.query("SELECT * FROM schema_migrations FINAL").result_rows) == len(schema_files.migrations())
    assert schema.compare_views(settings, client).differences == {}


# ---------------------------------------------------------------- views


def in_database(server: Server, name: str) -> tuple[ClickHouseSettings, Client]:
    """Settings of a database that is not there yet, and a client to ask about it."""
    settings = ClickHouseSettings(url=f"http://127.0.0.1:{server.port}", database=name)
    return settings, clickhouse.connect(settings, database="default")


def tables(client: Client, database: str) -> dict[str, str]:
    """Every table and view of a database: name → its definition, which names neither of a store's two databases."""
    rows = client.query(
        "SELECT name, create_table_query FROM system.tables "
        "WHERE database = {database:String} AND NOT startsWith(name, '.inner')",
        parameters={"database": database},
    ).result_rows
    public = database.removesuffix("_internal")
    return {name: query.replace(f"{public}_internal.", "").replace(f"{public}.", "") for name, query in rows}


def as_version(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    """Be another version: other texts of some views (of the statement after AS), None for one it does not have."""
    texts = schema_files._sql_files("views")
    for name, query in changed.items():
        if query is None:
            del texts[f"{name}.sql"]
        else:
            texts[f"{name}.sql"] = f"CREATE OR REPLACE VIEW {name} AS\n{query};\n"
    views = schema_files.read_views(texts, "")
    monkeypatch.setattr(schema, "sql_views", lambda: views)


@pytest.mark.parametrize("upto", [4, 6, 8, 9])
def test_upgrade_of_an_earlier_release_ends_where_a_new_store_begins(server: Server, upto: int) -> None:
    new, client = in_database(server, f"new_{upto}")
    schema.migrate(new)
    old, _ = in_database(server, f"old_{upto}")
    make_earlier_store(old, upto)
    done = schema.migrate(old)
    assert [name for name in done if name.startswith("view ")] == [f"view {v.name}" for v in schema_files.sql_views()]
    assert tables(client, old.database) == tables(client, new.database)
    assert tables(client, old.internal_database) == tables(client, new.internal_database)
    assert schema.migrate(old) == []


def test_changed_view_is_recreated_with_those_that_read_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, client = in_database(server, "changed")
    schema.migrate(settings)
    as_version(monkeypatch, receipts="SELECT 3 AS y", a_reader="SELECT y FROM receipts")
    done = schema.migrate(settings)
    assert done.index("view receipts") < done.index("view a_reader")
    assert client.query("SELECT * FROM changed_internal.a_reader").result_rows == [(3,)]
    as_version(monkeypatch, receipts="SELECT 'b' AS y", a_reader="SELECT y FROM receipts")
    assert schema.migrate(settings) == ["view receipts", "view a_reader"]
    assert client.query("SELECT * FROM changed_internal.a_reader").result_rows == [("b",)]
    as_version(monkeypatch, receipts="SELECT 'b' AS y")
    assert schema.migrate(settings) == ["removal of view a_reader"]
    assert "a_reader" not in tables(client, "changed_internal")


def test_view_of_a_released_migration_goes_with_its_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    as_version(monkeypatch, v_slo=None)
    new, client = in_database(server, "slo_new")
    schema.migrate(new)
    old, _ = in_database(server, "slo_old")
    make_earlier_store(old)
    client.command("CREATE VIEW slo_old.somebodys AS SELECT 1 AS x")
    assert "removal of view v_slo" in schema.migrate(old)
    assert tables(client, old.database).keys() - tables(client, new.database).keys() == {"somebodys"}


def test_view_that_was_changed_or_dropped_in_the_store_is_put_back(server: Server) -> None:
    settings, client = in_database(server, "edited")
    schema.migrate(settings)
    client.command("CREATE OR REPLACE VIEW edited.v_why AS SELECT 1 AS x")
    client.command("DROP VIEW edited.v_slo")
    assert schema.compare_views(settings, client).differences == {"v_slo": "missing", "v_why": "edited"}
    assert schema.migrate(settings) == ["view v_slo", "view v_why"]
    assert schema.compare_views(settings, client).differences == {}


def test_older_version_that_starts_again_leaves_a_newer_ones_views(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, client = in_database(server, "rolling")
    schema.migrate(settings)
    with monkeypatch.context() as newer:
        as_version(newer, receipts="SELECT 1 AS x", later="SELECT 2 AS y")
        schema.migrate(settings)
    there = tables(client, "rolling"), tables(client, "rolling_internal")
    assert schema.migrate(settings) == []
    assert (tables(client, "rolling"), tables(client, "rolling_internal")) == there
    report = schema.compare_views(settings, client)
    assert report.superseded and report.differences["later"] == "removed"
    assert "view receipts" in schema.migrate(settings, replace_newer=True)
    assert "later" not in tables(client, "rolling_internal")
    assert schema.compare_views(settings, client).differences == {}


def test_definitions_are_shown_alike_after_a_restart(tmp_path: Path) -> None:
    running = Server(tmp_path / "data").start()
    settings, client = in_database(running, "restarted")
    schema.migrate(settings)
    client.close()
    assert running.stop() == 0
    running.start()
    assert schema.migrate(settings) == []
    assert running.stop() == 0


def test_unreachable_store_is_one_line_that_names_the_setting() -> None:
    settings = ClickHouseSettings(url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError, match="HELIOGRAPH_CLICKHOUSE__URL") as caught:
        schema.migrate(settings)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- crashes and speed


@pytest.mark.faults
def test_killed_engine_has_the_same_answers_after_a_replay(tmp_path: Path, empty: Store) -> None:
    facts = many(1_500, seed=11)
    empty.insert(facts)
    expected = empty.answers()
    running = Server(tmp_path / "data").start()
    store = Store(running)
    pieces = [facts[start : start + 400] for start in range(0, len(facts), 400)]
    rng = random.Random(5)
    position = kills = 0
    while position < len(pieces):
        killer = None
        if kills < 5:
            killer = threading.Timer(rng.uniform(0.0, 0.05), running.process.send_signal, [signal.SIGKILL])
            killer.start()
        try:
            while position < len(pieces):
                store.insert(pieces[position])
                position += 1
        except UnavailableError:
            pass  # the batch is not committed: it is inserted again below
        if killer is not None:
            killer.join()
            running.process.wait(30)
            kills += 1
            running.start()
            position = max(0, position - 1)
    assert kills == 5
    assert store.answers() == expected
    assert running.stop() == 0


@pytest.mark.slow
def test_columnar_insert_rate(empty: Store) -> None:
    facts = many(60_000, seed=1)
    best = 0.0
    for size in (5_000, 20_000, 60_000):
        started = time.perf_counter()
        for start in range(0, len(facts), size):
            empty.insert(facts[start : start + size])
        rate = len(facts) / (time.perf_counter() - started)
        best = max(best, rate)
        print(f"{size} rows an insert: {rate:,.0f} rows/s with the state views")  # noqa: T201
    for view in VIEWS:
        started = time.perf_counter()
        empty.client.query(f"SELECT count() FROM (SELECT * FROM {view})")
        print(f"{view} over {len(facts):,} rows: {(time.perf_counter() - started) * 1000:.0f} ms")  # noqa: T201
    # A quiet machine gives several times this: a guard against a slip of magnitude, not a benchmark.
    assert best >= 20_000

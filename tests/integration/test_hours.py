"""Kept sums of hours on the real engine: whatever comes when, the views answer what their definitions give."""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import ids
from runtime.errors import UnavailableError
from runtime.records import ConsumerRecord
from runtime.settings import ClickHouseSettings
from sinks import clickhouse, hours, schema
from sinks.hours import HourlySums, keep_hours
from tests.integration.test_clickhouse_schema import (
    EVENTS,
    HOUR,
    MINUTE,
    NOW,
    REQUESTS,
    Store,
    many,
    notification,
    request,
    status,
)
from tests.support.clickhouse import Server
from tests.support.earlier_store import insert_as_earlier, make_earlier_store

pytestmark = pytest.mark.clickhouse

KEPT = ("v_accounting", "v_residual", "v_failures", "v_funnel", "v_latency", "v_slo")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield Store(server)
    assert server.stop() == 0


@pytest.fixture
def empty(store: Store) -> Store:
    store.clear()
    return store


def assert_exact(store: Store) -> None:
    for view in KEPT:
        kept, live = (sorted(map(repr, store.rows(f"SELECT * FROM {name}"))) for name in (view, f"{view}_live"))
        assert kept == live, view


def sum_up(store: Store) -> int:
    """Two looks at the same touches, so that every changed hour is summed up."""
    worker = HourlySums(store.settings)
    worker.round()
    done = worker.round()
    worker.close()
    return done


def changed(store: Store) -> int:
    ((count,),) = store.rows("SELECT count() FROM hours_changed")
    return int(count)


@pytest.mark.parametrize("view", KEPT)
def test_view_has_the_columns_of_its_definition(store: Store, view: str) -> None:
    columns, of_live = ([row[:2] for row in store.rows(f"DESCRIBE TABLE {name}")] for name in (view, f"{view}_live"))
    assert columns == of_live


# ---------------------------------------------------------------- exact at any moment


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(REQUESTS, EVENTS, st.randoms(use_true_random=False))
def test_answers_are_those_of_the_definitions_whatever_comes_between_rounds(
    store: Store, requests: list[ConsumerRecord], events: list[ConsumerRecord], rng: random.Random
) -> None:
    store.clear()
    facts = [*requests, *events, *events[:3]]
    rng.shuffle(facts)
    while facts:
        size = rng.randint(1, len(facts))
        store.insert(facts[:size])
        facts = facts[size:]
        if rng.random() < 0.7:
            sum_up(store)
        if rng.random() < 0.3:
            store.merge()
        assert_exact(store)


def test_a_day_in_any_order_with_rounds_between(empty: Store) -> None:
    facts, rng = many(1_500, seed=21), random.Random(22)
    again = [*facts, *rng.choices(facts, k=len(facts) // 2)]
    rng.shuffle(again)
    for start in range(0, len(again), 700):
        empty.insert(again[start : start + 700])
        sum_up(empty)
        assert_exact(empty)
    assert changed(empty) == 0
    ((accepted, residual),) = empty.rows("SELECT sum(accepted), sum(residual) FROM v_accounting")
    assert (accepted, residual) == (1_500, 0)


def test_late_fact_makes_its_hour_be_summed_up_when_asked(empty: Store) -> None:
    late, other = notification(50 * HOUR), notification(80 * HOUR)
    empty.insert([request(late), request(other), *(status(nid, "sms", "sent", attempt=1) for nid in (late, other))])
    assert sum_up(empty) == 2
    assert changed(empty) == 0
    empty.insert([status(late, "sms", "bounced", attempt=1, after=HOUR)])
    assert [row[0] for row in empty.rows("SELECT toUnixTimestamp(hour) FROM hours_changed")] == [
        ids.accepted_at(late) // HOUR * 3600
    ]
    assert empty.rows("SELECT bounced, sent FROM v_accounting ORDER BY hour") == [(0, 1), (1, 0)]
    assert empty.rows("SELECT state, failures FROM v_failures") == [("bounced", 1)]
    assert_exact(empty)
    assert sum_up(empty) == 1
    assert_exact(empty)


def test_what_is_written_between_the_look_and_the_sum_keeps_the_sum_from_counting(empty: Store) -> None:
    nid = notification(50 * HOUR)
    empty.insert([request(nid)])
    (hour,) = clickhouse.select(empty.settings, empty.client, "hours_changed", {"limit": 10})
    empty.insert([status(nid, "sms", "failed", attempt=1)])
    parameters = {"tenants": ["t"], "hours": [hour["hour"]], "touches": [hour["touches"]]}
    empty.client.command(clickhouse.query_text("hour_sums", empty.settings.internal_database), parameters=parameters)
    assert changed(empty) == 1
    assert_exact(empty)
    # Merged, the states are fewer rows that were touched as often.
    empty.merge()
    assert changed(empty) == 1
    assert sum_up(empty) == 1
    empty.merge()
    assert changed(empty) == 0
    assert_exact(empty)


def test_what_becomes_overdue_shows_without_a_new_sum(empty: Store) -> None:
    nid = ids.notification_id(time.time_ns() // 1_000_000 - 15 * MINUTE + 3_000, "t")
    orphan = notification(50 * HOUR)
    empty.insert([request(nid), status(orphan, "sms", "sent", attempt=1)])
    assert sum_up(empty) == 2
    assert empty.rows("SELECT in_flight, residual FROM v_accounting ORDER BY hour") == [(0, 1), (1, 0)]
    assert [row[0] for row in empty.rows("SELECT finding FROM v_residual")] == ["a status without a request"]
    time.sleep(max(0.0, (ids.accepted_at(nid) + 15 * MINUTE) / 1000 - time.time()) + 0.2)
    assert changed(empty) == 0
    assert empty.rows("SELECT in_flight, residual FROM v_accounting ORDER BY hour") == [(0, 1), (1, 1)]
    found = {row[0] for row in empty.rows("SELECT finding FROM v_residual")}
    assert found == {"a status without a request", "in flight for longer than it should be"}
    assert_exact(empty)


def test_states_that_went_away_take_their_sums_along(empty: Store) -> None:
    empty.insert([request(notification(50 * HOUR))])
    sum_up(empty)
    for table in ("message_states", "notification_states"):
        empty.client.command(f"TRUNCATE TABLE {table}")
    assert empty.rows("SELECT * FROM v_accounting") == []
    assert sum_up(empty) == 0


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(REQUESTS, EVENTS)
def test_notifications_without_messages_have_the_same_outcome(
    store: Store, requests: list[ConsumerRecord], events: list[ConsumerRecord]
) -> None:
    store.clear()
    store.insert([*requests, *events])
    columns = "tenant, hour, notification_id, accepted_at, state, reason, detail, possible_duplicate, last_event_at"
    alone, of_all = (
        sorted(map(repr, store.rows(f"SELECT {columns} FROM {source}")))
        for source in ("notifications_alone", "notification_latest WHERE messages = 0")
    )
    assert alone == of_all


# ---------------------------------------------------------------- rounds


def test_hour_that_is_still_written_to_waits(empty: Store) -> None:
    worker, nid = HourlySums(empty.settings), notification(60_000)
    for attempt in range(3):
        empty.insert([status(nid, "sms", "retrying", attempt=attempt)])
        assert worker.round() == 0
    assert worker.round() == 1
    worker.close()


def test_bounded_rounds_that_are_stopped_get_through_a_backlog(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours, "LOOKED_AT", 5)
    monkeypatch.setattr(hours, "CHUNK_HOURS", 2)
    empty.insert(many(300, seed=5))
    backlog = changed(empty)
    assert backlog > 20
    worker, done, rounds = HourlySums(empty.settings), 0, 0
    while changed(empty):
        calls = iter((False, True))
        got = worker.round(lambda calls=calls: next(calls))  # type: ignore[misc]
        assert got <= 2
        done += got
        rounds += 1
        if rounds % 5 == 0:
            assert_exact(empty)
        assert rounds < 10 * backlog
    worker.close()
    assert done == backlog
    assert_exact(empty)


def test_two_rounds_at_once_are_one(empty: Store) -> None:
    empty.insert(many(500, seed=6))
    workers = [HourlySums(empty.settings) for _ in range(3)]
    for worker in workers:
        worker.round()
    threads = [threading.Thread(target=worker.round) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        worker.close()
    assert changed(empty) == 0
    assert_exact(empty)


def test_hour_that_is_too_much_for_the_store_comes_last(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours, "CHUNK_HOURS", 1)
    empty.insert([request(notification(age * HOUR)) for age in (50, 60, 70)])
    worker, asked = HourlySums(empty.settings), []
    newest = max(row["hour"] for row in clickhouse.select(empty.settings, empty.client, "hours_changed", {"limit": 9}))
    text = clickhouse.query_text

    def query_text(name: str, internal_database: str) -> str:
        asked.append(name)
        return (
            "SELECT throwIf(1)"
            if asked.count("hour_sums") == 1 and name == "hour_sums"
            else text(name, internal_database)
        )

    worker.round()
    monkeypatch.setattr(clickhouse, "query_text", query_text)
    with pytest.raises(UnavailableError):
        worker.round()
    assert changed(empty) == 3
    calls = iter((False, False, True))
    assert worker.round(lambda: next(calls)) == 2
    assert empty.rows("SELECT toUnixTimestamp(hour) FROM hours_changed") == [(newest,)]
    assert worker.round() == 1
    worker.close()


def test_thread_sums_up_until_it_is_stopped(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours, "INTERVAL_S", 0.1)
    monkeypatch.setattr(hours, "IDLE_FACTOR", 0)
    empty.insert(many(50, seed=9))
    stop = threading.Event()
    thread = keep_hours(empty.settings, stop.is_set)
    deadline = time.monotonic() + 30
    while changed(empty) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert changed(empty) == 0
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert_exact(empty)


def test_thread_survives_an_unavailable_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours, "INTERVAL_S", 0.05)
    stop = threading.Event()
    thread = keep_hours(ClickHouseSettings(url="http://127.0.0.1:1"), stop.is_set)
    time.sleep(0.5)
    assert thread.is_alive()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


# ---------------------------------------------------------------- at once with writers


def test_no_answer_drops_or_doubles_an_hour_while_rows_and_sums_come(empty: Store) -> None:
    nids = [notification(age * HOUR) for age in range(30, 70)]
    empty.insert([request(nid) for nid in nids])
    sum_up(empty)
    stop, errors = threading.Event(), []

    def repeatedly(step: object) -> None:
        try:
            while not stop.is_set():
                step()  # type: ignore[operator]
        except Exception as exc:  # noqa: BLE001 # told by the test's own thread
            errors.append(exc)

    rng, late = random.Random(4), iter(range(10**9))

    def write() -> None:
        again = rng.sample(nids, 4)
        empty.insert([status(nid, "sms", "retrying", attempt=1, after=1_000 + next(late)) for nid in again])

    def look() -> None:
        got = empty.rows("SELECT hour, accepted, in_flight FROM v_accounting ORDER BY hour")
        assert [(accepted, in_flight) for _, accepted, in_flight in got] == [(1, 1)] * 40
        assert len({hour for hour, *_ in got}) == 40

    worker = HourlySums(empty.settings)
    threads = [threading.Thread(target=repeatedly, args=(step,)) for step in (write, look, look, worker.round)]
    for thread in threads:
        thread.start()
    time.sleep(6)
    stop.set()
    for thread in threads:
        thread.join()
    worker.close()
    assert errors == []
    sum_up(empty)
    assert changed(empty) == 0
    assert_exact(empty)


@pytest.mark.faults
def test_killed_engine_leaves_no_half_sum(tmp_path: Path) -> None:
    running = Server(tmp_path / "data").start()
    store, rng = Store(running), random.Random(6)
    facts = many(600, seed=12)
    store.insert(facts)
    for _ in range(4):
        store.insert(rng.choices(facts, k=50))
        worker = HourlySums(store.settings)
        worker.round()
        killer = threading.Timer(rng.uniform(0.0, 0.15), running.process.send_signal, [signal.SIGKILL])
        killer.start()
        try:
            worker.round()
        except UnavailableError:
            pass  # killed before its end
        killer.join()
        worker.close()
        running.process.wait(30)
        running.start()
        assert_exact(store)
    sum_up(store)
    assert_exact(store)
    assert running.stop() == 0


# ---------------------------------------------------------------- what it costs


def two_days(store: Store) -> None:
    """200,000 messages of two tenants, written in three pieces."""
    rows = (
        "SELECT if(number % 4 = 0, 'b', 'a'), toFixedString(leftPad(toString(number), 16, '0'), 16) AS id, "
        f"fromUnixTimestamp64Milli({NOW // HOUR * HOUR - 48 * HOUR} + number * 864, 'UTC') AS at"
    )
    for chunk in range(3):
        some = f"FROM numbers(200000) WHERE number % 3 = {chunk}"
        store.client.command(f"INSERT INTO requests_raw (tenant, notification_id, accepted_at) {rows} {some}")
        store.client.command(
            "INSERT INTO delivery_events_raw "
            "(tenant, notification_id, accepted_at, message_id, event_id, state, rank, provider, occurred_at) "
            f"{rows}, id, id, if(number % 9 = 0, 'failed', 'sent'), 40, 'p', at {some}"
        )


def granules(store: Store, sql: str, table: str) -> list[int]:
    """How many granules each read of a table takes after all indexes."""
    plan = "\n".join(row[0] for row in store.rows(f"EXPLAIN indexes = 1 {sql}"))
    reads = re.split(r"(?=ReadFromMergeTree )", plan)[1:]
    return [int(re.findall(r"Granules: (\d+)", read)[0]) for read in reads if f".{table})" in read.splitlines()[0]]


@pytest.mark.parametrize("view", ["v_accounting", "v_residual", "v_failures", "v_funnel"])
def test_question_about_an_hour_reads_the_states_of_that_hour_if_they_changed(empty: Store, view: str) -> None:
    two_days(empty)
    empty.merge()
    day = "tenant = 'a' AND hour = toStartOfHour(now('UTC')) - INTERVAL 30 HOUR"
    (everything,) = granules(empty, "SELECT count() FROM message_states WHERE ignore(message_id) = 0", "message_states")
    assert everything >= 20
    of_hour = granules(empty, f"SELECT * FROM {view} WHERE {day}", "message_states")
    assert of_hour
    assert max(of_hour) <= 3
    sum_up(empty)
    assert sum(granules(empty, f"SELECT * FROM {view}", "message_states")) == 0
    assert_exact(empty)


def test_asking_which_hours_changed_reads_no_states(empty: Store) -> None:
    two_days(empty)
    plan = "\n".join(row[0] for row in empty.rows("EXPLAIN indexes = 1 SELECT * FROM hours_changed"))
    assert plan.count("ReadFromMergeTree (touched)") == 2
    assert ".message_states)" not in plan


ACCOUNTED = """
    SELECT s.* FROM (SELECT tenant, message_id, state, reason, provider, settled_at FROM message_state) AS s
    ORDER BY ALL
"""
FILLED_IN = """
    SELECT message_id, state, attempts, sent_at, preference_version, failed_over_from, last_error, template_id
    FROM v_messages ORDER BY ALL
"""


def test_store_of_an_earlier_version_is_taken_over(store: Store) -> None:
    old_settings = ClickHouseSettings(url=store.settings.url, database="earlier")
    make_earlier_store(old_settings, upto=6)
    facts = many(300, seed=30)
    old = object.__new__(Store)
    old.settings, old.client = old_settings, clickhouse.connect(old_settings)
    insert_as_earlier(old_settings, old.client, facts)
    insert_as_earlier(old_settings, old.client, facts[:200])
    before = old.rows(ACCOUNTED)
    schema.migrate(old_settings)
    assert old.rows(ACCOUNTED) == before
    # What the facts say of the past is filled in: as if they had been stored now.
    store.clear()
    store.insert([*facts, *facts[:200]])
    assert old.rows(FILLED_IN) == store.rows(FILLED_IN)
    assert_exact(old)
    assert sum_up(old) > 20
    assert changed(old) == 0
    old.merge()
    assert changed(old) == 0
    old.insert(facts[:100])
    assert changed(old) > 0
    assert_exact(old)
    sum_up(old)
    assert changed(old) == 0
    assert_exact(old)

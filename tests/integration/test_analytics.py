"""What analytics answer: why, for every reason there is; scorecards with prices; SLOs; and the queries of docs/analytics.md."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from runtime import ids
from runtime.records import ConsumerRecord
from runtime.settings import ClickHouseSettings, ProviderSettings, Settings
from schemas.events import states
from sinks import clickhouse
from sinks.prices import write_prices
from tests.integration.test_clickhouse_schema import (
    HOUR,
    NOW,
    Store,
    notification,
    request,
    status,
)
from tests.support.clickhouse import Server

pytestmark = pytest.mark.clickhouse

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [(state, reason) for state, reasons in states().reasons.items() for reason in reasons]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield Store(server)
    assert server.stop() == 0


@pytest.fixture
def empty(store: Store) -> Store:
    store.clear()
    return store


# ---------------------------------------------------------------- why


def test_list_of_reasons_is_the_closed_list() -> None:
    assert len(PAIRS) >= 24
    assert {reason for _, reason in PAIRS} | states().event_reasons == set(states().words)


@pytest.fixture(scope="module")
def unlucky(store: Store) -> dict[tuple[str, str], str]:
    """A notification for every way not to arrive, of a user of its own."""
    found = {}
    facts: list[ConsumerRecord] = []
    for number, (state, reason) in enumerate(PAIRS):
        nid = notification(60_000 + number)
        found[state, reason] = nid
        facts.append(request(nid, user_id=f"user-{reason}"))
        whole = reason in ("unknown_template", "unknown_recipient", "undecodable", "past_expiry", "dry_run")
        facts.append(status(nid, None if whole else "email", state, reason=reason, attempt=0 if whole else 1))
    store.clear()
    store.insert(facts)
    return found


@pytest.mark.parametrize(("state", "reason"), PAIRS)
def test_each_query_says_why_in_words(
    store: Store, unlucky: dict[tuple[str, str], str], state: str, reason: str
) -> None:
    nid, words = unlucky[state, reason], states().words[reason]
    hour = ids.accepted_at(nid) // HOUR * 3600
    since = {"tenant": "t", "since": NOW - HOUR}
    (one,) = ask(store, "why", tenant="t", hour=hour, id=nid)
    causes = [row for row in ask(store, "why_not_sent", **since) if (row["state"], row["reason"]) == (state, reason)]
    (of_user,) = ask(store, "why_user", **since, user_id=f"user-{reason}", limit=10)
    assert one["state"] == of_user["state"] == state
    assert str(of_user["notification_id"]) == nid
    assert len(causes) == 1
    for answer in (one["why"], causes[0]["example"], of_user["why"]):
        assert words in answer


def ask(store: Store, name: str, **parameters: Any) -> list[dict[str, Any]]:
    return clickhouse.select(store.settings, store.client, name, parameters)


def test_queries_about_why_keep_to_their_tenant(store: Store, unlucky: dict[tuple[str, str], str]) -> None:
    nid = next(iter(unlucky.values()))
    since = {"tenant": "other", "since": NOW - HOUR}
    assert ask(store, "why", tenant="other", hour=ids.accepted_at(nid) // HOUR * 3600, id=nid) == []
    assert ask(store, "why_not_sent", **since) == []
    assert ask(store, "why_user", **since, user_id="user-opted_out", limit=10) == []


# ---------------------------------------------------------------- providers


def provider(name: str, **more: Any) -> ProviderSettings:
    return ProviderSettings(name=name, channel="sms", kind="twilio", **more)


def priced(store: Store, *providers: ProviderSettings, at: int = NOW) -> None:
    settings = Settings(providers=providers, clickhouse=ClickHouseSettings(**store.settings.model_dump()))
    write_prices(settings, store.client, at)


def test_scorecard_has_quantiles_errors_and_costs(empty: Store) -> None:
    priced(empty, provider("sms-1", price_per_message="0.0075", currency="USD"), provider("sms-2"))
    facts = []
    for number in range(100):
        nid = notification(HOUR + number)
        facts.append(request(nid))
        if number < 10:
            facts.append(status(nid, "sms", "retrying", attempt=1, provider="sms-1", reason="throttled", latency_ms=5))
        facts.append(status(nid, "sms", "sent", attempt=2, provider="sms-1", latency_ms=number + 1, after=2_000))
        if number < 50:
            facts.append(status(nid, "sms", "delivered", attempt=2, provider="sms-1", after=9_000))
    bad = notification(HOUR)
    ends: tuple[tuple[str, dict[str, Any]], ...] = (
        ("retrying", {"attempt": 1, "reason": "in_doubt"}),
        ("retrying", {"attempt": 2, "detail": "30500"}),
        ("failed", {"attempt": 3, "reason": "provider_account", "detail": "20003"}),
    )
    for state, more in ends:
        facts.append(status(bad, "sms", state, provider="sms-2", latency_ms=7, **more))
    empty.insert([*facts, *facts])
    columns = "provider, sum(sent), sum(throttled), sumMap(errors), sum(cost), any(currency), max(latency_ms_p50), max(latency_ms_p95)"
    first, second = empty.rows(f"SELECT {columns} FROM v_provider_scorecard GROUP BY provider ORDER BY provider")
    assert first[:2] == ("sms-1", 100)
    assert (first[2], first[3]) == (10, {"throttled": 10})
    assert (first[4], first[5]) == (Decimal("0.75"), "USD")
    assert 40 <= first[6] <= 60
    assert 85 <= first[7] <= 100
    assert second[3] == {"in_doubt": 1, "transient": 1, "account": 1}
    assert second[4] is None


def test_later_start_decides_the_price_and_a_price_can_be_taken_back(empty: Store) -> None:
    def price() -> Any:
        return empty.rows("SELECT price_per_message, currency FROM provider_prices FINAL WHERE provider = 'p'")

    priced(empty, provider("p", price_per_message="1.5", currency="EUR"), at=NOW + 1)
    priced(empty, provider("p", price_per_message="9", currency="EUR"), at=NOW)  # an older process, inserted later
    assert price() == [(Decimal("1.5"), "EUR")]
    priced(empty, provider("p"), at=NOW + 2)
    assert price() == [(None, "")]
    priced(empty, at=NOW + 3)
    assert price() == [(None, "")]


@pytest.mark.parametrize(
    "wrong", [{"price_per_message": 1}, {"currency": "EUR"}, {"price_per_message": -1, "currency": "EUR"}]
)
def test_price_and_currency_come_together(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"price_per_message|currency"):
        provider("p", **wrong)


# ---------------------------------------------------------------- service levels


def test_slo_counts_who_was_in_time(empty: Store) -> None:
    facts = []
    for after in (500, 4_000, 20_000, 200_000, None):
        nid = ids.notification_id((NOW // HOUR - 2) * HOUR + 60_000, "t", str(after))
        facts += [request(nid), status(nid, "sms", "routed", after=10)]
        if after is not None:
            facts += [status(nid, "sms", "sent", attempt=1, after=after)]
            facts += [status(nid, "sms", "delivered", attempt=1, after=after + 2_000)]
    unwanted = ids.notification_id((NOW // HOUR - 2) * HOUR + 60_000, "t", "unwanted")
    scheduled = ids.notification_id((NOW // HOUR - 2) * HOUR + 60_000, "t", "scheduled")
    at = ids.accepted_at(scheduled) + 600_000
    facts += [request(unwanted), status(unwanted, "sms", "skipped")]
    facts += [request(scheduled, send_at=at), status(scheduled, "sms", "sent", attempt=1, after=600_900)]
    empty.insert([*facts, *facts])
    columns = "channel, lane, messages, in_flight, sent_1s, sent_5s, sent_30s, sent_5m, delivered_5s, delivered_30s, sent_share_30s"
    assert empty.rows(f"SELECT {columns} FROM v_slo") == [("sms", "normal", 6, 1, 2, 3, 4, 5, 1, 3, round(4 / 6, 4))]

"""Reports of all vendors in ClickHouse: shuffled, tripled, a third before our own facts; states, engagement and the funnel as a model's."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from runtime.records import ConsumerRecord, ProducerRecord
from runtime.status import message_status, status_record
from schemas.codec import codec
from schemas.events import ChannelMessage
from schemas.topics import requests_topic
from tests.integration.test_clickhouse_schema import Store
from tests.support.clickhouse import Server
from tests.support.made import made
from tests.support.receipt_day import ACCOUNTS, certificate_of_sns, deliver, report_day
from tests.support.receipts import Desk
from vendors.ses import reports as ses_reports

MESSAGES = 3_000


def as_read(record: ProducerRecord) -> ConsumerRecord:
    return ConsumerRecord(record.topic, 0, 0, 0, record.key, record.value)


def our_facts(kind: str, sent: ChannelMessage, theirs: str) -> list[ConsumerRecord]:
    """The request, and what we did with it."""
    ids_ = {name: sent[name] for name in ("notification_id", "tenant", "accepted_at")}
    request = codec("NotificationRequest").encode(made("NotificationRequest", **ids_))
    at = sent["accepted_at"] + 100
    statuses = [
        message_status(sent, "routed", now=at, attempt=0),
        message_status(sent, "sent", now=at + 20, attempt=1, provider=kind, provider_message_id=theirs, latency_ms=20),
    ]
    return [
        ConsumerRecord(requests_topic("normal"), 0, 0, 0, b"t:u", request),
        *(as_read(status_record(status)) for status in statuses),
    ]


@pytest.mark.clickhouse
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_reports_of_all_vendors_are_counted_as_the_model_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ses_reports, "fetch", certificate_of_sns)
    rng = random.Random(16)
    day = report_day(rng, MESSAGES)
    desk = Desk(ACCOUNTS, references=day.references, remembered=100)
    await deliver(day, desk, rng, away=0.02)
    reports = [as_read(record) for record in desk.broker.records]
    rng.shuffle(reports)
    early, late = reports[: len(reports) // 3], reports[len(reports) // 3 :]
    ours = [fact for kind, sent, theirs in day.messages for fact in our_facts(kind, sent, theirs)]
    rest = [*ours, *late, *rng.choices(reports, k=len(reports) // 2)]
    rng.shuffle(rest)
    server = Server(tmp_path / "data").start()
    try:
        store = Store(server, "receipts")
        store.insert(early)
        for start in range(0, len(rest), 5_000):
            store.insert(rest[start : start + 5_000])
        for merged in (False, True):
            if merged:
                store.merge()
            found = dict(store.rows("SELECT state, count() FROM message_state GROUP BY state"))
            assert {state: int(n) for state, n in found.items()} == Counter(state for state, _ in day.wanted.values())
            funnel = store.rows("SELECT sum(opened), sum(clicked), sum(complained), sum(unsubscribed) FROM v_funnel")
            words = ("opened", "clicked", "complained", "unsubscribed")
            engaged = Counter(word for _, engagement in day.wanted.values() for word in engagement)
            assert [tuple(map(int, row)) for row in funnel] == [tuple(engaged[word] for word in words)]
            ((accepted_, in_flight, residual),) = store.rows(
                "SELECT sum(accepted), sum(in_flight), sum(residual) FROM v_accounting"
            )
            assert (accepted_, in_flight, residual) == (MESSAGES, 0, 0)
            # A vendor that says "processed" was asked once all the same.
            for view in ("v_provider_scorecard", "v_minutes"):
                asked = store.rows(f"SELECT sum(attempts), sum(sent) FROM {view} WHERE provider != ''")
                assert [tuple(map(int, row)) for row in asked] == [(MESSAGES, MESSAGES)], view
    finally:
        assert server.stop() == 0

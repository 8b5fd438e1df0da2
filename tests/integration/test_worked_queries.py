"""The questions of docs/analytics.md, asked of a made-up shop: the page prints what is answered, and what is answered is what the shop's
own list says."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from runtime.clock import system_clock
from runtime.settings import ClickHouseSettings, ProviderSettings, Settings
from sinks.prices import write_prices
from tests.integration.test_clickhouse_schema import Store
from tests.support import worked_queries
from tests.support.clickhouse import Server
from tests.support.history import HOUR, NOW, PRICES, START, History, Message
from tests.support.worked_queries import Question, printed, questions

pytestmark = pytest.mark.clickhouse
QUESTIONS = questions()
Answer = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def history() -> History:
    made = History()
    made.give_up_three(system_clock())
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, history: History) -> Iterator[Store]:
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    stored = Store(server)
    stored.insert(history.records)
    stored.insert(history.records[::3])  # at least once
    accounts = tuple(
        ProviderSettings(
            name=name,
            channel="sms" if name == "sms-1" else "email",
            kind="twilio" if name == "sms-1" else "smtp",
            price_per_message=Decimal(price),
            currency="EUR",
        )
        for name, price in PRICES.items()
    )
    settings = Settings(providers=accounts, clickhouse=ClickHouseSettings(**stored.settings.model_dump()))
    write_prices(settings, stored.client, NOW)
    yield stored
    assert server.stop() == 0


def ask(store: Store, sql: str) -> tuple[list[str], Answer]:
    result = store.client.query(sql.replace("now()", f"fromUnixTimestamp64Milli({NOW}, 'UTC')"))
    return list(result.column_names), [tuple(row) for row in result.result_rows]


def test_there_are_twenty_five_and_each_skips_other_times() -> None:
    assert [question.number for question in QUESTIONS] == list(range(1, 26))
    for question in QUESTIONS:
        assert "hour > now()" not in question.sql


def test_the_page_prints_what_is_answered(store: Store) -> None:
    answers = {question.number: printed(*ask(store, question.sql)) for question in QUESTIONS}
    if os.environ.get("HELIOGRAPH_WRITE_ANSWERS"):
        worked_queries.write(answers)
    for question in questions():
        assert question.answer == answers[question.number], question.title
        assert question.answer.count("\n") > 1, question.title


def test_other_statements_of_the_page_run(store: Store, history: History) -> None:
    statements = worked_queries.other_statements()
    assert len(statements) >= 3
    for sql in statements:
        assert ask(store, sql.replace("0197…", history.messages[0].notification_id))[0], sql


# ---------------------------------------------------------------- the same from the shop's own list


def day(at: int, zone: str = "UTC") -> Any:
    return datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).date()


def hour(at: int) -> datetime:
    return datetime.fromtimestamp(at // HOUR * 3600, UTC).replace(tzinfo=None)


def group(messages: list[Message], key: Callable[[Message], Any]) -> dict[Any, list[Message]]:
    found: dict[Any, list[Message]] = defaultdict(list)
    for message in messages:
        found[key(message)].append(message)
    return dict(sorted(found.items()))


def q1(of: History) -> Answer:
    sms = [m for m in of.messages if m.channel == "sms" and m.sent_at]
    return [
        (
            template,
            locale,
            len(ms),
            sum(m.delivered_at is not None for m in ms),
            round(sum(m.delivered_at is not None for m in ms) / len(ms), 3),
        )
        for (template, locale), ms in group(sms, lambda m: (m.template, m.locale)).items()
    ]


def q2(of: History) -> Answer:
    rows: Answer = []
    for domain, ms in group([m for m in of.messages if m.channel == "email"], lambda m: m.domain).items():
        bounced = sum(m.state == "bounced" for m in ms)
        tried = sum(m.sent_at is not None for m in ms) + bounced
        rows.append((domain, tried, bounced, round(bounced / tried, 3)))
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def q4(of: History) -> Answer:
    sent = Counter((m.user, day(m.sent_at)) for m in of.messages if m.sent_at and m.sent_at >= START + 15 * HOUR)
    rows = [(user, on, count) for (user, on), count in sent.items() if count > 6]
    return sorted(rows, key=lambda row: (-row[2], row[0]))[:5]


def q5(of: History) -> Answer:
    mails = [
        m
        for m in of.messages
        if m.category == "orders" and m.channel == "email" and not m.sent_at and m.state != "routed"
    ]
    rows = [
        (*key, len(ms), len({m.user for m in ms})) for key, ms in group(mails, lambda m: (m.state, m.reason)).items()
    ]
    return sorted(rows, key=lambda row: -row[2])


def q6(of: History) -> Answer:
    rows: Answer = []
    tags = {tag for m in of.messages for tag in m.tags}
    for tag in tags:
        ms = [m for m in of.messages if tag in m.tags and m.sent_at and m.provider in PRICES]
        rows.append((tag, "EUR", len(ms), sum((Decimal(PRICES[m.provider]) for m in ms), Decimal(0))))
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def q7(of: History) -> Answer:
    over = [m for m in of.messages if m.failed_over_from]
    rows: Answer = []
    for key, ms in group(over, lambda m: (m.failed_over_from, m.provider, m.state)).items():
        times = [m.sent_at - m.due_at for m in ms if m.sent_at is not None]
        rows.append((*key, len(ms), round(sum(times) / len(times)) if times else None))
    return sorted(rows, key=lambda row: (-row[3], row[2]))


def q8(of: History) -> Answer:
    rows: Answer = []
    accounts = sorted(
        {account for m in of.messages for _, account, _ in m.codes} | {m.provider for m in of.messages if m.provider}
    )
    for account in accounts:
        errors = [(m, code) for m in of.messages for _, name, code in m.codes if name == account and code != "30003"]
        sent = sum(m.sent_at is not None and m.provider == account for m in of.messages)
        doubts = [m for m in of.messages if m.flagged and any(name == account for _, name, _ in m.codes)]
        price = Decimal(PRICES.get(account, "0"))
        reported = account == "sms-1"
        extra = sum(len(m.vendor_ids) - 1 for m in doubts)
        rows.append(
            (
                account,
                len(errors) + sent,
                sum(code == "timeout" for _, code in errors),
                len(doubts),
                sum(len(m.vendor_ids) > 1 for m in doubts) if reported else None,
                sent * price if account in PRICES else None,
                (sent + extra) * price if reported else None,
            )
        )
    return rows


def q10(of: History) -> Answer:
    rows: Answer = []
    for (category, channel), ms in group(of.messages, lambda m: (m.category, m.channel)).items():
        kept = sum(m.reason == "opted_out" for m in ms)
        rows.append((category, channel, len(ms), kept, round(kept / len(ms), 3), len(of.opt_outs)))
    return sorted(rows, key=lambda row: (-row[4], row[0], row[1]))


def q11(of: History) -> Answer:
    mine = [m for m in of.messages if m.template == "order-shipped"]
    return [
        (
            version,
            len(ms),
            sum(m.sent_at is not None for m in ms),
            sum(m.state == "bounced" for m in ms),
            len(ms) if version == 1 else 0,
        )
        for version, ms in group(mine, lambda m: m.version).items()
    ]


def q13(of: History) -> Answer:
    codes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for m in of.messages:
        for at, account, code in m.codes:
            codes[account, code].append(at)
    rows: Answer = [
        (*key, len(ats), datetime.fromtimestamp(max(ats) / 1000, UTC).replace(tzinfo=None))
        for key, ats in codes.items()
    ]
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def q14(of: History) -> Answer:
    sent = Counter(("shop", day(m.sent_at, "Europe/Berlin"), m.channel) for m in of.messages if m.sent_at)
    return [(*key, count) for key, count in sorted(sent.items())]


def q15(of: History) -> Answer:
    rows: Answer = []
    refused = {nid for nid, *_ in of.alone}
    for template, count in Counter(template for _, template, _ in of.requests).items():
        alone = sum(t == template and nid in refused for nid, t, _ in of.requests)
        rows.append((template, "", count, alone, 0, 0, 0, None, alone, 0, 0))
    for (template, channel), ms in group(of.messages, lambda m: (m.template, m.channel)).items():
        failed = sum(m.state in ("bounced", "undelivered") for m in ms)
        delivered = sum(m.delivered_at is not None for m in ms) if channel == "sms" else None
        skipped = sum(m.state == "skipped" for m in ms)
        waiting = sum(m.state == "routed" for m in ms)
        sent = sum(m.sent_at is not None for m in ms)
        rows.append((template, channel, 0, 0, len(ms), len(ms) - skipped, sent, delivered, failed, skipped, waiting))
    return sorted(rows, key=lambda row: row[:2])


def q16(of: History) -> Answer:
    rows: Answer = []
    for channel, ms in group([m for m in of.messages if m.state != "skipped"], lambda m: m.channel).items():
        in_time = sum(m.sent_at is not None and m.sent_at - m.due_at <= 5_000 for m in ms)
        rows.append((channel, len(ms), in_time, round(in_time / len(ms), 4), round((1 - in_time / len(ms)) / 0.01, 1)))
    return rows


def q18(of: History) -> Answer:
    done = [m for m in of.messages if m.state not in ("routed", "skipped")]
    return [(*key, len(ms)) for key, ms in group(done, lambda m: (m.channel, m.attempts)).items()]


def q20(of: History) -> Answer:
    today = [m for m in of.messages if m.accepted_at >= START + 15 * HOUR]
    hours = {
        channel: Counter(hour(m.accepted_at).hour for m in ms)
        for channel, ms in group(today, lambda m: m.channel).items()
    }
    return [(channel, found[10], found[11]) for channel, found in hours.items()]


def q23(of: History) -> Answer:
    each = Counter(m.notification_id for m in of.messages)
    return sorted(Counter(each[nid] for nid, *_ in of.requests).items())


def q25(of: History) -> Answer:
    rows: Answer = []
    for channel, ms in group([m for m in of.messages if m.due_at != m.accepted_at], lambda m: m.channel).items():
        late = sorted(m.sent_at - m.due_at for m in ms if m.sent_at is not None)
        rows.append((channel, len(ms), len(late), late[len(late) // 2], late[-1]))
    return rows


OWN = {
    1: q1,
    2: q2,
    4: q4,
    5: q5,
    6: q6,
    7: q7,
    8: q8,
    10: q10,
    11: q11,
    13: q13,
    14: q14,
    15: q15,
    16: q16,
    18: q18,
    20: q20,
    23: q23,
    25: q25,
}


@pytest.mark.parametrize("number", sorted(OWN))
def test_answer_is_what_the_shops_own_list_says(store: Store, history: History, number: int) -> None:
    question: Question = QUESTIONS[number - 1]
    (_, answer), own = ask(store, question.sql), OWN[number](history)
    assert [tuple(map(plain, row)) for row in answer] == [tuple(map(plain, row)) for row in own]


def plain(cell: Any) -> Any:
    """A number without its type, a time to the second: what tells two answers apart."""
    if isinstance(cell, datetime):
        return cell.replace(microsecond=0)
    if isinstance(cell, Decimal | float):
        return round(float(cell), 6)
    return int(cell) if isinstance(cell, bool) else cell


def test_list_has_what_the_questions_are_about(history: History) -> None:
    states = Counter(m.state for m in history.messages)
    assert states.keys() >= {"sent", "delivered", "undelivered", "bounced", "skipped", "routed"}
    assert sum(m.flagged for m in history.messages) > sum(len(m.vendor_ids) > 1 for m in history.messages) > 0
    assert any(m.failed_over_from for m in history.messages)

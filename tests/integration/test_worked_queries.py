"""The questions of docs/analytics.md, asked of a made-up shop: the page prints what is answered, and what is answered is what the shop's
own list says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import pytest

from runtime.clock import system_clock
from runtime.settings import ClickHouseSettings, ProviderSettings, Settings
from sinks.prices import write_prices
from tests.integration.test_clickhouse_schema import Store
from tests.support import worked_queries
from tests.support.clickhouse import Server
from tests.support.diary import ANSWERS, Answer, comparable
from tests.support.history import NOW, PRICES, History
from tests.support.worked_queries import printed, questions, without_limit

pytestmark = pytest.mark.clickhouse
QUESTIONS = questions()


@pytest.fixture(scope="module")
def history() -> History:
    made = History(system_clock())
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
        assert ask(store, sql.replace("0197…", history.diary.messages[0].notification_id))[0], sql


# ---------------------------------------------------------------- the same from the shop's own list


@pytest.mark.parametrize("number", sorted(ANSWERS))
def test_answer_is_what_the_shops_own_list_says(store: Store, history: History, number: int) -> None:
    _, answer = ask(store, without_limit(QUESTIONS[number - 1].sql))
    assert comparable(answer) == comparable(ANSWERS[number](history.diary))


def test_every_question_has_an_answer_of_its_own() -> None:
    assert list(ANSWERS) == [question.number for question in QUESTIONS]


def test_list_has_what_the_questions_are_about(history: History) -> None:
    messages = history.diary.messages
    states = Counter(m.state for m in messages)
    assert states.keys() >= {"sent", "delivered", "undelivered", "bounced", "skipped", "routed"}
    assert sum(m.flagged for m in messages) > sum(len(m.vendor_ids) > 1 for m in messages) > 0
    assert any(m.failed_over_from for m in messages)

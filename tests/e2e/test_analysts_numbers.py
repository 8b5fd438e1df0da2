"""What an analyst reads of a campaign with faults (tests/e2e/campaign.py): each worked query of docs/analytics.md is answered twice, by SQL
on the public views and from the campaign's diary, and the diary is held against the vendors' own logs. Equal to the row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest

from tests.e2e.campaign import KINDS, TEMPLATES, Campaign, campaign
from tests.support.diary import ANSWERS, Message, comparable, in_hour, on_day
from tests.support.worked_queries import questions, without_limit

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse, pytest.mark.timeout(1_200)]
QUESTIONS = {question.number: question for question in questions()}
ACCOUNTS = {"mail-1": "email", "mail-2": "email", "sms-1": "sms", "simulator-fcm": "push"}


@pytest.fixture(
    scope="module",
    params=[300, pytest.param(5_000, marks=pytest.mark.slow)],
)
def of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with campaign(tmp_path_factory.mktemp("campaign"), request.param) as made:
        yield made


def of_this_campaign(sql: str, of: Campaign) -> str:
    """A question of the page, of this tenant, day and hour in place of the shop's."""
    today: date = on_day(of.diary.day)
    ours = {
        "'shop'": f"'{of.diary.tenant}'",
        "'2026-03-03'": f"'{today}'",
        "'2026-03-04'": f"'{today + timedelta(days=1)}'",
        "= 10)": f"= {of.diary.hours[0]})",
        "= 11)": f"= {of.diary.hours[1]})",
    }
    # All at once: one by one, what took another's place would be taken for it (a campaign at eleven).
    return re.sub("|".join(map(re.escape, ours)), lambda theirs: ours[theirs[0]], sql)


# ---------------------------------------------------------------- the diary is what the vendors say


def taken(of: Campaign, account: str) -> Counter[str]:
    """How often the account's vendor took each message."""
    return Counter(str(entry["message_id"]) for entry in of.accepts(account.replace("simulator-fcm", "push-1")))


@pytest.mark.parametrize("account", ACCOUNTS)
def test_who_was_sent_something_is_who_the_vendor_took(of: Campaign, account: str) -> None:
    # The answer of a request in doubt is lost: the vendor may have taken it, and another account may have sent it again.
    own = [m for m in of.diary.messages if m.channel == ACCOUNTS[account]]
    sent = {m.message_id for m in own if any(f.provider == account and f.state == "sent" for f in m.facts)}
    doubted = {m.message_id for m in own if any(f.provider == account and f.doubtful for f in m.facts)}
    found = taken(of, account)
    assert found, "an account that took nothing shows nothing"
    assert sent <= found.keys() <= sent | doubted
    twice = {message_id for message_id, count in found.items() if count > 1}
    assert twice <= {m.message_id for m in own if m.flagged}


def test_requests_are_those_that_the_vendors_saw(of: Campaign) -> None:
    for channel in KINDS:
        facts = [fact for fact in of.diary.facts if fact.channel == channel and fact.asked]
        doubts = sum(fact.doubtful for fact in facts)
        # A request in doubt is one that may or may not have come to the vendor.
        assert 0 <= len(facts) - of.asked_of(channel) <= doubts, channel


def test_errors_are_the_faults_that_were_played(of: Campaign) -> None:
    played = of.applied()
    found = Counter((fact.provider, fact.code) for fact in of.diary.facts if fact.code and not fact.doubtful)
    assert found["mail-1", "550 5.1.1"] == played["mail-1", "reject"] > 0
    assert found["mail-2", "550 5.1.1"] == played["mail-2", "reject"]
    assert found["mail-1", "451 4.7.1"] == played["mail-1", "429"] > 0
    over = [m for m in of.diary.messages if m.failed_over_from]
    assert over and all(m.user in of.full and m.provider == "mail-2" for m in over)


def test_the_list_has_what_the_questions_are_about(of: Campaign) -> None:
    messages = of.diary.messages
    states = Counter(m.state for m in messages)
    assert states.keys() >= {"sent", "delivered", "undelivered", "bounced", "suppressed", "skipped", "routed"}
    assert any(len(set(m.vendor_ids)) > 1 for m in messages), "an SMS that was taken twice"
    assert Counter(r.state for r in of.diary.alone()).keys() == {"rejected", "scheduled"}
    assert len(of.diary.refused) >= 3


def test_fates_are_those_of_the_list(of: Campaign) -> None:
    for m in of.diary.messages:
        by_category = m.category == "marketing" and m.user in of.out_of_category
        by_channel = m.channel == "sms" and m.user in of.out_of_sms
        # Of one who opted out, an address that is suppressed by then is the first reason.
        assert (m.reason == "opted_out") == ((by_category or by_channel) and m.state != "suppressed"), m
        if m.state in ("bounced", "suppressed"):
            assert m.user in of.bouncing, m
        if any(fact.state == "routed" for fact in m.facts):
            assert m.version == (m.requested_version or 2), m
            assert m.locale == (of.locale(m.user) if m.channel == "email" else ""), m
            assert m.domain == (of.domain(m.user) if m.channel == "email" else ""), m
        if m.channel == "sms" and m.reason != "opted_out":
            assert m.state == ("undelivered" if m.user in of.unreached else "delivered"), m


# ---------------------------------------------------------------- the answers


@pytest.mark.parametrize("number", sorted(ANSWERS))
def test_answer_is_the_diarys(of: Campaign, number: int) -> None:
    answer = of.running.query(of_this_campaign(without_limit(QUESTIONS[number].sql), of))
    assert answer, "a question that nothing answers shows nothing"
    assert comparable(answer) == comparable(ANSWERS[number](of.diary))


def test_every_message_is_what_the_diary_says_in_every_column(of: Campaign) -> None:
    def own(m: Message) -> tuple[Any, ...]:
        return (
            *(m.message_id, m.notification_id, m.channel, m.user, m.template, m.version, m.requested_version),
            *(m.category, m.locale, m.domain, m.state, m.reason, m.provider, m.failed_over_from, m.attempts),
            *(m.flagged, m.settled, m.sent_at is not None, sorted(m.tags), in_hour(m.accepted_at)),
        )

    sql = """
        SELECT toString(message_id), toString(notification_id), channel, recipient, template_id, template_version,
            requested_template_version, category, locale, domain, state, reason, provider, failed_over_from, attempts,
            possible_duplicate, settled, was_sent, arraySort(tags), hour
        FROM v_messages"""
    assert comparable(of.running.query(sql)) == comparable(map(own, of.diary.messages))


def test_categories_are_the_templates_and_the_named_ones_stay(of: Campaign) -> None:
    found = of.running.query("SELECT template_id, category, requested_category, count() FROM requests GROUP BY 1, 2, 3")
    with_messages = {m.notification_id for m in of.diary.messages}
    own = Counter(
        (r.template, TEMPLATES[r.template][0] if r.notification_id in with_messages else "default", "default")
        for r in of.diary.requests
    )
    assert {row[:3]: row[3] for row in found} == own


def test_all_is_accounted_for(of: Campaign) -> None:
    (row,) = of.running.query("SELECT sum(accepted), sum(in_flight), sum(residual) FROM v_accounting")
    waiting = {m.notification_id for m in of.diary.messages if not m.settled}
    later = sum(request.state == "scheduled" for request in of.diary.alone())
    assert row == (len(of.diary.requests), len(waiting) + later, 0)


def test_what_nobody_measures_is_null(of: Campaign) -> None:
    unmeasured = "SELECT countIf(was_delivered IS NOT NULL), countIf(was_opened IS NOT NULL) FROM v_messages WHERE channel != 'sms'"
    assert of.running.query(unmeasured) == [(0, 0)]
    assert of.running.query("SELECT sum(delivered) FROM v_funnel WHERE channel = 'push'") == [(None,)]

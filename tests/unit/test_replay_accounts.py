"""What another account would be to messages: reach, price, and that nothing is made or summed up wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from console.commands.replay import replay
from console.commands.replay_screen import show_what_if
from replay import whatif
from replay.accounts import MAX_SHOWN, AccountMatch, AccountReport, Rendered
from replay.choose import Selection
from replay.plan import StoredMessage
from replay.store import ReplayStore
from replay.template import TemplateVersion
from replay.times import UsageError
from replay.where import Condition
from runtime import ids
from runtime.errors import SettingsError
from runtime.records import ConsumerRecord
from runtime.settings import BreakerSettings, ProviderSettings, Settings
from schemas.codec import codec
from schemas.topics import dispatch_topic, requests_topic
from senders.accounts import Account, Accounts
from tests.support.made import message
from vendors.registry import platforms_of

NOW = 1_790_000_000_000
NID = ids.notification_id(NOW - 60_000, "t", "k")


def provider(name: str, channel: str, kind: str, price: str | None = None, currency: str = "EUR") -> ProviderSettings:
    priced = {} if price is None else {"price_per_message": price, "currency": currency}
    return ProviderSettings.model_validate({"name": name, "channel": channel, "kind": kind, **priced})


PROVIDERS = (
    provider("mail", "email", "smtp"),
    provider("sms-1", "sms", "twilio", "0.0075", "USD"),
    provider("sms-2", "sms", "twilio", "0.006"),
    provider("google", "push", "fcm", "0"),
    provider("google-2", "push", "fcm"),
    provider("apple", "push", "apns"),
)


def rendered(number: int, channel: str = "sms", platform: str | None = None) -> Rendered:
    return Rendered(NID, ids.message_id(NID, channel, str(number)), channel, platform)


def stored(of: Rendered, account: str = "", state: str = "sent", **fields: Any) -> StoredMessage:
    return StoredMessage(NID, of.message_id, of.channel, state, provider=account, **fields)


def verdicts(report: AccountReport) -> list[tuple[AccountMatch, str]]:
    return [(line.verdict, line.why) for line in report.lines]


def asked(name: str, given: Iterable[tuple[Rendered, str]]) -> AccountReport:
    report = AccountReport(PROVIDERS, name)
    pairs = list(given)
    report.add([one for one, _ in pairs], [stored(one, account) for one, account in pairs], filtered=False)
    return report


def test_an_unknown_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(
        UsageError, match=r"no account 'sms-3'; there are: mail \(email\), sms-1 \(sms\), sms-2 \(sms\)"
    ):
        AccountReport(PROVIDERS, "sms-3")
    with pytest.raises(UsageError, match="none in these settings"):
        AccountReport((), "sms-1")
    with pytest.raises(SettingsError, match="there is no pigeon for sms"):
        AccountReport([provider("p", "sms", "pigeon")], "p")


def test_an_account_takes_messages_of_its_channel_only() -> None:
    report = asked(
        "sms-2", [(rendered(1), "sms-1"), (rendered(2), "sms-2"), (rendered(3, "email"), "mail"), (rendered(4), "")]
    )
    assert verdicts(report) == [
        (AccountMatch.TAKEN, ""),
        (AccountMatch.SAME_ACCOUNT, ""),
        (AccountMatch.NOT_REACHABLE, "another channel"),
        (AccountMatch.TAKEN, ""),
    ]
    assert [line.before for line in report.lines] == ["sms-1", "sms-2", "mail", None]
    assert report.counts() == {"taken": 2, "same_account": 1, "not_reachable": 1, "unknown": 0, "not_rendered": 0}


@pytest.mark.parametrize("name", ["google", "google-2", "apple"])
@pytest.mark.parametrize("platform", ["fcm", "apns", "other", None])
def test_a_push_account_takes_what_the_senders_would_give_it(name: str, platform: str | None) -> None:
    class OneOf:
        """Only what Accounts looks at; the classes' own sets."""

        channel, max_in_flight, rate_per_second, repeatable_s, reconcile_after_s = "push", 1, None, 0.0, None

        def __init__(self, given: ProviderSettings) -> None:
            self.name, self.platforms = given.name, platforms_of(given)

    pushing = [given for given in PROVIDERS if given.channel == "push"]
    accounts = Accounts([Account(cast(Any, OneOf(given)), BreakerSettings()) for given in pushing])
    reached = [pushing[i].name for i in accounts.accounts_for(message(channel="push", platform=platform))]
    [(match, _)] = verdicts(asked(name, [(rendered(1, "push", platform), "")]))
    assert (match is AccountMatch.TAKEN) == (name in reached)


def test_what_a_kind_serves_is_known_without_its_keys() -> None:
    served = {given.name: platforms_of(given) for given in PROVIDERS}
    assert served == {
        "mail": None,
        "sms-1": None,
        "sms-2": None,
        "google": {"fcm"},
        "google-2": {"fcm"},
        "apple": {"apns"},
    }


@pytest.mark.parametrize(
    ("before", "name", "expected"),
    [
        ("google", "google-2", AccountMatch.TAKEN),
        ("google", "google", AccountMatch.SAME_ACCOUNT),
        ("google", "apple", AccountMatch.NOT_REACHABLE),
        ("gone", "apple", AccountMatch.UNKNOWN),
        ("gone", "sms-1", AccountMatch.NOT_REACHABLE),
    ],
)
def test_a_device_that_is_in_no_profile_any_more_is_judged_by_the_account_it_had(
    before: str, name: str, expected: AccountMatch
) -> None:
    report = AccountReport(PROVIDERS, name)
    report.add([], [stored(rendered(1, "push"), before)], filtered=False)
    assert [line.verdict for line in report.lines] == [expected]


def test_what_no_account_had_or_would_have_is_not_counted() -> None:
    report = AccountReport(PROVIDERS, "sms-2")
    one, two, three = rendered(1), rendered(2), rendered(3)
    # Suppressed then, though a rendering does not ask; skipped then and not rendered now; unknown to ClickHouse.
    report.add([one, three], [stored(one, state="suppressed"), stored(two, state="skipped")], filtered=False)
    assert [line.message_id for line in report.lines] == [three.message_id]
    assert report.decided_against == 1
    report.add([one], [StoredMessage(NID, None, "", "cancelled")], filtered=False)
    assert report.decided_against == 2


def test_a_condition_chooses_messages_not_only_notifications() -> None:
    report = AccountReport(PROVIDERS, "sms-2")
    one, two, three = rendered(1), rendered(2), rendered(3)
    report.add([one, two, three], [stored(one, "sms-1"), stored(two, "sms-1", selected=False)], filtered=True)
    assert [line.message_id for line in report.lines] == [one.message_id]
    report.add([three], [StoredMessage(NID, None, "", "rejected")], filtered=True)
    assert len(report.lines) == 2


def test_with_another_version_what_it_cannot_render_is_no_accounts_and_what_it_mends_is() -> None:
    report = AccountReport(PROVIDERS, "sms-2")
    fails, mended = rendered(1), rendered(2)
    known = [stored(fails, "sms-1"), stored(mended, state="rejected")]
    report.add([fails], known, filtered=False, would=[mended])
    assert [(line.message_id, line.verdict) for line in report.lines] == [
        (fails.message_id, AccountMatch.NOT_RENDERED),
        (mended.message_id, AccountMatch.TAKEN),
    ]


def test_costs_are_of_the_same_messages_and_no_two_currencies_meet() -> None:
    providers = (*PROVIDERS, provider("sms-3", "sms", "twilio", "0.008"), provider("sms-4", "sms", "twilio"))
    report = AccountReport(providers, "sms-2")
    given = [(rendered(n), name) for n, name in enumerate(["sms-1", "sms-1", "sms-2", "sms-3", "sms-4", "gone", ""])]
    # The mail is not reachable: its price is in neither sum.
    given.append((rendered(9, "email"), "mail"))
    report.add([one for one, _ in given], [stored(one, name) for one, name in given], filtered=False)
    reported = report.as_object()
    assert reported["cost_before"] == {
        "by_currency": {"EUR": {"amount": "0.014", "messages": 2}, "USD": {"amount": "0.0150", "messages": 2}},
        "unknown_price": 3,
    }
    assert reported["cost_after"] == {"by_currency": {"EUR": {"amount": "0.042", "messages": 7}}, "unknown_price": 0}
    assert reported["messages"][0] == {
        "notification_id": NID,
        "message_id": given[0][0].message_id,
        "channel": "sms",
        "platform": None,
        "state": "sent",
        "before": "sms-1",
        "verdict": "taken",
        "why": "",
        "price_before": "0.0075",
        "currency_before": "USD",
        "price_after": "0.006",
        "currency_after": "EUR",
    }
    assert (reported["messages"][-1]["price_after"], reported["messages"][-2]["price_before"]) == (None, None)
    json.dumps(reported)
    free = asked("google", [(rendered(1, "push", "fcm"), "google-2")]).as_object()
    assert free["cost_after"]["by_currency"] == {"EUR": {"amount": "0", "messages": 1}}
    assert free["cost_before"] == {"by_currency": {}, "unknown_price": 1}


def test_the_screen_shows_some_those_taken_first_and_says_that_the_text_stays() -> None:
    mails = [(rendered(n, "email"), "mail") for n in range(MAX_SHOWN + 5)]
    lines = list(asked("sms-2", [*mails, (rendered(1), "sms-1"), (rendered(2), "sms-2")]).text())
    assert lines[0] == f"{NID} sms: sms-1 -> sms-2 (0.0075 USD -> 0.006 EUR)"
    assert lines[1] == f"{NID} sms: sms-2, the same account (0.006 EUR)"
    assert lines[2] == f"{NID} email: mail, not reachable (another channel)"
    assert lines[MAX_SHOWN] == "... and 7 more; --json shows them all"
    assert lines[MAX_SHOWN + 1 :] == [
        "With account sms-2: 1 taken, 1 went through it already, 25 not reachable (another channel: 25).",
        "Cost of those it takes or had, at the prices of the settings: before 0.006 EUR (1 messages), 0.0075 USD (1 messages); "
        "after 0.012 EUR (2 messages).",
        "What a message says does not depend on the account.",
    ]


# -- the whole, on a topic of messages ----------------------------------------------------------------------------------


class Store:
    """ClickHouse's answer; asked once."""

    def __init__(self, stored_messages: list[StoredMessage]) -> None:
        self._subjects = stored_messages

    def stored_messages(
        self, _hour: int, tenants: set[str], nids: set[str], _condition: Condition
    ) -> dict[str, list[StoredMessage]]:
        assert tenants == {"t"}
        assert nids == {NID}
        return {NID: self._subjects}


def selection(topic: str) -> Selection:
    return Selection(topic, NOW - 1, NOW, Condition(), tenant="t")


def test_a_dispatch_topic_is_compared_by_message_without_rendering(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = dispatch_topic("sms", "normal")
    made = [message(notification_id=NID, message_id=rendered(n).message_id, channel="sms") for n in (1, 1, 2)]
    made.append(message(notification_id=NID, message_id=rendered(3).message_id, channel="sms", tenant="other"))
    values = [b"no message", *(codec("ChannelMessage").encode(one) for one in made)]

    def scan(*_: Any) -> Iterator[ConsumerRecord]:
        yield from (ConsumerRecord(topic, 0, offset, NOW, b"k", value) for offset, value in enumerate(values))

    monkeypatch.setattr(whatif, "scan", scan)
    known = [stored(rendered(1), "sms-1"), stored(rendered(2), "sms-2"), stored(rendered(9, "email"), "mail")]
    store = cast(ReplayStore, Store(known))
    settings = Settings(providers=PROVIDERS)
    report = whatif.what_if(settings, store, selection(topic), NOW, lambda *_: None, provider="sms-2")
    show_what_if(report, as_json=True)
    reported = json.loads(capsys.readouterr().out)
    assert list(reported) == ["provider"]
    assert [(line["before"], line["verdict"]) for line in reported["provider"]["messages"]] == [
        ("sms-1", "taken"),
        ("sms-2", "same_account"),
    ]
    show_what_if(report, as_json=False)
    assert capsys.readouterr().out.endswith("Nothing was published.\n")
    of_template = replace(selection(topic), template=TemplateVersion("hello", 1))
    with pytest.raises(UsageError, match="give a requests topic"):
        whatif.what_if(settings, store, of_template, NOW, lambda *_: None, provider="sms-2")


def test_a_wrong_name_is_told_before_anything_is_read() -> None:
    nowhere = cast(ReplayStore, None)
    with pytest.raises(UsageError, match="no account 'x'"):
        whatif.what_if(Settings(), nowhere, selection(requests_topic("normal")), NOW, lambda *_: None, provider="x")


@pytest.mark.parametrize("options", [{"what_if": True}, {"provider": "sms-1"}])
def test_what_if_needs_something_else_and_nothing_else_needs_it(options: dict[str, Any]) -> None:
    class Context:
        invoked_subcommand = None

    with pytest.raises(UsageError, match="belongs with"):
        replay(cast(Any, Context()), topic=requests_topic("normal"), since="-1h", **options)

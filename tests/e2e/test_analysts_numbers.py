"""What an analyst reads of a campaign with faults, against the vendors' own log and a list of what was asked: equal to the row."""

from __future__ import annotations

import json
import random
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from runtime.ids import accepted_at
from tests.e2e.conftest import Stack
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]

KINDS = {"email": "smtp", "sms": "twilio", "push": "fcm"}
FAULTS = (
    {"kind": "smtp", "mode": "reject", "rate": 1.0, "match": "bounces"},
    {"kind": "smtp", "mode": "429", "rate": 0.1},
    {"kind": "smtp", "mode": "drop_after_accept", "rate": 0.08},
    {"kind": "twilio", "mode": "500", "rate": 0.1},
    {"kind": "twilio", "mode": "500_after_accept", "rate": 0.12},
    {"kind": "fcm", "mode": "500", "rate": 0.1},
)
USERS = 40


@dataclass(slots=True)
class Asked:
    """One request of ours, and what is to become of its channels."""

    notification_id: str
    user: str
    template: str
    version: int | None
    locale: str
    tag: str
    channels: tuple[str, ...]


class Campaign:
    """Users, templates and requests, and a list of them."""

    def __init__(self, running: Stack, size: int) -> None:
        self.running, self.run = running, uuid.uuid4().hex[:8]
        self.rng = random.Random(size)
        self.out_of_category = {f"{self.run}-{n}" for n in range(0, USERS, 8)}
        self.out_of_sms = {f"{self.run}-{n}" for n in range(3, USERS, 10)}
        self.bouncing = {f"{self.run}-{n}" for n in range(5, USERS, 9)} - self.out_of_category
        self.asked: list[Asked] = []
        self._users()
        self._templates()
        before = self._requests()
        for fault in FAULTS:
            self._faults("POST", fault)
        try:
            self._publish(size)
            until(self._settled, 300, "every message of the campaign")
        finally:
            self._faults("DELETE", None)
        self.requests = self._requests() - before

    def _call(self, method: str, path: str, body: Any, wanted: int) -> Any:
        code, answer, _ = self.running.call(method, path, body)
        assert code == wanted, answer
        return answer

    def _faults(self, method: str, body: Any) -> None:
        data = None if body is None else json.dumps(body).encode()
        url = self.running.endpoints["simulator"] + "/faults"
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=30) as response:
            assert response.status < 300

    def _requests(self) -> Counter[str]:
        return Counter(self.running.get("simulator", "/requests"))

    def _users(self) -> None:
        for number in range(USERS):
            name = f"{self.run}-{number}"
            mail = f"bounces-{name}@inbox.example" if name in self.bouncing else f"{name}@mail{number % 3}.example"
            body = {
                "id": name,
                "email": mail,
                "phone": f"+4915112{int(self.run[:4], 16) % 1000:03d}{number:02d}0",
                "devices": [{"platform": "fcm", "token": f"tok-{name}"}],
                "locale": "de" if number % 2 else "fr",
            }
            self._call("POST", "/v1/users", body, 201)
            if name in self.out_of_category:
                said: dict[str, Any] = {"channels": {}, "categories": {f"news-{self.run}": {"email": False}}}
                self._call("PUT", f"/v1/users/{name}/preferences", said, 200)
            if name in self.out_of_sms:
                self._call("PUT", f"/v1/users/{name}/preferences", {"channels": {"sms": False}, "categories": {}}, 200)

    def _templates(self) -> None:
        for template, category in (("news", f"news-{self.run}"), ("order", f"orders-{self.run}")):
            channels = {
                "email": {"subject": "S {{ n }}", "text": "T {{ n }}"},
                "sms": {"text": "n {{ n }}"},
                "push": {"title": "n", "body": "{{ n }}"},
            }
            german = {"de": {"email": {"subject": "B {{ n }}", "text": "D {{ n }}"}}}
            body = {"category": category, "channels": channels, "locales": german, "publish": True}
            self._call("POST", "/v1/templates", {"id": f"{template}-{self.run}", **body}, 201)
            self._call("POST", f"/v1/templates/{template}-{self.run}/versions", body, 201)

    def _publish(self, size: int) -> None:
        for start in range(0, size, 500):
            batch = []
            for number in range(start, min(start + 500, size)):
                user, template = f"{self.run}-{self.rng.randrange(USERS)}", self.rng.choice(("news", "order"))
                version = 1 if number % 5 == 0 else None
                channels = ("email", "sms", "push")[number % 3 :][:2]
                tag = f"{self.run}-{number % 4}"
                locale = "de" if int(user.rpartition("-")[2]) % 2 else ""
                self.asked.append(Asked("", user, template, version, locale, tag, channels))
                batch.append(
                    {
                        "to": {"user_id": user},
                        "template": {"id": f"{template}-{self.run}", **({"version": version} if version else {})},
                        "data": {"n": number},
                        "channels": list(channels),
                        "tags": [tag, self.run],
                    }
                )
            answer = self._call("POST", "/v1/notifications/bulk", {"notifications": batch}, 202)
            for result in answer["results"]:
                self.asked[start + result["index"]].notification_id = result["id"]

    def _settled(self) -> bool:
        wanted = sum(len(asked.channels) for asked in self.asked)
        sql = "SELECT count(), countIf(settled AND (channel != 'sms' OR NOT was_sent OR state != 'sent')) FROM v_messages WHERE has(tags, {run:String})"
        return self.running.query(sql, run=self.run) == [(wanted, wanted)]

    def rows(self, selected: str, rest: str = "") -> list[tuple[Any, ...]]:
        """Of the campaign's messages."""
        return self.running.query(
            f"SELECT {selected} FROM v_messages WHERE has(tags, {{run:String}}) {rest}", run=self.run
        )

    def own(self) -> Iterator[tuple[Asked, str]]:
        """Each request and channel of the list."""
        for asked in self.asked:
            for channel in asked.channels:
                yield asked, channel

    def kept_back(self, asked: Asked, channel: str) -> bool:
        """Whether the user has opted out of that."""
        by_category = asked.template == "news" and channel == "email" and asked.user in self.out_of_category
        return by_category or (channel == "sms" and asked.user in self.out_of_sms)


@pytest.fixture(scope="module", params=[300, pytest.param(5_000, marks=pytest.mark.slow)])
def campaign(running: Stack, request: pytest.FixtureRequest) -> Campaign:
    return Campaign(running, request.param)


def accepts(of: Campaign, channel: str) -> Counter[str]:
    """How often the vendor took each of the campaign's messages."""
    ours = {str(row[0]) for row in of.rows("message_id", f"AND channel = '{channel}'")}
    taken = Counter(
        str(entry["message_id"]) for entry in of.running.get("simulator", f"/accepted?kind={KINDS[channel]}")
    )
    return Counter({mid: count for mid, count in taken.items() if mid in ours})


@pytest.mark.parametrize("channel", KINDS)
def test_who_was_sent_something_is_who_the_vendor_took(campaign: Campaign, channel: str) -> None:
    sent = {str(row[0]) for row in campaign.rows("message_id", f"AND channel = '{channel}' AND was_sent")}
    # What ended failed in doubt may have been taken, and says so.
    doubted = {str(row[0]) for row in campaign.rows("message_id", "AND possible_duplicate AND NOT was_sent")}
    assert accepts(campaign, channel).keys() - doubted == sent


def test_attempts_are_the_vendors_requests(campaign: Campaign) -> None:
    more = campaign.rows("message_id, attempts, possible_duplicate, state", "AND attempts > 1")
    for channel, attempts, doubts in campaign.rows(
        "channel, sum(attempts), sum(possible_duplicate)", "GROUP BY channel"
    ):
        # An attempt in doubt is one that may or may not have become a request.
        assert 0 <= attempts - campaign.requests[KINDS[channel]] <= doubts, (channel, more)


def test_twice_taken_are_flagged_and_receipts_confirm_them(campaign: Campaign) -> None:
    for channel in KINDS:
        twice = {mid for mid, count in accepts(campaign, channel).items() if count > 1}
        flagged = {
            str(row[0]) for row in campaign.rows("message_id", f"AND channel = '{channel}' AND possible_duplicate")
        }
        assert twice <= flagged
    twice = {mid for mid, count in accepts(campaign, "sms").items() if count > 1}
    assert twice, "a fault that takes and denies it was asked for"
    confirmed = (
        "SELECT toString(message_id) FROM receipts WHERE message_id IN "
        "(SELECT message_id FROM v_messages WHERE has(tags, {run:String})) "
        "GROUP BY message_id HAVING uniqExact(provider_message_id) > 1"
    )
    until(lambda: {row[0] for row in campaign.running.query(confirmed, run=campaign.run)} == twice, 60, "the receipts")


def test_groups_are_those_of_the_list(campaign: Campaign) -> None:
    own = Counter(
        (f"{asked.template}-{campaign.run}", asked.version, asked.tag, asked.user, channel)
        for asked, channel in campaign.own()
    )
    found = campaign.rows(
        "template_id, requested_template_version, tags[1], recipient, channel, count()",
        "GROUP BY 1, 2, 3, 4, 5",
    )
    assert {row[:5]: row[5] for row in found} == own


def test_what_was_rendered_is_the_version_and_locale(campaign: Campaign) -> None:
    # Who bounces is suppressed from then on: it depends on the moment whether a mail was rendered.
    routed = [
        (asked, channel)
        for asked, channel in campaign.own()
        if not campaign.kept_back(asked, channel) and not (channel == "email" and asked.user in campaign.bouncing)
    ]
    own = Counter(
        (asked.version or 2, asked.locale if channel == "email" else "", channel) for asked, channel in routed
    )
    found = campaign.rows(
        "template_version, locale, channel, count()",
        "AND reason != 'opted_out' AND domain != 'inbox.example' GROUP BY 1, 2, 3",
    )
    assert {row[:3]: row[3] for row in found} == own


def test_opt_outs_are_those_of_the_list_by_category_and_channel(campaign: Campaign) -> None:
    own = Counter(
        (f"{'news' if asked.template == 'news' else 'orders'}-{campaign.run}", channel)
        for asked, channel in campaign.own()
        if campaign.kept_back(asked, channel)
    )
    found = campaign.rows("category, channel, count()", "AND reason = 'opted_out' GROUP BY 1, 2")
    assert {row[:2]: row[2] for row in found} == own
    history = "SELECT user_id, category, channel FROM preference_history WHERE opted_out AND startsWith(user_id, {run:String})"
    stated = {(user, f"news-{campaign.run}", "email") for user in campaign.out_of_category}
    stated |= {(user, "", "sms") for user in campaign.out_of_sms}
    assert set(campaign.running.query(history, run=campaign.run)) == stated


def test_bounces_are_of_the_domain_that_bounces(campaign: Campaign) -> None:
    own = sum(
        channel == "email" and asked.user in campaign.bouncing and not campaign.kept_back(asked, channel)
        for asked, channel in campaign.own()
    )
    found = dict(
        campaign.rows("domain, countIf(state IN ('bounced', 'suppressed'))", "AND channel = 'email' GROUP BY domain")
    )
    assert {domain: count for domain, count in found.items() if count} == {"inbox.example": own}


def test_funnel_and_requests_are_the_list(campaign: Campaign) -> None:
    template = f"news-{campaign.run}"
    found = "SELECT sum(requests), sum(messages) FROM v_funnel WHERE template_id = {template:String}"
    own = [asked for asked in campaign.asked if asked.template == "news"]
    assert campaign.running.query(found, template=template) == [(len(own), sum(len(asked.channels) for asked in own))]
    categories = (
        "SELECT category, requested_category, count() FROM requests WHERE has(tags, {run:String}) GROUP BY 1, 2"
    )
    counted = Counter(asked.template for asked in campaign.asked)
    assert set(campaign.running.query(categories, run=campaign.run)) == {
        (f"news-{campaign.run}", "default", counted["news"]),
        (f"orders-{campaign.run}", "default", counted["order"]),
    }


def test_who_was_sent_how_much_is_what_the_vendors_took(campaign: Campaign) -> None:
    users = {asked.notification_id: asked.user for asked in campaign.asked}
    of_message = {str(mid): users[str(nid)] for mid, nid in campaign.rows("message_id, notification_id")}
    doubted = {str(row[0]) for row in campaign.rows("message_id", "AND possible_duplicate AND NOT was_sent")}
    taken = Counter(of_message[mid] for kind in KINDS for mid in accepts(campaign, kind).keys() - doubted)
    assert dict(campaign.rows("recipient, count()", "AND was_sent GROUP BY recipient")) == taken


def test_who_got_no_mail_of_an_order_is_who_bounces(campaign: Campaign) -> None:
    own = Counter(
        asked.user
        for asked, channel in campaign.own()
        if (asked.template, channel) == ("order", "email") and asked.user in campaign.bouncing
    )
    found = campaign.rows(
        "recipient, count()",
        "AND channel = 'email' AND startsWith(template_id, 'order') AND state IN ('bounced', 'suppressed') GROUP BY 1",
    )
    assert dict(found) == own


def test_days_of_a_zone_and_hours_are_those_of_the_ids(campaign: Campaign) -> None:
    times = [
        datetime.fromtimestamp(accepted_at(asked.notification_id) / 1000, ZoneInfo("Europe/Berlin"))
        for asked, _ in campaign.own()
    ]
    found = dict(campaign.rows("toDate(accepted_at, 'Europe/Berlin'), count()", "GROUP BY 1"))
    assert found == Counter(time.date() for time in times)
    by_hour = dict(campaign.rows("toHour(accepted_at, 'Europe/Berlin'), count()", "GROUP BY 1"))
    assert by_hour == Counter(time.hour for time in times)


def test_each_request_became_a_message_for_each_channel_and_its_facts_tell_how(campaign: Campaign) -> None:
    own = {asked.notification_id: sorted(asked.channels) for asked in campaign.asked}
    found = campaign.rows("notification_id, arraySort(groupArray(channel))", "GROUP BY 1")
    assert {str(nid): list(channels) for nid, channels in found} == own
    sql = (
        "SELECT message_id, argMin(state, (occurred_at, rank)), max(attempt), countIf(state = 'sent') FROM delivery_events "
        "WHERE message_id IN (SELECT message_id FROM v_messages WHERE has(tags, {run:String})) GROUP BY message_id"
    )
    facts = {str(row[0]): row[1:] for row in campaign.running.query(sql, run=campaign.run)}
    for mid, state, reason, attempts, was_sent in campaign.rows("message_id, state, reason, attempts, was_sent"):
        first, last_attempt, sent = facts[str(mid)]
        assert first == ("skipped" if reason == "opted_out" else first) and attempts <= last_attempt, mid
        assert bool(sent) <= was_sent, (mid, state)


def test_what_nobody_measures_is_null(campaign: Campaign) -> None:
    assert campaign.rows("countIf(was_delivered IS NOT NULL)", "AND channel != 'sms'") == [(0,)]
    unmeasured = "SELECT sum(delivered) FROM v_funnel WHERE channel = 'push' AND template_id = {template:String}"
    assert campaign.running.query(unmeasured, template=f"news-{campaign.run}") == [(None,)]

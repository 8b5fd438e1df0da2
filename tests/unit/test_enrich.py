"""The router's decisions, row by row of its ladder, and what no record may do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from local.simulator import webpush
from processors.router.enrich import RouterViews, enrich_batch
from runtime import ids
from runtime.records import ConsumerRecord, ProducerRecord
from schemas.codec import codec
from schemas.topics import DEAD_LETTERS, STATUS, TIMERS
from tests.support.made import profile
from tests.support.made import template as any_template

NOW = 1_800_000_000_000
TOPIC = "notify.requests.normal.v1"


class FakeView(dict[str, Any]):
    """A view is a mapping with `get`, and `raw` for templates."""

    def raw(self, key: str) -> bytes | None:
        value = self.get(key)
        return codec("Template").encode(value) if value is not None else None


def template(**fields: Any) -> dict[str, Any]:
    channels = {
        "email": {"subject": "S {{ order }}", "text": "T"},
        "sms": {"text": "sms {{ order }}"},
        "push": {"title": "P", "body": "B"},
    }
    return any_template(fields.pop("channels", channels), **{"variables": ["order"], **fields})


def views(**fields: Any) -> RouterViews:
    return RouterViews(
        recipients=FakeView({"t:u": fields.get("profile", profile())}),
        templates=FakeView({"t:shipped": fields.get("template", template()), "t:shipped:3": template()}),
        suppressions=FakeView(fields.get("suppressions", {})),
        cancellations=FakeView(fields.get("cancellations", {})),
    )


def request(**fields: Any) -> dict[str, Any]:
    nid = fields.pop("notification_id", ids.notification_id(NOW - 5, "t", fields.pop("key", "k")))
    return {
        "notification_id": nid,
        "tenant": "t",
        "accepted_at": NOW - 5,
        "user_id": "u",
        "template_id": "shipped",
        "data": b'{"order": "A1"}',
        **fields,
    }


def record(value: bytes | None, topic: str = TOPIC) -> ConsumerRecord:
    return ConsumerRecord(topic, 0, 7, NOW, b"t:u", value, [("traceparent", b"00-1")])


def run(made: dict[str, Any], topic: str = TOPIC, **kwargs: Any) -> list[ProducerRecord]:
    return enrich_batch([record(codec("NotificationRequest").encode(made), topic)], views(**kwargs), NOW)


def statuses(out: list[ProducerRecord]) -> list[tuple[str | None, str, str | None]]:
    decoded = [codec("DeliveryStatus").decode(r.value) for r in out if r.topic == STATUS]
    return [(d["channel"], d["state"], d["reason"]) for d in decoded]


def messages(out: list[ProducerRecord]) -> list[dict[str, Any]]:
    return [codec("ChannelMessage").decode(r.value) for r in out if r.topic.startswith("notify.dispatch.")]


def test_allowed_request_is_routed_on_every_channel_of_its_template() -> None:
    out = run(request())
    assert statuses(out) == [("email", "routed", None), ("sms", "routed", None), ("push", "routed", None)]
    email, sms, push = messages(out)
    assert (email["subject"], email["address"], email["category"]) == ("S A1", "u@example.org", "orders")
    assert (sms["text"], push["address"], push["platform"]) == ("sms A1", "tok", "fcm")
    assert {m["template_version"] for m in messages(out)} == {3}
    assert {m["preference_version"] for m in messages(out)} == {9}
    dispatch = [r for r in out if r.topic.startswith("notify.dispatch.")]
    assert {r.topic for r in dispatch} == {f"notify.dispatch.{c}.normal.v1" for c in ("email", "sms", "push")}
    assert {r.key for r in dispatch} == {b"t:u"}
    assert all(dict(r.headers)["traceparent"] == b"00-1" for r in out)


@pytest.mark.parametrize(
    ("fields", "world", "expected"),
    [
        pytest.param({"expires_at": NOW}, {}, [(None, "expired", "past_expiry")], id="1 expired"),
        pytest.param({"dry_run": True}, {}, [(None, "simulated", "dry_run")], id="3 dry run"),
        pytest.param({"send_at": NOW + 1}, {}, [(None, "scheduled", None)], id="4 scheduled"),
        pytest.param({"user_id": "nobody"}, {}, [(None, "rejected", "unknown_recipient")], id="5 unknown recipient"),
        pytest.param({"template_id": "x"}, {}, [(None, "rejected", "unknown_template")], id="6 unknown template"),
        pytest.param({"template_version": 4}, {}, [(None, "rejected", "unknown_template")], id="6 unknown version"),
        pytest.param(
            {"channels": ["sms"]},
            {"profile": profile(phone=None)},
            [("sms", "skipped", "no_address")],
            id="7 no address",
        ),
        pytest.param(
            {"channels": ["email"]},
            {"profile": profile(email="a@b\nBcc: x@y")},
            [("email", "rejected", "invalid_address")],
            id="8 malformed",
        ),
        pytest.param(
            {"channels": ["email"]},
            {"suppressions": {"t:email:" + ids.address_hash("email", "u@example.org"): {"expires_at": None}}},
            [("email", "suppressed", "suppressed_address")],
            id="9 suppressed",
        ),
        pytest.param(
            {"channels": ["email"]},
            {"suppressions": {"t:email:" + ids.address_hash("email", "u@example.org"): {"expires_at": NOW}}},
            [("email", "routed", None)],
            id="9 suppression ran out",
        ),
        pytest.param(
            {"channels": ["sms"]},
            {"profile": profile(channels={"sms": False})},
            [("sms", "skipped", "opted_out")],
            id="10 channel",
        ),
        pytest.param(
            {"channels": ["sms"]},
            {"profile": profile(categories={"orders": {"sms": False}})},
            [("sms", "skipped", "opted_out")],
            id="11 category",
        ),
        pytest.param(
            {"data": b"{}"},
            {},
            [
                ("email", "rejected", "missing_variable"),
                ("sms", "rejected", "missing_variable"),
                ("push", "routed", None),
            ],
            id="missing variable",
        ),
        pytest.param(
            {"channels": ["email"], "data": b'{"order": "a\\nBcc: x"}'},
            {},
            [("email", "rejected", "template_error")],
            id="two-line subject",
        ),
        pytest.param(
            {"channels": ["sms"]},
            {"template": template(channels={"email": {"subject": "S", "text": "T"}})},
            [("sms", "rejected", "template_error")],
            id="no part",
        ),
        pytest.param(
            {"strategy": "first_available", "channels": ["sms", "push", "email"]},
            {"profile": profile(phone=None)},
            [("sms", "skipped", "no_address"), ("push", "routed", None)],
            id="first available",
        ),
    ],
)
def test_ladder(
    fields: dict[str, Any], world: dict[str, Any], expected: list[tuple[str | None, str, str | None]]
) -> None:
    assert statuses(run(request(**fields), **world)) == expected


def test_cancelled_by_its_own_tenant_only() -> None:
    made = request()
    for tenant, state in (("t", "cancelled"), ("other", "routed")):
        found = statuses(run(made, cancellations={made["notification_id"]: {"tenant": tenant}}))
        assert {s for _, s, _ in found} == {state}


def test_critical_passes_category_opt_outs_but_not_channel_opt_outs_or_suppressions() -> None:
    topic = "notify.requests.critical.v1"
    refused = profile(categories={"orders": {"sms": False, "push": False}}, channels={"push": False})
    suppressions = {"t:email:" + ids.address_hash("email", "u@example.org"): {"expires_at": None}}
    out = run(request(), topic, profile=refused, suppressions=suppressions)
    assert [s for _, s, _ in statuses(out)] == ["suppressed", "routed", "skipped"]
    assert {m["lane"] for m in messages(out)} == {"critical"}


def test_scheduled_request_becomes_a_timer_that_brings_it_back() -> None:
    out = run(request(send_at=NOW + 60_000))
    timer_record = out[0]
    assert timer_record.topic == TIMERS
    timer = codec("Timer").decode(timer_record.value)
    assert (timer["due_at"], timer["topic"], timer["purpose"]) == (NOW + 60_000, TOPIC, "schedule")
    back = codec("NotificationRequest").decode(timer["value"])
    assert back == {
        **codec("NotificationRequest").decode(codec("NotificationRequest").encode(request())),
        "send_at": None,
    }


def test_every_device_gets_its_own_message_and_a_repeated_one_gets_one() -> None:
    devices = [{"platform": "fcm", "token": t, "subscription": None} for t in ("a", "b", "a")]
    out = run(request(channels=["push"]), profile=profile(devices=devices))
    assert sorted(m["address"] for m in messages(out)) == ["a", "b"]
    assert len({m["message_id"] for m in messages(out)}) == 2


def test_devices_of_several_platforms_get_their_pushes_side_by_side() -> None:
    browser = webpush.subscription("https://updates.push.services.mozilla.com", "b")
    as_stored = to_json({"keys": {"p256dh": browser.p256dh, "auth": browser.auth}, "endpoint": browser.endpoint})
    none = b'{"endpoint": "https://x.example"}'
    devices = [
        *({"platform": name, "token": f"{name}-token", "subscription": None} for name in ("fcm", "apns", "onesignal")),
        *({"platform": "webpush", "token": None, "subscription": given} for given in (as_stored, none)),
        {"platform": "fcm", "token": None, "subscription": None},
    ]
    out = run(request(channels=["push"]), profile=profile(devices=devices))
    wanted = [(name, f"{name}-token") for name in ("fcm", "apns", "onesignal")] + [("webpush", browser.address)]
    assert [(m["platform"], m["address"]) for m in messages(out)] == wanted
    assert ("push", "rejected", "invalid_address") in statuses(out)


def test_locale_falls_back_from_region_to_language_to_default() -> None:
    localized = template(locales={"de": {"sms": {"text": "deutsch {{ order }}"}}})
    for locale, text in (("de-AT", "deutsch A1"), ("de", "deutsch A1"), ("fr", "sms A1"), (None, "sms A1")):
        out = run(request(channels=["sms"], locale=locale), template=localized)
        assert messages(out)[0]["text"] == text


def test_addresses_and_literal_content_need_no_profile_and_are_no_template() -> None:
    out = run(
        request(
            user_id=None,
            template_id=None,
            content=b'{"subject": "Hi", "text": "{{ order }}"}',
            addresses=[{"channel": "email", "value": "x@example.org", "platform": None}],
        )
    )
    assert messages(out)[0]["text"] == "{{ order }}"
    assert statuses(out) == [("email", "routed", None)]


@pytest.mark.parametrize(
    ("content", "channel"),
    [(b'{"subject": "S", "text": "T"}', "email"), (b'{"text": "T"}', "sms"), (b'{"title": "T", "body": "B"}', "push")],
)
def test_literal_content_goes_to_the_channel_of_its_shape(content: bytes, channel: str) -> None:
    assert statuses(run(request(template_id=None, content=content))) == [(channel, "routed", None)]


def test_same_record_again_gives_the_same_ids() -> None:
    made = request()
    once, again = run(made), run(made)
    assert [r.value for r in once] == [r.value for r in again]


@pytest.mark.parametrize(
    "fields",
    [
        {"accepted_at": NOW},
        {"tenant": ""},
        {"tenant": "a:b"},
        {"user_id": None},
        {"template_id": None},
        {"content": b"{}"},
        {"channels": ["fax"]},
        {"data": b"not json"},
        {"data": b"[]"},
    ],
)
def test_request_that_contradicts_itself_is_dead_lettered_and_accounted_for(fields: dict[str, Any]) -> None:
    out = run(request(**fields))
    assert [r.topic for r in out] == [DEAD_LETTERS, STATUS]
    assert statuses(out) == [(None, "dead_lettered", "undecodable")]


def test_poison_is_dead_lettered_whole_and_its_neighbours_are_routed() -> None:
    good = codec("NotificationRequest").encode(request())
    out = enrich_batch([record(b"\xff poison"), record(good), record(None)], views(), NOW)
    dead_letters = [codec("DeadLetter").decode(r.value) for r in out if r.topic == DEAD_LETTERS]
    assert [(d["value"], d["reason"], d["offset"]) for d in dead_letters] == [
        (b"\xff poison", "undecodable", 7),
        (None, "undecodable", 7),
    ]
    assert len(messages(out)) == 3


def test_a_bug_of_ours_costs_one_record_not_the_partition() -> None:
    broken = views()
    broken.recipients = FakeView({"t:u": {"unexpected": 1}})
    good = codec("NotificationRequest").encode(
        request(
            user_id=None, addresses=[{"channel": "sms", "value": "+4915112345678", "platform": None}], channels=["sms"]
        )
    )
    out = enrich_batch([record(codec("NotificationRequest").encode(request())), record(good)], broken, NOW)
    assert statuses(out) == [(None, "dead_lettered", "internal_error"), ("sms", "routed", None)]


@settings(max_examples=200)
@given(st.binary(max_size=120))
def test_no_bytes_raise(raw: bytes) -> None:
    framed = codec("NotificationRequest").encode(request())[:5] + raw
    out = enrich_batch([record(raw), record(framed)], views(), NOW)
    assert len(out) >= 2


# -- what is stated for whoever counts ---------------------------------------------------------------------------------


def stated(out: list[ProducerRecord]) -> list[dict[str, Any]]:
    return [codec("DeliveryStatus").decode(r.value) for r in out if r.topic == STATUS]


@pytest.mark.parametrize(
    ("address", "domain"),
    [("Ann@Mail.Example", "mail.example"), ("ann", None), ("a@ä.example", None), ("a@" + "x" * 300, None)],
)
def test_domain_of_a_mail_is_stated_and_never_the_person(address: str, domain: str | None) -> None:
    given_address = [{"channel": "email", "value": address, "platform": None}]
    (fact,) = stated(run(request(user_id=None, addresses=given_address, channels=["email"])))
    assert fact["domain"] == domain


def test_category_that_decided_and_locale_that_was_rendered_are_stated() -> None:
    localized = template(locales={"de": {"sms": {"text": "deutsch {{ order }}"}}})
    for locale, rendered in (("de-AT", "de"), ("fr", None), (None, None)):
        (fact,) = stated(run(request(channels=["sms"], locale=locale), template=localized))
        assert (fact["category"], fact["locale"], fact["domain"]) == ("orders", rendered, None)


def test_scheduled_request_says_when_it_goes_on() -> None:
    (fact,) = stated(run(request(send_at=NOW + 60_000)))
    assert (fact["state"], fact["due_at"]) == ("scheduled", NOW + 60_000)

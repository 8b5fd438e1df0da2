"""Whom a report is about, and what the message said, stays in the raw receipt: not in a status, hook, log, metric or row of ClickHouse."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from twilio.request_validator import RequestValidator

from local.supervisor.layout import to_toml
from runtime import ids
from runtime.callbacks import callback_url
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import ProviderSettings
from schemas.codec import codec
from schemas.events import ChannelMessage
from schemas.topics import RECEIPTS, REFERENCES, STATUS
from tests.faults.receipts import certificate_file, role
from tests.integration.conftest import until
from tests.integration.reference_stack import World, postgres, world
from tests.integration.test_clickhouse_schema import Store
from tests.support.accounts import CANARY
from tests.support.clickhouse import Server
from tests.support.hook_receiver import HookReceiver, in_a_thread
from tests.support.made import message
from tests.support.receipt_day import ACCOUNTS
from tests.support.receipts import (
    PUBLIC,
    Callback,
    bulksms,
    bulksms_message,
    iso,
    mailgun,
    mailgun_event,
    onesignal,
    onesignal_event,
    reference,
    sendgrid,
    sendgrid_event,
    ses,
    ses_event,
    vonage,
    vonage_receipt,
)

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse, pytest.mark.timeout(240)]
__all__ = ["postgres", "world"]

ADDRESS, NUMBER, DEVICE = f"{CANARY}@example.org", "+4915199900077", f"device-{CANARY}"
SECRETS = (CANARY.encode(), NUMBER[1:].encode())
WORDS = f"550 5.1.1 <{ADDRESS}>: your code is {CANARY}"
TWILIO = ("AC" + "1" * 32, "first-token")


def sent(channel: str, address: str, number: int) -> ChannelMessage:
    nid = ids.notification_id(time.time_ns() // 1_000_000, "default", f"privacy-{number}")
    mid = ids.message_id(nid, channel, ids.address_hash(channel, address))
    return message(channel=channel, address=address, notification_id=nid, message_id=mid, tenant="default")


def twilio(about: ChannelMessage, **more: str) -> Callback:
    url = callback_url(f"{PUBLIC}/callbacks/twilio", about, "tw")
    form = {"AccountSid": TWILIO[0], "MessageSid": "SM1", "MessageStatus": "undelivered", "To": NUMBER, **more}
    headers = {"X-Twilio-Signature": RequestValidator(TWILIO[1]).compute_signature(url, form)}
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    return Callback("twilio", urlencode(form).encode(), headers, url.removeprefix(f"{PUBLIC}/callbacks/twilio"))


def callbacks(mail: ChannelMessage, text: ChannelMessage) -> list[Callback]:
    """Every vendor's, with the address and words wherever the vendor has room for them."""
    now = int(time.time())
    said = {"reason": WORDS, "response": WORDS, "url": f"https://x.example/?u={CANARY}", "useragent": CANARY}
    events = ["processed", "delivered", "bounce", "dropped", "open", "click", "spamreport", "unsubscribe", "new-word"]
    failed = {"severity": "permanent", "delivery-status": {"code": 550, "message": WORDS, "description": WORDS}}
    own = {"bounceType": "Permanent", "feedbackId": "f-1"}
    own |= {"bouncedRecipients": [{"emailAddress": ADDRESS, "diagnosticCode": WORDS}]}  # type: ignore[dict-item]
    tagged: dict[str, Any] = ses_event("Bounce", mail, own)
    tagged["mail"]["commonHeaders"] = {"subject": WORDS, "to": [ADDRESS]}
    told = [
        sendgrid([sendgrid_event(event, mail, **said) for event in events], at=str(now)),
        sendgrid([sendgrid_event("bounce", None, email=ADDRESS, sg_event_id="lone", **said), WORDS], at=str(now)),
        mailgun(
            mailgun_event("failed", mail, **failed, message={"headers": {"message-id": "m@mg", "subject": WORDS}}),
            at=str(now),
        ),
        mailgun(mailgun_event("complained", mail, id="c"), at=str(now), token="c" * 50),
        ses(tagged, Timestamp=iso(now * 1000)),
        ses(
            ses_event("Complaint", mail, {"complainedRecipients": [{"emailAddress": ADDRESS}], "userAgent": CANARY}),
            Timestamp=iso(now * 1000),
        ),
        vonage(vonage_receipt("rejected", "3", text, timestamp=str(now), text=WORDS)),
        bulksms([bulksms_message("FAILED", "BLOCKED", to=NUMBER[1:], body=WORDS)]),
        onesignal(onesignal_event("failed", subscription_id=DEVICE, contents=WORDS, timestamp=str(now - 120))),
        twilio(text, Body=WORDS, ErrorMessage=WORDS),
    ]
    forged = Callback("sendgrid", WORDS.encode(), {**told[0].headers})
    unreadable = sendgrid(WORDS.encode(), at=str(now))
    return [*told, forged, unreadable]


@pytest.fixture
def clickhouse(tmp_path: Path) -> Iterator[Store]:
    server = Server(tmp_path / "clickhouse").start()
    try:
        yield Store(server)
    finally:
        server.stop()


def metrics(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return bytes(answer.read())


def test_address_and_words_of_reports_stay_in_the_raw_receipt(world: World, clickhouse: Store, tmp_path: Path) -> None:
    mail, text, push = sent("email", ADDRESS, 1), sent("sms", NUMBER, 2), sent("push", DEVICE, 3)
    keys: dict[str, Any] = {"account_sid": TWILIO[0], "auth_token": TWILIO[1], "from": "+15005550006"}
    accounts = [*ACCOUNTS, ProviderSettings(name="tw", channel="sms", kind="twilio", **keys)]
    config = tmp_path / "heliograph.toml"
    config.write_text(to_toml({"providers": [each.model_dump(mode="json", exclude_none=True) for each in accounts]}))
    known = reference("bulk", "1234567890", text) | reference("one", "theirs", push)
    port, health, hooks_health = (world.book.reserve(name) for name in ("callbacks", "callbacks-health", "hooks"))
    producer = Producer(world.broker.settings, client_id="test")
    producer.publish([ProducerRecord(REFERENCES, k.encode(), codec("Reference").encode(v)) for k, v in known.items()])
    producer.close()
    world.settings |= {"HELIOGRAPH_OUTBOUND__ALLOW": "127.0.0.1"}
    with in_a_thread(HookReceiver()) as receiver, certificate_file(tmp_path):
        for name in ("api", "relay"):
            world.run(name)
        world.run("hooks", HELIOGRAPH_METRICS__PORT=str(hooks_health))
        desk = role(world.broker.settings, config, port, tmp_path, HELIOGRAPH_METRICS__PORT=str(health))
        world.broker.roles.append(desk)
        world.wait_ready()
        made = world.api.call("POST", "/v1/webhooks", {"url": receiver.url("all")})
        assert made.status == 201, made
        receiver.secrets["all"] = [made.body["secret"]]
        until(lambda: _answers(port), 60, "callbacks listens")
        answers = [_posted(port, each) for each in callbacks(mail, text)]
        assert [status for status in answers if status >= 300] == [403, 400], answers
        stated = {codec("DeliveryStatus").decode(each.value)["event_id"] for each in world.records(STATUS)}
        wanted = {ids.hook_id(made.body["id"], event) for event in stated}
        until(lambda: wanted <= receiver.ids("all"), 60, "every fact told", lambda: len(receiver.ids("all")))
        bodies = [each.body for requests in receiver.told["all"].values() for each in requests]
        shown = metrics(health) + metrics(hooks_health) + metrics(world.api_port)
        world.broker.stop_roles()  # before the receiver: no connection of theirs outlives it

    receipts, statuses = world.records(RECEIPTS), world.records(STATUS)
    decoded = [codec("ProviderReceipt").decode(each.value) for each in receipts]
    assert {each["provider"] for each in decoded} == {each.name for each in accounts}
    assert any(SECRETS[0] in each["raw"] for each in decoded) and any(SECRETS[1] in each["raw"] for each in decoded)
    assert len(stated) >= 12, "each vendor states something"
    clickhouse.insert([*receipts, *statuses])
    stored = _dump(clickhouse)
    assert stored["receipts_raw"].count("\n") == len({each["event_id"] for each in decoded})
    logs = {
        path.name: path.read_bytes() for folder in (world.broker.directory, tmp_path) for path in folder.glob("*.log")
    }
    assert b"wrong signature" in logs["callbacks.log"]
    places = {
        "receipts beside raw": repr([{**each, "raw": b""} for each in decoded]).encode(),
        "keys": b"\n".join(each.key or b"" for each in [*receipts, *statuses]),
        "statuses": b"\n".join(each.value or b"" for each in statuses),
        "hooks": b"\n".join(bodies),
        "metrics": shown,
        **{f"log {name}": text for name, text in logs.items()},
        **{f"table {name}": rows.encode() for name, rows in stored.items()},
    }
    assert [(name, secret) for name, text in places.items() for secret in SECRETS if secret in text] == []


def _answers(port: int) -> bool:
    return _posted(port, Callback("sendgrid", b"", {})) > 0


def _posted(port: int, callback: Callback) -> int:
    url = f"http://127.0.0.1:{port}/callbacks/{callback.kind}{callback.path}"
    request = urllib.request.Request(url, callback.body, dict(callback.headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def _dump(store: Store) -> dict[str, str]:
    """Every row of every table that keeps rows, a line each."""
    tables = store.client.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
    )
    return {
        name: "".join(f"{row!r}\n" for row in store.client.query(f"SELECT * FROM `{name}`").result_rows)
        for (name,) in tables.result_rows
    }

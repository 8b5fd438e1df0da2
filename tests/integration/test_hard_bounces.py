"""What bounces for good is not sent to again: statuses in, suppressions out; PostgreSQL, the topic and the API are the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local.ports import PortBook
from producers.callbacks.records import receipt_of, receipt_record
from runtime import ids
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.status import Particulars, message_status, status_record
from schemas.codec import codec
from schemas.topics import STATUS, SUPPRESSIONS, requests_topic
from tests.integration.conftest import until
from tests.integration.reference_stack import Api, World, postgres, world
from tests.support.made import message
from vendors.reports import stop as stop_report

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]


@dataclass
class Bounces:
    """The roles that send mail and SMS, and the simulator they send to."""

    world: World
    simulator: str
    producer: Producer

    @property
    def api(self) -> Api:
        return self.world.api

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.simulator + path, data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def send(self, channel: str, address: str) -> str:
        """Ask for a message to a bare address; the notification's id."""
        now = int(time.time() * 1000)
        nid = ids.notification_id(now, "default")
        request = {
            "notification_id": nid,
            "tenant": "default",
            "accepted_at": now,
            "channels": [channel],
            "addresses": [{"channel": channel, "value": address}],
            "content": b'{"subject": "S", "text": "T"}',
        }
        value = codec("NotificationRequest").encode(request)
        self.producer.publish([ProducerRecord(requests_topic("normal"), b"default:x", value)])
        return nid

    def states(self, nid: str) -> list[tuple[str, str | None]]:
        found = [codec("DeliveryStatus").decode(r.value) for r in self.world.records(STATUS) if r.key == nid.encode()]
        return [(s["state"], s["reason"]) for s in found]

    def listed(self, channel: str, address: str) -> list[dict[str, Any]]:
        query = f"channel={channel}&address={address.replace('+', '%2B')}"
        return list(self.api.call("GET", f"/v1/suppressions?{query}").body["entries"])

    def published(self, channel: str, address: str) -> list[str | None]:
        """The reasons published for an address, None for a tombstone, in order."""
        key = f"default:{channel}:{ids.address_hash(channel, address)}".encode()
        records = [record.value for record in self.world.records(SUPPRESSIONS) if record.key == key]
        return [codec("Suppression").decode(value)["reason"] if value else None for value in records]

    def outbox_of(self, channel: str, address: str) -> int:
        """How often the suppression was written; waits until the relay has published all."""
        with psycopg.connect(self.world.postgres.dsn) as connection:
            until(lambda: connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,), 10, "an empty outbox")
        return len(self.published(channel, address))


@pytest.fixture(scope="module")
def bounces(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bounces]:
    directory: Path = tmp_path_factory.mktemp("bounces")
    book = PortBook()
    http, smtp = book.reserve("simulator"), book.reserve("smtp")
    log = (directory / "simulator.log").open("wb")
    simulator = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "local.simulator",
            "--http-port",
            str(http),
            "--smtp-port",
            str(smtp),
            "--apns-port",
            str(book.reserve("apns")),
            "--data-dir",
            str(directory),
            "--maildir",
            str(directory / "mail"),
        ],
        stderr=log,
    )
    config = directory / "heliograph.toml"
    config.write_text(f"""
[[providers]]
name = "mail-1"
channel = "email"
kind = "smtp"
host = "127.0.0.1"
port = {smtp}
tls = "none"
from_address = "us@shop.example"
[[providers]]
name = "twilio-1"
channel = "sms"
kind = "twilio"
base_url = "http://127.0.0.1:{http}"
account_sid = "AC00000000000000000000000000000000"
auth_token = "t"
from = "+15005550006"
""")
    world.settings |= {"HELIOGRAPH_CONFIG": str(config), "HELIOGRAPH_ROUTER__ENGINE": "loop"}
    producer = Producer(world.broker.settings, client_id="test")
    made = Bounces(world, f"http://127.0.0.1:{http}", producer)

    def is_up() -> bool:
        try:
            return bool(made.call("GET", "/readyz"))
        except OSError:
            return False

    until(is_up, 30, "simulator")
    senders = (("sender", "--channel", "email"), ("sender", "--channel", "sms"))
    for role in (("api",), ("relay",), ("router", "--lane", "normal"), *senders):
        world.run(*role)
    world.wait_ready()
    yield made
    world.broker.stop_roles()
    producer.close()
    simulator.terminate()
    simulator.wait(10)
    log.close()
    book.close()


@pytest.mark.parametrize(
    ("kind", "channel", "address", "reason", "source"),
    [
        ("smtp", "email", "Gone@example.org", "hard_bounce", "mail-1: 550 5.1.1"),
        ("twilio", "sms", "+4915112345678", "invalid_number", "twilio-1: 400 21211"),
    ],
)
def test_bounced_address_is_not_sent_to_again(
    bounces: Bounces, kind: str, channel: str, address: str, reason: str, source: str
) -> None:
    bounces.call("POST", "/faults", {"kind": kind, "mode": "reject", "match": address[:6]})
    first = bounces.send(channel, address)
    until(lambda: ("bounced", reason) in bounces.states(first), 60, "bounced")
    until(lambda: bounces.published(channel, address) == [reason], 10, "the suppression published")
    (entry,) = bounces.listed(channel, address)
    assert (entry["reason"], entry["source"], entry["expires_at"]) == (reason, source, None)
    assert (entry["address"], entry["address_hash"]) == (None, ids.address_hash(channel, address))
    bounces.call("DELETE", "/faults")  # the provider would take it now

    def suppressed() -> bool:
        again = bounces.send(channel, address)
        until(lambda: len(bounces.states(again)) > 0 and bounces.states(again)[-1][0] != "routed", 30, "an end")
        return bounces.states(again) == [("suppressed", "suppressed_address")]

    until(suppressed, 10, "a suppressed message")


def bounce(
    channel: str,
    reason: str,
    address: str,
    detail: str = "550 5.1.1",
    provider: str = "mail-2",
    user_id: str | None = None,
    occurred_at: int | None = None,
    opted_out: bool = False,
) -> ProducerRecord:
    now = int(time.time() * 1000)
    nid = ids.notification_id(now, "default")
    message_id = ids.message_id(nid, channel, ids.address_hash(channel, address))
    sent = message(
        notification_id=nid, message_id=message_id, tenant="default", channel=channel, user_id=user_id, address=address
    )
    particulars: Particulars = {"reason": reason, "detail": detail, "provider": provider, "opted_out": opted_out}
    return status_record(message_status(sent, "bounced", now=occurred_at or now, attempt=1, **particulars))


def test_users_address_is_found_in_the_profile_and_listed_in_clear(bounces: Bounces) -> None:
    user = {"id": "bounced", "email": "Zoe@example.org", "phone": "+4915111111111"}
    assert bounces.api.call("POST", "/v1/users", user).status == 201
    mail = bounce("email", "hard_bounce", "zoe@example.org", user_id="bounced")
    stop = bounce("sms", "invalid_number", "+4915111111111", "400 21610", "twilio-2", "bounced", opted_out=True)
    former = bounce("email", "hard_bounce", "former@example.org", user_id="bounced")
    bounces.producer.publish([former, mail, stop, mail])
    until(lambda: bounces.published("sms", "+4915111111111") == ["unsubscribe"], 15, "the STOP published")
    (entry,) = bounces.listed("email", "ZOE@example.org")
    assert (entry["address"].lower(), entry["reason"]) == ("zoe@example.org", "hard_bounce")
    assert bounces.outbox_of("email", "zoe@example.org") == 1  # the same event twice is one suppression
    assert bounces.listed("email", "former@example.org") == []  # no longer the user's: nobody knows whose


def test_address_removed_by_an_operator_is_suppressed_again_only_by_a_new_bounce(bounces: Bounces) -> None:
    address = "lifted@example.org"
    old = bounce("email", "hard_bounce", address)
    bounces.producer.publish([old])
    until(lambda: len(bounces.listed("email", address)) == 1, 15, "suppressed")
    (entry,) = bounces.listed("email", address)
    time.sleep(0.01)
    assert bounces.api.call("DELETE", f"/v1/suppressions/{entry['id']}").status == 204
    marker = "marker@example.org"
    bounces.producer.publish([old, bounce("email", "hard_bounce", marker)])
    until(lambda: len(bounces.listed("email", marker)) == 1, 15, "the replay judged")
    assert bounces.listed("email", address) == []
    assert bounces.outbox_of("email", address) == 2  # the suppression and its tombstone
    bounces.producer.publish([bounce("email", "hard_bounce", address)])
    until(lambda: bounces.published("email", address) == ["hard_bounce", None, "hard_bounce"], 15, "suppressed anew")


def test_what_a_person_suppressed_keeps_its_reason_and_one_that_expired_does_not(bounces: Bounces) -> None:
    own = {"channel": "email", "address": "own@example.org", "reason": "complaint"}
    expired = {**own, "address": "expired@example.org", "expires_at": "2020-01-01T00:00:00Z"}
    for body in (own, expired):
        assert bounces.api.call("POST", "/v1/suppressions", body).status == 201
    bounces.producer.publish([bounce("email", "hard_bounce", str(body["address"])) for body in (own, expired)])
    until(lambda: bounces.listed("email", "expired@example.org")[0]["reason"] == "hard_bounce", 15, "suppressed anew")
    assert bounces.listed("email", "expired@example.org")[0]["expires_at"] is None
    (kept,) = bounces.listed("email", "own@example.org")
    assert (kept["reason"], kept["source"]) == ("complaint", None)


def test_export_of_a_bounce_without_an_address_can_be_imported(bounces: Bounces) -> None:
    address = "moved@example.org"
    bounces.producer.publish([bounce("email", "hard_bounce", address)])
    until(lambda: len(bounces.listed("email", address)) == 1, 15, "suppressed")
    lines = str(bounces.api.call("GET", "/v1/suppressions/export", raw=None).body).splitlines()
    wanted = {"channel": "email", "address_hash": ids.address_hash("email", address), "reason": "hard_bounce"}
    (line,) = [line for line in lines if wanted["address_hash"] in line]
    assert json.loads(line) == wanted
    (entry,) = bounces.listed("email", address)
    bounces.api.call("DELETE", f"/v1/suppressions/{entry['id']}")
    jsonl = {"Content_Type": "application/x-ndjson"}
    done = bounces.api.call("POST", "/v1/suppressions/import", raw=line.encode(), **jsonl)
    assert done.body["imported"] == 1
    assert [found["reason"] for found in bounces.listed("email", address)] == ["hard_bounce"]


def test_account_that_reports_every_address_as_invalid_suppresses_none(bounces: Bounces) -> None:
    addresses = [f"storm-{n}@example.org" for n in range(30)]
    bounces.producer.publish([bounce("email", "hard_bounce", a, provider="misconfigured") for a in addresses])
    time.sleep(2)
    bounces.producer.publish([bounce("email", "hard_bounce", "alone@example.org", provider="mail-1")])
    until(lambda: len(bounces.listed("email", "alone@example.org")) == 1, 15, "our account's bounce suppressed")
    assert [a for a in addresses if bounces.listed("email", a)] == []


def test_an_opt_out_that_a_vendor_reports_holds_for_every_tenant_of_its_account(bounces: Bounces) -> None:
    number = "+4915199900777"
    recipient = f"addr:{ids.address_hash('sms', number)}"
    stop = stop_report("twilio-1", "SM-in-1", "sms", number, None)
    receipt = receipt_of(stop, b"", int(time.time() * 1000), ["default", "other"])
    assert (receipt["tenants"], receipt["recipient"]) == (["default", "other"], recipient)
    bounces.producer.publish([receipt_record(receipt)] * 3)
    until(lambda: bool(bounces.listed("sms", number)), 30, "the suppression")
    (entry,) = bounces.listed("sms", number)
    assert entry["reason"] == "unsubscribe"
    hashed = ids.address_hash("sms", number)
    keys = {f"{tenant}:sms:{hashed}".encode() for tenant in ("default", "other")}
    until(
        lambda: keys <= {record.key for record in bounces.world.records(SUPPRESSIONS)}, 30, "both tenants' suppressions"
    )
    assert bounces.outbox_of("sms", number) == 1

"""The role `callbacks` as a process on a real broker: who may tell, what a crash leaves, what a broker that is away costs;
and a hundred thousand receipts in the real engine, in any order."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from twilio.request_validator import RequestValidator

from local.ports import PortBook
from local.supervisor.layout import to_toml
from producers.callbacks.records import fact_record, receipt_of, receipt_record
from runtime import ids
from runtime.callbacks import AttemptRef, Subject, callback_url
from runtime.kafka.consumer import Consumer
from runtime.kafka.producer import Producer
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import ProviderSettings
from schemas.codec import codec
from schemas.events import ChannelMessage
from schemas.topics import RECEIPTS, REFERENCES, STATUS
from senders.outcomes import Attempt, from_result
from tests.integration.conftest import Broker, until
from tests.integration.test_clickhouse_schema import NOW, Store, request, status
from tests.integration.test_simulator import Simulator
from tests.support.clickhouse import Server
from tests.support.made import RECORD
from tests.support.made import message as any_message
from vendors.registry import create_senders
from vendors.reports import MAX_BODY, DeliveryReport
from vendors.sender import Sent

PUBLIC = "https://notify.shop.example"
SID, OTHER_SID = "AC" + "1" * 32, "AC" + "2" * 32
TOKEN, NEXT_TOKEN, OTHER_TOKEN = "first-token", "next-token", "other-token"
ACCOUNT = """
[[providers]]
name = "{name}"
channel = "sms"
kind = "twilio"
account_sid = "{sid}"
auth_token = "{token}"
from = "+15005550006"
"""


def message(channel: str = "sms", address: str = "+4915112345678", **fields: Any) -> ChannelMessage:
    notification_id = ids.notification_id(time.time_ns() // 1_000_000, "t")
    message_id = ids.message_id(notification_id, channel, ids.address_hash(channel, address))
    return any_message(
        notification_id=notification_id, message_id=message_id, channel=channel, address=address, **fields
    )


@dataclass
class CallbackServer:
    """The role as a process, and what a vendor does with it."""

    broker: Broker
    directory: Path
    ports: PortBook
    public_url: str = PUBLIC
    accounts: str = ""
    """More of the settings file."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = 0
    health: int = 0

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        self.port = self.port or self.ports.reserve("callbacks")
        self.health = self.health or self.ports.reserve("callbacks-health")
        accounts = (("tw", SID, TOKEN), ("tw-next", SID, NEXT_TOKEN), ("other", OTHER_SID, OTHER_TOKEN))
        config = self.directory / "heliograph.toml"
        twilio = "".join(ACCOUNT.format(name=name, sid=sid, token=token) for name, sid, token in accounts)
        config.write_text(twilio + self.accounts)
        process = self.broker.run(
            "callbacks",
            HELIOGRAPH_CONFIG=str(config),
            HELIOGRAPH_CALLBACKS__PORT=str(self.port),
            HELIOGRAPH_CALLBACKS__PUBLIC_URL=self.public_url,
            HELIOGRAPH_METRICS__PORT=str(self.health),
            HELIOGRAPH_CALLBACKS__PUBLISH_TIMEOUT_S="2",
            **env,
        )
        self.processes.append(process)
        until(lambda: self.get("/readyz")[0] == 200, 60, "callbacks ready")
        return process

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except OSError:
            return 0, ""

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The answer's status; 0 when there is none."""
        path = url.removeprefix(self.public_url)
        wanted = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, dict(headers), method="POST")
        try:
            with urllib.request.urlopen(wanted, timeout=20) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def tell(
        self, about: ChannelMessage, status: str = "delivered", token: str = TOKEN, sid: str = SID, **more: str
    ) -> int:
        url = callback_url(f"{self.public_url}/callbacks/twilio", about, "tw")
        form = {
            "AccountSid": sid,
            "MessageSid": "SM" + about["message_id"],
            "MessageStatus": status,
            "To": about["address"],
            **more,
        }
        headers = {
            "X-Twilio-Signature": RequestValidator(token).compute_signature(url, form),
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return self.post(url, urlencode(form).encode(), headers)

    def records_about(self, topic: str, about: ChannelMessage) -> list[dict[str, Any]]:
        """Every record of the topic about a message."""
        name: Any = {RECEIPTS: "ProviderReceipt", STATUS: "DeliveryStatus"}[topic]
        values = [codec(name).decode(record.value) for record in read_all(self.broker, topic)]
        return [value for value in values if value["message_id"] == about["message_id"]]


def read_all(broker: Broker, topic: str) -> list[ConsumerRecord]:
    consumer = Consumer(broker.settings, client_id="reader", group=None)
    partitions = [(topic, partition) for partition in range(4)]
    wanted = {p: end for p, (_, end) in consumer.watermark_offsets(partitions).items()}
    consumer.assign(dict.fromkeys(partitions, -2))
    records: list[ConsumerRecord] = []
    deadline = time.monotonic() + 30
    while len(records) < sum(wanted.values()):
        assert time.monotonic() < deadline
        records += consumer.consume(1_000, 0.2)
    consumer.close()
    return records


@pytest.fixture
def server(broker: Broker, tmp_path: Path) -> Iterator[CallbackServer]:
    ports = PortBook()
    made = CallbackServer(broker, tmp_path, ports)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.wait()
    broker.roles.clear()
    ports.close()


@pytest.mark.kafka
def test_who_may_tell_what_over_a_real_socket(server: CallbackServer) -> None:
    role = server.start()
    first, second, forged = message(), message(), message()
    assert server.tell(first) == 204
    assert server.tell(first) == 204
    assert server.tell(second, "undelivered", token=NEXT_TOKEN, ErrorCode="30003") == 204
    assert server.tell(forged, token="revoked") == 403
    assert server.tell(forged, token=OTHER_TOKEN) == 403
    assert server.tell(forged, sid="AC" + "9" * 32) == 403
    assert server.tell(forged, Body="x" * (MAX_BODY + 1)) == 413
    assert server.post(f"{PUBLIC}/callbacks/twilio", b"{}", {"Content-Type": "application/json"}) == 415
    assert [fact["state"] for fact in server.records_about(STATUS, first)] == ["delivered"]
    assert [(r["provider"], r["state"]) for r in server.records_about(RECEIPTS, first)] == [("tw", "delivered")]
    assert [(fact["state"], fact["reason"]) for fact in server.records_about(STATUS, second)] == [
        ("undelivered", "carrier")
    ]
    assert (server.records_about(STATUS, forged), server.records_about(RECEIPTS, forged)) == ([], [])
    _, metrics = server.get("/metrics")
    counts = {
        outcome: f'heliograph_callbacks_total{{outcome="{outcome}",vendor="twilio"}} {count}.0' in metrics
        for outcome, count in {"stated": 2, "repeated": 1, "forged": 2, "unknown_account": 1, "malformed": 2}.items()
    }
    assert all(counts.values()), (counts, metrics)
    assert server.get("/livez")[0] == 200
    assert urllib_status(f"http://127.0.0.1:{server.port}/metrics") == 404  # not on the public port
    role.terminate()
    assert role.wait(30) == 0


def urllib_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.kafka
@pytest.mark.faults
@pytest.mark.parametrize(("point", "receipts", "statuses"), [("after_receipt", 2, 1), ("before_callback_answer", 2, 2)])
def test_killed_between_receipt_and_status_the_vendors_retry_completes_it(
    server: CallbackServer, point: str, receipts: int, statuses: int
) -> None:
    about = message()
    role = server.start(HELIOGRAPH_CRASH_AT=point)
    assert server.tell(about) == 0
    assert role.wait(30) == -9
    left = [len(server.records_about(RECEIPTS, about)), len(server.records_about(STATUS, about))]
    assert left == [1, statuses - 1]
    server.start()
    assert server.tell(about) == 204
    records_about, stated = server.records_about(RECEIPTS, about), server.records_about(STATUS, about)
    assert (len(records_about), len(stated)) == (receipts, statuses)
    assert len({receipt["event_id"] for receipt in records_about}) == 1
    assert len({fact["event_id"] for fact in stated}) == 1


@pytest.mark.kafka
@pytest.mark.faults
def test_the_simulators_reports_survive_a_killed_role(server: CallbackServer, tmp_path: Path) -> None:
    simulator = Simulator(tmp_path / "simulator").start()
    server.port = server.ports.reserve("callbacks")
    server.public_url = f"http://127.0.0.1:{server.port}"
    role = server.start()
    keys: dict[str, Any] = {
        "name": "tw",
        "channel": "sms",
        "kind": "twilio",
        "base_url": simulator.url,
        "account_sid": SID,
        "auth_token": TOKEN,
        "from": "+15005550006",
        "callback_url": f"{server.public_url}/callbacks/twilio#rc=5&rp=all",
    }
    good, unreachable = message(), message()
    unreachable["address"] = "+15005553003"

    async def send() -> list[Any]:
        (sender,) = create_senders("sms", [ProviderSettings(**keys)])
        await sender.start()
        try:
            return [await sender.send(each) for each in (good, unreachable)]
        finally:
            await sender.close()

    try:
        results = asyncio.run(send())
        assert all(isinstance(result, Sent) for result in results)
        role.kill()
        role.wait()
        time.sleep(2.5)  # every report is due now, and nobody there
        server.start()
        until(lambda: simulator.get("/callbacks")["pending"] == 0, 60, "every report taken")
        assert simulator.get("/callbacks")["answers"].get("undelivered") == {"204": 1}
    finally:
        simulator.stop()
    (delivered,), (undelivered,) = server.records_about(STATUS, good), server.records_about(STATUS, unreachable)
    assert delivered["state"] == "delivered"
    assert (undelivered["state"], undelivered["reason"], undelivered["detail"]) == ("undelivered", "carrier", "30003")
    assert delivered["provider_message_id"] == results[0].provider_message_id
    assert {receipt["state"] for receipt in server.records_about(RECEIPTS, good)} >= {"delivered", "sent"}


SECRET = "simulator-secret-of-20-characters"
TOPIC = "arn:aws:sns:eu-central-1:123456789012:ses-events"
MAIL_ENDS = {
    "delivered": {"delivered"},
    "bounce": {"bounced"},
    "dropped": {"undelivered"},
    "complaint": {"delivered", "complained"},
    "unsubscribe": {"delivered", "unsubscribed"},
    "click": {"delivered", "opened", "clicked"},
}
TEXT_ENDS = {"+4915112345678": {"delivered"}, "+15005553003": {"bounced"}}
"""How a mail to `word+x@…`, and a text to a number, end at the simulator."""
REPORTING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sendgrid": ("email", "", {"api_key": "k", "from_address": "a@shop.example"}),
    "mailgun": (
        "email",
        SECRET,
        {"api_key": "k", "domain": "mg.shop.example", "from_address": "a@shop.example", "signing_key": SECRET},
    ),
    "ses": (
        "email",
        TOPIC,
        {
            "region": "eu-central-1",
            "access_key": "A",
            "secret_key": "s",
            "from_address": "a@shop.example",
            "topic_arns": [TOPIC],
        },
    ),
    "vonage": (
        "sms",
        SECRET,
        {"key": "k", "secret": "s", "from": "Shop", "signature": {"method": "sha256", "secret": SECRET}},
    ),
    "bulksms": ("sms", "", {"key": "k", "secret": "s", "callback_secret": SECRET}),
    "onesignal": ("push", "", {"app_id": "a", "api_key": "k", "callback_secret": SECRET}),
}
"""Channel, what the simulator signs with, and the account's keys."""
UNSIGNED = ("bulksms", "onesignal")


@pytest.mark.kafka
@pytest.mark.faults
@pytest.mark.parametrize("kind", REPORTING)
def test_reports_come_back_signed_tripled_and_out_of_order(kind: str, server: CallbackServer, tmp_path: Path) -> None:
    channel, secret, keys = REPORTING[kind]
    simulator = Simulator(tmp_path / "simulator").start()
    server.port = server.ports.reserve("callbacks")
    url = f"http://127.0.0.1:{server.port}/callbacks/{kind}" + (f"/{SECRET}" if kind in UNSIGNED else "")
    target = {"url": url, "secret": secret, "copies": 3, "late_s": 3}
    keys = {**keys, "base_url": simulator.url, **simulator.put(f"/callbacks/{kind}", target)}
    ends = {f"{word}+1@example.test": states for word, states in MAIL_ENDS.items()}
    if channel != "email":
        ends = {"a-subscription": {"delivered"}} if channel == "push" else dict(TEXT_ENDS)
    if kind == "bulksms":
        ends["+15005553003"] = {"undelivered"}
    sent = {
        address: message(channel, address, text="T", subject="S", body="B", platform="onesignal") for address in ends
    }

    async def send() -> None:
        (sender,) = create_senders(channel, [ProviderSettings(name="p", channel=channel, kind=kind, **keys)])
        await sender.start()
        try:
            for each in sent.values():
                result = await sender.send(each)
                assert isinstance(result, Sent)
                # As the sender's worker does: with a reference, where the vendor brings nothing of ours back.
                outcome = from_result(Attempt(each, RECORD, NOW, "p"), result, jitter=0.5, max_retries=1)
                producer.publish([record for record in outcome.records if record.topic == REFERENCES])
        finally:
            await sender.close()

    try:
        server.accounts = to_toml({"providers": [{"name": "p", "channel": channel, "kind": kind, **keys}]})
        role = server.start()
        producer = Producer(server.broker.settings, client_id="sender")
        asyncio.run(send())
        producer.close()
        time.sleep(1.5)  # the first are taken, the others are due
        role.kill()
        role.wait()
        server.start()
        until(lambda: simulator.get("/callbacks")["pending"] == 0, 60, "every report taken")
        answers = {code for each in simulator.get("/callbacks")["answers"].values() for code in each}
        assert answers == {"200" if kind == "mailgun" else "204"}
    finally:
        simulator.stop()
    for address, states in ends.items():
        facts = server.records_about(STATUS, sent[address])
        wanted = states | {"sent"} if channel == "email" else states  # only they have a word for it
        assert {fact["state"] for fact in facts} == wanted, address
        assert len({fact["event_id"] for fact in facts}) == len(wanted)
        assert {fact["provider"] for fact in facts} == {"p"}
        assert all(abs(fact["occurred_at"] / 1000 - time.time()) < 60 for fact in facts)


@pytest.mark.kafka
@pytest.mark.faults
def test_while_the_broker_is_down_nothing_is_confirmed_and_the_retry_lands(server: CallbackServer) -> None:
    server.start()
    before, during = message(), message()
    assert server.tell(before) == 204
    server.broker.process.kill()
    server.broker.process.wait()
    try:
        assert server.tell(during) == 503
    finally:
        server.broker.start()
    until(lambda: server.tell(during) == 204, 60, "the retry taken")
    assert {fact["state"] for fact in server.records_about(STATUS, during)} == {"delivered"}
    assert len({fact["event_id"] for fact in server.records_about(STATUS, during)}) == 1
    assert len(server.records_about(STATUS, before)) == 1


@pytest.mark.kafka
def test_without_its_public_address_the_role_says_what_is_missing(broker: Broker, tmp_path: Path) -> None:
    role = broker.run("callbacks", HELIOGRAPH_CONFIG="", HELIOGRAPH_CALLBACKS__PORT="0")
    assert role.wait(60) == 1
    broker.roles.remove(role)
    assert "HELIOGRAPH_CALLBACKS__PUBLIC_URL" in (broker.directory / "callbacks.log").read_text()


# ---------------------------------------------------------------- a hundred thousand receipts

MESSAGES = 49_000
VIEWS = (
    "delivery_events",
    "receipts",
    "message_state",
    "notification_state",
    "v_accounting",
    "v_funnel",
    "v_failures",
    "v_provider_scorecard",
    "v_latency",
)
ENDS = [("delivered", None)] * 17 + [("undelivered", "carrier")] * 2 + [("bounced", "invalid_number")]


def as_read(record: ProducerRecord) -> ConsumerRecord:
    return ConsumerRecord(record.topic, 0, 0, 0, record.key, record.value)


def records_about(
    attempt_ref: AttemptRef, sid: str, state: str, reason: str | None, at: int, final: bool = True
) -> list[ConsumerRecord]:
    about = Subject(attempt_ref.message_id, attempt_ref)
    report = DeliveryReport("tw", sid, f"{sid}:{state}", "sms", state, reason, final=final, subject=about)
    records = [receipt_record(receipt_of(report, b"raw", at))]
    return [as_read(record) for record in [*records, *([fact_record(report, attempt_ref, at)] if final else [])]]


def facts_of_a_day(rng: random.Random) -> tuple[list[ConsumerRecord], dict[str, int]]:
    """Requests, what we did, what the vendor told: in the order in which they happened; and the wanted states."""
    facts: list[ConsumerRecord] = []
    wanted: Counter[str] = Counter()
    for number in range(MESSAGES):
        nid = ids.notification_id(NOW - rng.randrange(60_000, 20 * 3_600_000), "t")
        attempt_ref = AttemptRef(nid, ids.message_id(nid, "sms", "x"), "t", "normal", 1)
        sid, accepted = f"SM{number}", ids.accepted_at(nid)
        facts += [request(nid), status(nid, "sms", "routed", after=5)]
        facts.append(
            status(nid, "sms", "sent", attempt=1, after=30, provider="tw", provider_message_id=sid, latency_ms=20)
        )
        facts += records_about(attempt_ref, sid, "sent", None, accepted + 400, final=False)
        state, reason = rng.choice(ENDS)
        facts += records_about(attempt_ref, sid, state, reason, accepted + 2_000)
        if state == "delivered" and number % 20 == 0:  # legal, and the last word
            state = "bounced"
            facts += records_about(attempt_ref, sid, state, "invalid_number", accepted + 9_000)
        wanted[state] += 1
    return facts, dict(wanted)


def answers(store: Store) -> dict[str, list[str]]:
    # When a row was stored differs, of course.
    return {view: sorted(map(repr, store.rows(f"SELECT * EXCEPT (stored_at) FROM {view}"))) for view in VIEWS}


@pytest.mark.clickhouse
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_receipts_in_any_order_end_as_in_order(tmp_path: Path) -> None:
    rng = random.Random(11)
    facts, wanted = facts_of_a_day(rng)
    assert sum(fact.topic == RECEIPTS for fact in facts) >= 100_000
    server = Server(tmp_path / "data").start()
    try:
        ordered, shuffled = Store(server, "ordered"), Store(server, "shuffled")
        for start in range(0, len(facts), 50_000):
            ordered.insert(facts[start : start + 50_000])
        reports = [fact for fact in facts if fact.topic == RECEIPTS or fact.key is not None]
        ours = [fact for fact in facts if fact.topic != RECEIPTS and fact.key is None]
        again = [*facts, *rng.choices(reports, k=30_000)]
        rng.shuffle(again)
        late, early = set(rng.sample(range(len(reports)), 5_000)), reports[::9]
        shuffled.insert(early)  # before the requests they are about
        for start in range(0, len(again), 37_013):
            shuffled.insert(again[start : start + 37_013])
            if start == 37_013 * 3:
                shuffled.merge()
        shuffled.insert([reports[index] for index in late])
        assert len(ours) == 3 * MESSAGES
        expected = answers(ordered)
        found = answers(shuffled)
        for view in VIEWS:
            assert found[view] == expected[view], view
        shuffled.merge()
        check_states(shuffled, wanted)
        check_states(ordered, wanted)
        # Heard again after a 503: the same ids, another time. No state moves.
        attempt_ref_of = {fact.key: fact for fact in reports if fact.topic == STATUS}
        heard = [later(fact) for fact in rng.sample(list(attempt_ref_of.values()), 5_000)]
        states = "SELECT message_id, state, reason, provider, attempts, possible_duplicate FROM message_state"
        before = sorted(map(repr, shuffled.rows(states)))
        shuffled.insert(heard)
        assert sorted(map(repr, shuffled.rows(states))) == before
        check_states(shuffled, wanted)
    finally:
        assert server.stop() == 0


def later(fact: ConsumerRecord) -> ConsumerRecord:
    value = codec("DeliveryStatus").decode(fact.value)
    return fact._replace(value=codec("DeliveryStatus").encode({**value, "occurred_at": value["occurred_at"] + 1_000}))


def check_states(store: Store, wanted: dict[str, int]) -> None:
    counts = {state: int(n) for state, n in store.rows("SELECT state, count() FROM message_state GROUP BY state")}
    assert counts == wanted
    ((accepted, in_flight, residual),) = store.rows(
        "SELECT sum(accepted), sum(in_flight), sum(residual) FROM v_accounting"
    )
    assert (accepted, in_flight, residual) == (MESSAGES, 0, 0)

"""Whatever a topic may hold is ordinary to every consumer of ours, under both engines of the router.

One history on every topic that strangers or other clients can write to: header names that are no text, every codec, null
keys and values, rubbish, timestamps of 1970 and of far away, transactions that were committed, aborted or are still open. What is a
record has its effect, what is rubbish is one letter, what was aborted never happened, and nobody ends or stays behind.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from processors.groups import router_group
from producers.reference.feedback_consumer import GROUP as FEEDBACK_GROUP
from runtime import ids
from runtime.kafka import consumer as kafka_consumer
from runtime.kafka.admin import Admin
from runtime.kafka.client import Partition
from runtime.kafka.consumer import BEGINNING, Consumer
from runtime.lag import unread
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.status import message_status
from runtime.views import View
from schemas.codec import codec, iter_examples
from schemas.topics import (
    DEAD_LETTERS,
    RECEIPTS,
    RECIPIENTS,
    STATUS,
    TIMERS,
    catalogue,
    dispatch_topic,
    ledger_topic,
    requests_topic,
)
from sinks.role import GROUP as SINK_GROUP
from tests.integration.conftest import until
from tests.integration.pipeline import World, world
from tests.integration.reference_stack import Postgres, postgres
from tests.integration.test_clickhouse_schema import NOW, Store
from tests.support.batches import CODECS, Raw, produce, transaction
from tests.support.clickhouse import Server
from tests.support.made import message

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]
__all__ = ["postgres", "world"]

UNREADABLE = ((b"\xff\xfe", b"v"), (b"traceparent", b"x" * 55))
FAR = 4_102_444_800_000 + 123
GOOD = 3 * len(CODECS) + 2
"""Records of a history that are some, and so have their effect."""


@dataclass
class History:
    """What was written to partition 0 of a topic, and which of it is rubbish."""

    topic: str
    rubbish: set[int] = field(default_factory=set)


def write(servers: str, topic: str, good: Sequence[Raw], never: Raw) -> History:
    """The history, of GOOD records and one that is only ever aborted."""
    left, history = iter(good), History(topic)
    if topic != requests_topic("normal"):  # there the very first record is one, at offset 0
        transaction(servers, topic, 0, [never] * 3, commit=False)
    produce(servers, topic, 0, [next(left)])
    transaction(servers, topic, 0, [never] * 3, commit=False)  # behind the very first record
    for compressed in CODECS:
        first, second, third = next(left), next(left), next(left)
        # Kafka itself refuses a null key where it compacts.
        keyless = [] if "compact" in catalogue()[topic].policy else [Raw(None, None, UNREADABLE, FAR)]
        records = [
            Raw(first.key, first.value, UNREADABLE),
            Raw(b"rubbish", b"\0\0\0\0\x01rubbish", UNREADABLE, 1),
            *keyless,
            Raw(second.key, second.value, (), 1),
            Raw(third.key, third.value, ((b"", None), (b"x", b"y")), FAR),
        ]
        offset = produce(servers, topic, 0, records, compressed)
        history.rubbish |= {offset + 1 + n for n in range(1 + len(keyless))}
    transaction(servers, topic, 0, [next(left)], commit=True)
    transaction(servers, topic, 0, [never] * 3, commit=False)
    return history


def request(name: str, lane: str) -> tuple[str, ProducerRecord]:
    now = int(time.time() * 1000)
    nid = ids.notification_id(now, "t")
    made = {
        "notification_id": nid,
        "tenant": "t",
        "accepted_at": now,
        "category": "default",
        "addresses": [{"channel": "email", "value": f"{name}@example.org"}],
        "content": b'{"subject": "s", "text": "t"}',
    }
    return nid, ProducerRecord(requests_topic(lane), f"t:{name}".encode(), codec("NotificationRequest").encode(made))


def timer(record: ProducerRecord) -> Raw:
    timer_id = ids.timer_id("00000000-0000-0000-0000-000000000001", record.key.decode() if record.key else "")
    made = {
        "timer_id": timer_id,
        "due_at": 1,
        "purpose": "schedule",
        "topic": record.topic,
        "key": record.key,
        "headers": [],
        "value": record.value,
    }
    return Raw(timer_id.encode(), codec("Timer").encode(made))


@dataclass
class Held:
    """The stack after the histories: what was wanted, and who runs."""

    world: World
    store: Store
    roles: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)
    wanted: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Notification ids by what they came through."""
    never: set[str] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)

    def hold(self, topic: str, make: Callable[[str], Raw]) -> None:
        short = topic.removeprefix("notify.").removesuffix(".v1")
        good = [make(f"{short}-{n}") for n in range(GOOD)]
        self.histories[topic] = write(self.world.broker.bootstrap_servers, topic, good, make(f"{short}-never"))

    def noted(self, through: str, name: str, lane: str = "normal") -> ProducerRecord:
        nid, record = request(name, lane)
        (self.never.add if name.endswith("never") else self.wanted[through].add)(nid)
        return record

    def lag(self, group: str, topics: Sequence[str]) -> int:
        admin = Admin(self.world.broker.settings)
        return sum(unread(admin, *admin.group_offsets(group, topics)).values())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def held(world: World, postgres: Postgres, server: Server) -> Iterator[Held]:
    made = Held(world, Store(server, "held"))
    settings = world.broker.settings
    far = {"message.timestamp.after.max.ms": str((1 << 63) - 1)}
    Admin(settings).alter_configs(dict.fromkeys(catalogue(), far))
    time.sleep(1)  # the broker answers before it takes the change in

    def raw(record: ProducerRecord) -> Raw:
        return Raw(record.key, record.value)

    def mail(name: str) -> Raw:
        nid = ids.notification_id(int(time.time() * 1000), "t")
        one = {
            **message(),
            "notification_id": nid,
            "tenant": "t",
            "channel": "email",
            "lane": "critical",
            "address": f"{name}@example.org",
            "subject": "s",
            "text": "t",
            "expires_at": None,
        }
        one["message_id"] = ids.message_id(nid, "email", ids.address_hash("email", str(one["address"])))
        (made.never.add if name.endswith("never") else made.wanted["dispatch"].add)(nid)
        return Raw(f"t:{name}".encode(), codec("ChannelMessage").encode(one))

    def status_of(name: str) -> Raw:
        nid = ids.notification_id(1_790_000_000_000, "t", name)
        status = message_status({**message(), "notification_id": nid, "tenant": "t"}, "sent", now=1, attempt=1)
        return Raw(nid.encode(), codec("DeliveryStatus").encode({**status, "event_id": ids.event_id(nid, name)}))

    def entry(name: str) -> Raw:
        one = ids.message_id("00000000-0000-0000-0000-000000000001", "email", name)
        value = {"message_id": one, "next_attempt": 2, "state": "sent", "recorded_at": int(time.time() * 1000)}
        return Raw(one.encode(), codec("LedgerEntry").encode(value))

    def profile(name: str) -> Raw:
        example = next(record for _, _, kind, record in iter_examples() if kind == "RecipientProfile")
        return Raw(f"t:{name}".encode(), codec("RecipientProfile").encode({**example, "tenant": "t", "user_id": name}))

    def report(name: str) -> Raw:
        value = {
            "event_id": ids.receipt_id("p", name, ""),
            "provider": "p",
            "provider_message_id": name,
            "message_id": None,
            "state": "delivered",
            "reason": None,
            "code": None,
            "occurred_at": NOW,
            "received_at": NOW,
            "raw": b"",
        }
        return Raw(name.encode(), codec("ProviderReceipt").encode(value))

    made.hold(requests_topic("normal"), lambda name: raw(made.noted("faust", name)))
    made.hold(requests_topic("bulk"), lambda name: raw(made.noted("loop", name, "bulk")))
    made.hold(TIMERS, lambda name: timer(made.noted("timers", name)))
    made.hold(dispatch_topic("email", "critical"), mail)
    made.hold(STATUS, status_of)
    made.hold(RECEIPTS, report)
    made.hold(ledger_topic("email", "critical"), entry)
    made.hold(RECIPIENTS, profile)
    click = {"HELIOGRAPH_CLICKHOUSE__URL": f"http://127.0.0.1:{server.port}", "HELIOGRAPH_CLICKHOUSE__DATABASE": "held"}
    made.roles = {
        "router under Faust": world.run("router", "--lane", "normal", HELIOGRAPH_ROUTER__ENGINE="faust"),
        "router under the loop": world.run("router", "--lane", "bulk", HELIOGRAPH_ROUTER__ENGINE="loop"),
        "timers": world.run("timers"),
        "sender": world.run("sender", "--channel", "email"),
        "sink": world.run("sink", **click),
        "relay": world.run("relay", HELIOGRAPH_POSTGRES__DSN=postgres.dsn),
    }
    yield made
    world.broker.stop_roles()


@pytest.mark.parametrize("through", ["faust", "loop", "timers", "dispatch"])
def test_valid_records_are_sent_whatever_is_beside_them(held: Held, through: str) -> None:
    wanted = held.wanted[through]
    assert len(wanted) == GOOD
    until(
        lambda: sum("sent" in s for s in held.world.settled(wanted).values()) == GOOD, 60, f"all sent through {through}"
    )


def test_every_group_reads_to_the_end_and_no_role_ends(held: Held) -> None:
    groups = {
        router_group("normal"): [requests_topic("normal")],
        router_group("bulk"): [requests_topic("bulk")],
        "heliograph-sender-email": [dispatch_topic("email", "critical")],
        FEEDBACK_GROUP: [STATUS],
        SINK_GROUP: [requests_topic("normal"), requests_topic("bulk"), STATUS, RECEIPTS],
    }
    for group, topics in groups.items():
        until(lambda group=group, topics=topics: held.lag(group, topics) == 0, 30, f"{group} at the end")  # type: ignore[misc]
    # Those that commit their position have committed it past what is no record, too.
    for group, topics in ((router_group("bulk"), [requests_topic("bulk")]), (SINK_GROUP, [RECEIPTS])):
        until(
            lambda group=group, topics=topics: (
                not any(  # type: ignore[misc]
                    Admin(held.world.broker.settings).group_offsets(group, topics)[1].values()
                )
            ),
            20,
            f"{group} committed to the very end",
        )
    assert {name: role.poll() for name, role in held.roles.items()} == dict.fromkeys(held.roles)


def test_what_was_aborted_never_happened(held: Held) -> None:
    assert held.world.statuses(held.never) == {}
    assert not held.world.accepted("smtp", "never")


@pytest.mark.parametrize(
    "topic",
    [
        requests_topic("normal"),
        requests_topic("bulk"),
        TIMERS,
        dispatch_topic("email", "critical"),
        STATUS,
        RECEIPTS,
        ledger_topic("email", "critical"),
    ],
)
def test_invalid_record_is_one_dead_letter_whichever_stage_reads_it(held: Held, topic: str) -> None:
    wanted = held.histories[topic].rubbish

    def dead_letters() -> dict[int, set[str]]:
        found: dict[int, set[str]] = defaultdict(set)
        for record in held.world.read_all(DEAD_LETTERS):
            dead_letter = codec("DeadLetter").decode(record.value)
            if dead_letter["topic"] == topic:
                found[dead_letter["offset"]].add(dead_letter["dead_letter_id"])
        return found

    until(lambda: dead_letters().keys() >= wanted, 30, f"the letters about {topic}")
    assert {offset: len(each) for offset, each in dead_letters().items()} == dict.fromkeys(wanted, 1)


def test_the_sink_has_a_row_of_every_record_and_of_no_other(held: Held) -> None:
    store = held.store
    until(lambda: store.rows("SELECT count() FROM receipts FINAL")[0][0] == GOOD, 30, "the receipts")
    lanes = dict(store.rows("SELECT lane, uniqExact(notification_id) FROM requests_raw GROUP BY lane"))
    assert lanes["bulk"] == GOOD
    assert lanes["normal"] == 2 * GOOD  # and those that timers brought


def test_a_view_has_every_record_and_no_other(held: Held) -> None:
    view: View[Any] = View(held.world.broker.settings, RECIPIENTS)
    view.start()
    try:
        until(lambda: view.not_ready() is None, 20, "the view")
        assert all(f"t:recipients-{n}" in view for n in range(GOOD))
        assert "t:recipients-never" not in view
    finally:
        view.close()


@pytest.mark.parametrize("runs", [False, True], ids=["records", "runs"])
def test_header_names_that_are_no_text_cost_the_headers_and_nothing_else(held: Held, runs: bool) -> None:
    """As often as the interpreter needs to take shortcuts around the check of a call."""
    servers, partition = held.world.broker.bootstrap_servers, (requests_topic("critical"), 3)
    kept = ((b"ok", b"1"), (b"n", None))
    good, bad = Raw(b"k", b"rubbish", kept), Raw(b"k", b"rubbish", (*kept, *UNREADABLE, *kept))
    produce(servers, *partition, [good, bad] * 2_000)
    consumer = Consumer(held.world.broker.settings, client_id="headers", group=None, detect_eof=True)
    consumer.assign({partition: BEGINNING})
    records: list[ConsumerRecord] = []
    while partition not in consumer.eof_partitions:
        if runs:
            for run in consumer.consume_batches(500, 0.2):
                records += [run.record(n) for n in range(len(run.values)) for _ in range(2)][::2]
        else:
            records += consumer.consume(500, 0.2)
    consumer.close()
    assert len(records) >= 4_000
    assert [tuple(r.headers) for r in records[:4]] == [(("ok", b"1"), ("n", None)), ()] * 2
    assert sum(not record.headers for record in records) == len(records) / 2


@pytest.mark.parametrize("ending", ["committed", "aborted", "open"])
def test_a_transaction_at_the_end_is_no_stall(held: Held, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    servers, topic = held.world.broker.bootstrap_servers, requests_topic("critical")
    partition: Partition = (topic, ("committed", "aborted", "open").index(ending))
    record = Raw(b"k", b"rubbish")
    produce(servers, topic, partition[1], [record])
    consumer = Consumer(held.world.broker.settings, client_id="silent", group=None)
    consumer.assign({partition: BEGINNING})
    until(lambda: bool(consumer.consume(10, 0.2)), what="the record")

    def end() -> int:
        return consumer.watermark_offsets([partition])[partition][1]

    if ending == "open":
        other_publisher = confluent_kafka.Producer({"bootstrap.servers": servers, "transactional.id": "open"})
        other_publisher.init_transactions(10)
        other_publisher.begin_transaction()
        other_publisher.produce(topic, record.value, record.key, partition[1])
        other_publisher.flush(10)
    else:
        transaction(servers, topic, partition[1], [record], commit=ending == "committed", name=ending)

        def passed() -> bool:
            consumer.consume(10, 0.1)
            return consumer.position(partition) == end()

        until(passed, 20, "past the marker")

    def ended(code: int) -> None:
        raise AssertionError(f"ended with {code}")

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(kafka_consumer, "STALL_CHECK_S", 0.2)
    until_then = time.monotonic() + 2
    while time.monotonic() < until_then:
        consumer.consume(10, 0.1)
    admin = Admin(held.world.broker.settings)
    assert admin.held_back([topic]) == ({partition: 1} if ending == "open" else {})
    if ending != "open":
        assert consumer.progress()[partition] == end()
        assert admin.with_records({partition: end() - 1}) == set()
    else:
        other_publisher.abort_transaction(10)
    consumer.close()


def test_logs_are_kept_for_whoever_looks(held: Held) -> None:
    """No process has crashed in between and come back: each has started once."""
    logs: list[Path] = list(held.world.broker.directory.glob("*.log"))
    assert not [log.name for log in logs if "Traceback" in log.read_text(errors="replace")]

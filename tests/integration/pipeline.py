"""A broker, the simulator and the roles as processes: fixtures for the tests of the pipeline and of its mutants."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from local.ports import PortBook
from local.supervisor.layout import to_toml
from runtime import ids
from runtime.kafka.consumer import BEGINNING, Consumer
from runtime.kafka.producer import Producer
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import KafkaSettings, ProviderSettings
from schemas.codec import DecodeError, codec
from schemas.events import ChannelMessage, states
from schemas.topics import RECIPIENTS, STATUS, TEMPLATES, dispatch_topic, requests_topic
from tests.integration.conftest import Broker, until


class StatusReader:
    """Every status event of the topic, read on as it grows."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.events: dict[str, list[dict[str, Any]]] = {}
        self._consumer = Consumer(settings, client_id="test-status", group=None)
        self._consumer.assign(dict.fromkeys(self._consumer.partitions_for_topic(STATUS), BEGINNING))

    def read(self) -> None:
        while records := self._consumer.consume(5_000, 0.2):
            for record in records:
                try:
                    status = codec("DeliveryStatus").decode(record.value)
                except DecodeError:
                    continue  # another test's poison record
                self.events.setdefault(status["notification_id"], []).append(status)

    def close(self) -> None:
        self._consumer.close()


@dataclass
class World:
    """A broker, a simulator and the reference data of the tests."""

    broker: Broker
    simulator: str
    config: Path
    producer: Producer
    status_reader: StatusReader

    @property
    def port(self) -> int:
        """Where the vendors over HTTP are."""
        return int(self.simulator.rpartition(":")[2])

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.simulator + path, timeout=10) as response:
            return json.load(response)

    def fault(self, **fault: Any) -> None:
        body = json.dumps(fault).encode()
        request = urllib.request.Request(
            self.simulator + "/faults", body, {"Content-Type": "application/json"}, method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()

    def clear_faults(self) -> None:
        urllib.request.urlopen(urllib.request.Request(self.simulator + "/faults", method="DELETE"), timeout=10).close()

    def accepted(self, kind: str, prefix: str) -> Counter[str]:
        """Accepts per recipient of this test, by the provider's own log."""
        entries = self.get(f"/accepted?kind={kind}&limit=100000")
        return Counter(entry["to"] for entry in entries if prefix in entry["to"])

    @contextmanager
    def accounts(self, providers: Sequence[ProviderSettings]) -> Iterator[None]:
        """Roles that start meanwhile have these accounts and no others; they and the vendors' faults are gone afterwards."""
        before = self.config.read_text()
        made = [provider.model_dump(mode="json", exclude_none=True) for provider in providers]
        self.config.write_text(to_toml({"providers": made}))
        try:
            yield
        finally:
            self.broker.stop_roles()
            self.clear_faults()
            self.config.write_text(before)

    def dispatch(self, messages: Iterable[ChannelMessage]) -> None:
        """Put messages on their dispatch topics, as the router does."""
        self.publish(
            [
                ProducerRecord(
                    dispatch_topic(message["channel"], message["lane"]),
                    f"t:{message['address']}".encode(),
                    codec("ChannelMessage").encode(message),
                )
                for message in messages
            ]
        )

    def run(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        return self.broker.run(*arguments, HELIOGRAPH_CONFIG=str(self.config), **env)

    def publish(self, records: list[ProducerRecord]) -> None:
        self.producer.publish(records)

    def read_all(self, topic: str) -> list[ConsumerRecord]:
        consumer = Consumer(self.broker.settings, client_id="test", group=None, detect_eof=True)
        partitions = consumer.partitions_for_topic(topic)
        consumer.assign(dict.fromkeys(partitions, BEGINNING))
        records: list[ConsumerRecord] = []
        while not consumer.eof_partitions.issuperset(partitions):
            records += consumer.consume(5_000, 0.5)
        consumer.close()
        return records

    def ends(self, topic: str) -> dict[tuple[str, int], int]:
        """The offset after the last record, by partition."""
        consumer = Consumer(self.broker.settings, client_id="test-ends", group=None)
        ends = {p: end for p, (_, end) in consumer.watermark_offsets(consumer.partitions_for_topic(topic)).items()}
        consumer.close()
        return ends

    def statuses(self, notification_ids: set[str]) -> dict[str, list[dict[str, Any]]]:
        """Status events so far, by notification."""
        self.status_reader.read()
        return {nid: self.status_reader.events[nid] for nid in notification_ids if nid in self.status_reader.events}

    def sent_messages(self, notification_ids: set[str]) -> set[str]:
        """Messages said to be sent."""
        reported = self.statuses(notification_ids).values()
        return {s["message_id"] for events in reported for s in events if s["state"] == "sent"}

    def settled(self, notification_ids: set[str]) -> dict[str, set[str]]:
        return {
            nid: {s["state"] for s in events if s["state"] in states().settled}
            for nid, events in self.statuses(notification_ids).items()
        }


@pytest.fixture(scope="module")
def world(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
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
            "--data-dir",
            str(directory / "simulator"),
            "--maildir",
            str(directory / "maildir"),
        ],
        stderr=log,
    )
    config = directory / "heliograph.toml"
    config.write_text(f"""
[[providers]]
name = "mail"
channel = "email"
kind = "smtp"
host = "127.0.0.1"
port = {smtp}
tls = "none"
timeout_s = 5
from_address = "Heliograph <no-reply@example.org>"
[[providers]]
name = "text"
channel = "sms"
kind = "twilio"
base_url = "http://127.0.0.1:{http}"
account_sid = "AC{"0" * 32}"
auth_token = "simulator"
from = "+15005550006"
callback_url = "http://127.0.0.1:{http}/callbacks"
timeout_s = 5
[[providers]]
name = "push"
channel = "push"
kind = "fcm"
base_url = "http://127.0.0.1:{http}"
credentials_file = "simulator/fcm-credentials.json"
timeout_s = 5
""")
    producer = Producer(broker.settings, client_id="test")
    made = World(broker, f"http://127.0.0.1:{http}", config, producer, StatusReader(broker.settings))

    def simulator_ready() -> bool:
        try:
            return bool(made.get("/readyz"))
        except OSError:
            return False

    until(simulator_ready, what="simulator")
    channels = {
        "email": {"subject": "Hi {{ n }}", "text": "T"},
        "sms": {"text": "n {{ n }}"},
        "push": {"title": "n", "body": "b"},
    }
    template = {
        "tenant": "t",
        "template_id": "hello",
        "version": 1,
        "category": "default",
        "channels": json.dumps(channels).encode(),
        "locales": b"{}",
        "variables": ["n"],
        "updated_at": 1,
    }
    producer.publish([ProducerRecord(TEMPLATES, b"t:hello", codec("Template").encode(template))])
    yield made
    broker.stop_roles()
    made.status_reader.close()
    producer.close()
    simulator.terminate()
    simulator.wait(10)
    log.close()
    book.close()


def profiles(prefix: str, count: int) -> list[ProducerRecord]:
    made = []
    for n in range(count):
        profile: dict[str, Any] = {
            "tenant": "t",
            "user_id": f"{prefix}{n}",
            "name": None,
            "email": f"{prefix}{n}@example.org",
            "phone": f"+4915{n:09d}",
            "locale": None,
            "time_zone": None,
            "devices": [{"platform": "fcm", "token": f"{prefix}{n}", "subscription": None}],
            "channels": {},
            "categories": {},
            "version": 1,
            "updated_at": 1,
        }
        made.append(ProducerRecord(RECIPIENTS, f"t:{prefix}{n}".encode(), codec("RecipientProfile").encode(profile)))
    return made


def requests(prefix: str, count: int, lane: str = "normal", **fields: Any) -> tuple[list[ProducerRecord], set[str]]:
    now = int(time.time() * 1000)
    records, made = [], set()
    for n in range(count):
        nid = ids.notification_id(now, "t", f"{prefix}{n}")
        made.add(nid)
        request = {
            "notification_id": nid,
            "tenant": "t",
            "accepted_at": now,
            "user_id": f"{prefix}{n}",
            "template_id": "hello",
            "data": b'{"n": 1}',
            "channels": ["email"],
            **fields,
        }
        value = codec("NotificationRequest").encode(request)
        records.append(ProducerRecord(requests_topic(lane), f"t:{prefix}{n}".encode(), value))
    return records, made

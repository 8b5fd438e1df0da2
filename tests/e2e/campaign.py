"""A campaign with scripted faults on a stack of its own, and the diary of it.

The diary has three sources, none of which is ClickHouse: the list of what was asked for, the vendors' own logs (two simulators, so that
it is known which mail account took a mail), and for times and codes the records of the status topic.
May import the local stack, schemas and the diary. Never: SQL, but to wait for the sink.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from local import stack
from local.ports import LOOPBACK, PortBook
from local.supervisor.layout import TENANT, to_toml
from runtime import ids
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from schemas.codec import codec
from schemas.events import DeliveryStatus, states
from schemas.topics import DEAD_LETTERS, RECIPIENTS, STATUS, requests_topic
from tests.e2e.conftest import Stack
from tests.integration.conftest import until
from tests.integration.pipeline import StatusReader
from tests.integration.reference_stack import read_topic
from tests.support.diary import DAY, HOUR, Diary, Fact, Message, OptOut, Refused, Request

PRICES = {"mail-1": "0.0004", "mail-2": "0.001", "sms-1": "0.0075"}
KINDS = {"email": "smtp", "sms": "twilio", "push": "fcm"}
TEMPLATES = {
    "order-shipped": ("orders", ("email", "push")),
    "spring": ("marketing", ("email",)),
    "code": ("security", ("sms",)),
}
NOT_REACHED = "+15005553003"
"""The simulator reports messages to it as undelivered."""
FULL, BOUNCING, WAITING = "full-", "bounces-", "tok-waits"
"""In the addresses of those whose mailbox is full at mail-1, who do not exist, and whose push has to wait."""
FAULTS: dict[str, tuple[dict[str, Any], ...]] = {
    "mail-1": (
        {"kind": "smtp", "mode": "reject", "match": BOUNCING},
        {"kind": "smtp", "mode": "429", "match": FULL},
        {"kind": "smtp", "mode": "drop_after_accept", "rate": 0.08},
        {"kind": "fcm", "mode": "500", "match": WAITING, "retry_after_s": 900},
        {"kind": "fcm", "mode": "500", "rate": 0.1},
        {"kind": "twilio", "mode": "500", "rate": 0.08},
        {"kind": "twilio", "mode": "500_after_accept", "rate": 0.12},
    ),
    "mail-2": ({"kind": "smtp", "mode": "reject", "match": BOUNCING},),
}
"""By the simulator that stands for the mail account; the first is also the other vendors."""
USERS = 40
LATER = 6 * HOUR


@dataclass(slots=True)
class Asked:
    """One request of ours, and what is to become of its channels."""

    notification_id: str
    user: str
    template: str
    version: int | None
    tags: tuple[str, ...]
    send_at: int | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        return TEMPLATES[self.template][1]


def ask_simulator(url: str, path: str, method: str = "GET", body: Any = None) -> Any:
    """JSON of a simulator's control interface."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, method=method), timeout=30) as response:
        return json.load(response)


@contextmanager
def second_simulator(directory: Path, http_port: int, smtp_port: int) -> Iterator[str]:
    """The vendor of mail-2; its address."""
    command = [sys.executable, "-m", "local.simulator", "--http-port", str(http_port), "--smtp-port", str(smtp_port)]
    url = f"http://{LOOPBACK}:{http_port}"

    def ready() -> bool:
        try:
            return bool(ask_simulator(url, "/readyz"))
        except OSError:
            return False

    with subprocess.Popen(
        [*command, "--data-dir", str(directory / "data"), "--maildir", str(directory / "mail")],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until(ready, what="the second simulator")
            yield url
        finally:
            process.terminate()


def settings(smtp: tuple[int, int], simulator: int, callbacks: int) -> str:
    """Two mail accounts, and Twilio, with prices; push is the stack's own."""
    mail: dict[str, Any] = {
        "channel": "email",
        "kind": "smtp",
        "host": LOOPBACK,
        "tls": "none",
        "from_address": "shop@example.org",
    }
    sms: dict[str, Any] = {
        "name": "sms-1",
        "channel": "sms",
        "kind": "twilio",
        "base_url": f"http://{LOOPBACK}:{simulator}",
        "account_sid": "AC" + "0" * 32,
        "auth_token": "simulator",
        "from": "+15005550006",
        "callback_url": f"http://{LOOPBACK}:{callbacks}/callbacks/twilio",
    }
    accounts = [{"name": f"mail-{number}", **mail, "port": port} for number, port in enumerate(smtp, 1)]
    priced = [
        {**account, "price_per_message": PRICES[str(account["name"])], "currency": "EUR"}
        for account in [*accounts, sms]
    ]
    return to_toml({"callbacks": {"port": callbacks}, "providers": priced})


@contextmanager
def campaign(directory: Path, size: int) -> Iterator[Campaign]:
    """A campaign of so many requests, over."""
    book = PortBook()
    names = ("simulator", "smtp", "callbacks", "second-simulator", "second-smtp")
    ports = {name: book.reserve(name) for name in names}
    book.close()
    config = directory / "heliograph.toml"
    config.write_text(settings((ports["smtp"], ports["second-smtp"]), ports["simulator"], ports["callbacks"]))
    fixed = {name: ports[name] for name in ("simulator", "smtp")}
    with second_simulator(directory / "second", ports["second-simulator"], ports["second-smtp"]) as second:
        started = stack.up(directory / "stack", detach=True, config=config, ports=fixed)
        try:
            yield Campaign(Stack(directory / "stack"), second, size)
        finally:
            stack.down(directory / "stack")
            assert started.process is not None
            started.process.wait(10)


class Campaign:
    """Users, templates and requests, and the diary of them."""

    def __init__(self, running: Stack, second: str, size: int) -> None:
        self.running = running
        self.simulators = {"mail-1": running.endpoints["simulator"], "mail-2": second}
        self.kafka = KafkaSettings(bootstrap_servers=running.endpoints["kafka"])
        self.began = time.time_ns() // 1_000_000
        self.rng = random.Random(size)
        self.out_of_category = {f"u{n}" for n in range(0, USERS, 8)}
        self.out_of_sms = {f"u{n}" for n in range(3, USERS, 10)}
        self.bouncing = {f"u{n}" for n in range(5, USERS, 9)}
        self.full = {f"u{n}" for n in range(6, USERS, 7)} - self.bouncing
        self.unreached = {"u2", "u11"}
        self.asked: list[Asked] = []
        self._status = StatusReader(self.kafka)
        self._users()
        self._templates()
        for account, faults in FAULTS.items():
            for fault in faults:
                ask_simulator(self.simulators[account], "/faults", "POST", fault)
        self._junk()
        self._publish_to_a_suppressed_address()
        self._publish(size)
        until(self._over, 420, "the end of the campaign", lambda: self.unsettled()[:3])
        self._state_late()
        self.events = self._events()
        until(self._stored, 120, "all in ClickHouse", lambda: (self._in_clickhouse(), self._expected()))
        self._status.close()
        self.diary = self._diary()

    # -- what is asked for

    def _call(self, method: str, path: str, body: Any, wanted: int) -> Any:
        code, answer, _ = self.running.call(method, path, body)
        assert code == wanted, answer
        return answer

    def address(self, user: str) -> str:
        """The user's mail address."""
        mark = BOUNCING if user in self.bouncing else FULL if user in self.full else ""
        return f"{mark}{user}@{self.domain(user)}"

    def domain(self, user: str) -> str:
        return "inbox.example" if user in self.bouncing else f"mail{int(user[1:]) % 3}.example"

    def locale(self, user: str) -> str:
        """What is rendered for them where there are German texts."""
        return "de" if int(user[1:]) % 2 else ""

    def _users(self) -> None:
        for number in range(USERS):
            user = f"u{number}"
            self._user(user, NOT_REACHED if user in self.unreached else f"+4915112345{number:02d}0", f"tok-{user}")
            if user in self.out_of_category:
                said: dict[str, Any] = {"channels": {}, "categories": {"marketing": {"email": False}}}
                self._call("PUT", f"/v1/users/{user}/preferences", said, 200)
            if user in self.out_of_sms:
                self._call("PUT", f"/v1/users/{user}/preferences", {"channels": {"sms": False}, "categories": {}}, 200)
        self._user("u100", "+4915112345990", WAITING)

    def _user(self, user: str, phone: str, token: str) -> None:
        body = {
            "id": user,
            "email": self.address(user),
            "phone": phone,
            "devices": [{"platform": "fcm", "token": token}],
            "locale": self.locale(user) or "fr",
        }
        self._call("POST", "/v1/users", body, 201)

    def _templates(self) -> None:
        texts = {
            "email": {"subject": "S {{ n }}", "text": "T {{ n }}"},
            "sms": {"text": "n {{ n }}"},
            "push": {"title": "n", "body": "{{ n }}"},
        }
        for template, (category, channels) in TEMPLATES.items():
            german = {"de": {"email": {"subject": "B {{ n }}", "text": "D {{ n }}"}}} if "email" in channels else {}
            own = {channel: texts[channel] for channel in channels}
            body = {"category": category, "channels": own, "locales": german, "publish": True}
            self._call("POST", "/v1/templates", {"id": template, **body}, 201)
            self._call("POST", f"/v1/templates/{template}/versions", body, 201)

    def _junk(self) -> None:
        producer = Producer(self.kafka, client_id="junk")
        producer.publish([ProducerRecord(requests_topic("normal"), b"junk", b"\xffjunk%d" % n) for n in range(3)])
        producer.close()

    def _publish(self, size: int) -> None:
        for start in range(0, size, 500):
            self._bulk([self._asked(number) for number in range(start, min(start + 500, size))])
        later = (self.began + LATER) // 1000 * 1000
        self._bulk([Asked("", f"u{n}", "spring", None, ("later",), later) for n in range(12, 15)])
        self._bulk([Asked("", "u100", "order-shipped", None, ("waits",)) for _ in range(2)])

    def _publish_to_a_suppressed_address(self) -> None:
        """To one whose address bounces, alone: of the many bounces that follow the brake may let none suppress. Then to it again."""
        self._bulk([Asked("", min(self.bouncing), "order-shipped", None, ("eu", "group-1"))])
        until(lambda: self._suppressed() is not None, 120, "an address that bounced is suppressed")
        # By then routers and senders know it as well.
        soon = (time.time_ns() // 1_000_000_000 + 5) * 1000
        self._bulk([Asked("", str(self._suppressed()), "order-shipped", None, ("again",), soon)])

    def _suppressed(self) -> str | None:
        for user in sorted(self.bouncing):
            query = urlencode({"channel": "email", "address": self.address(user)})
            if self._call("GET", f"/v1/suppressions?{query}", None, 200)["entries"]:
                return user
        return None

    def _asked(self, number: int) -> Asked:
        template = ("order-shipped", "order-shipped", "spring", "code")[number % 4]
        # As many as may be: nobody knows them.
        user = f"nobody{number}" if number % 45 == 11 else f"u{self.rng.randrange(USERS)}"
        version = 1 if template == "order-shipped" and number % 5 == 0 else None
        soon = (time.time_ns() // 1_000_000_000 + 15) * 1000 if number % 50 == 9 else None
        return Asked("", user, template, version, ("eu", f"group-{number % 4}"), soon)

    def _bulk(self, asked: list[Asked]) -> None:
        items = [
            {
                "to": {"user_id": each.user},
                "template": {"id": each.template, **({"version": each.version} if each.version else {})},
                "data": {"n": number},
                "tags": list(each.tags),
                "channels": list(each.channels),
                **({"send_at": datetime.fromtimestamp(each.send_at / 1000, UTC).isoformat()} if each.send_at else {}),
            }
            for number, each in enumerate(asked)
        ]
        answer = self._call("POST", "/v1/notifications/bulk", {"notifications": items}, 202)
        for result in answer["results"]:
            asked[result["index"]].notification_id = result["id"]
        self.asked += asked

    # -- when it is over

    def alone(self, asked: Asked) -> bool:
        """Whether it gets no message, by the list."""
        return asked.user.startswith("nobody") or asked.tags == ("later",)

    def unsettled(self) -> list[tuple[str, str, str]]:
        """(notification, channel, state) of what is still to come, by the status topic."""
        self._status.read()
        found = []
        for asked in self.asked:
            events = self._status.events.get(asked.notification_id, [])
            if self.alone(asked):
                wanted = "scheduled" if asked.send_at else "rejected"
                found += [] if any(e["state"] == wanted for e in events) else [(asked.notification_id, "", wanted)]
                continue
            for channel in asked.channels:
                own = [event for event in events if event["channel"] == channel]
                state = _latest(own)["state"] if own else "none"
                waits = asked.user == "u100" and channel == "push"
                done = any(event["state"] == "retrying" for event in own) if waits else state in states().settled
                # A receipt follows every SMS that was taken.
                if not done or (channel == "sms" and state == "sent"):
                    found.append((asked.notification_id, channel, state))
        return found

    def _over(self) -> bool:
        return not self.unsettled()

    def _state_late(self) -> None:
        """A fact that comes two hours late: once more that a message was routed."""
        events = [e for asked in self.asked for e in self._status.events[asked.notification_id]]
        first = min((e for e in events if e["state"] == "routed"), key=lambda e: str(e["event_id"]))
        late: Any = {**first, "event_id": ids.event_id(str(first["message_id"]), "routed", 0, "late")}
        late["occurred_at"] = first["occurred_at"] - 2 * HOUR
        producer = Producer(self.kafka, client_id="late")
        key = str(first["notification_id"]).encode()
        producer.publish([ProducerRecord(STATUS, key, codec("DeliveryStatus").encode(late))])
        producer.close()

    def _events(self) -> dict[str, list[DeliveryStatus]]:
        """Status events by notification, each once, in its last form."""
        self._status.read()
        found: dict[str, list[DeliveryStatus]] = {}
        for nid, events in self._status.events.items():
            once: dict[str, Any] = {}
            for event in events:
                other = once.get(event["event_id"])
                if other is None or _form(event) > _form(other):
                    once[event["event_id"]] = event
            found[nid] = list(once.values())
        return found

    def _stored(self) -> bool:
        return self._in_clickhouse() == self._expected()

    def _in_clickhouse(self) -> tuple[Any, ...]:
        """Facts, receipts, requests, opt-outs and dead letters."""
        sql = """
            SELECT (SELECT count() FROM delivery_events), (SELECT count() FROM receipts), (SELECT count() FROM requests),
                (SELECT count() FROM preference_history WHERE opted_out), (SELECT count() FROM dead_letters)"""
        return self.running.query(sql)[0]

    def _expected(self) -> tuple[int, ...]:
        facts = sum(len(events) for events in self.events.values())
        stated = len(self.out_of_category) + len(self.out_of_sms)
        # Of each SMS that it takes the vendor reports `sent`, then the end.
        return facts, 2 * len(self.accepts("sms-1")), len(self.asked), stated, len(self._letters())

    # -- the vendors' logs

    def accepts(self, account: str) -> list[dict[str, Any]]:
        """What the vendor of an account took; push-1 and sms-1 are at the first simulator."""
        kind = {"sms-1": "twilio", "push-1": "fcm"}.get(account, "smtp")
        simulator = self.simulators.get(account, self.simulators["mail-1"])
        return list(ask_simulator(simulator, f"/accepted?kind={kind}&limit=1000000"))

    def asked_of(self, channel: str) -> int:
        """Requests that the channel's vendors saw, refused ones too."""
        seen = [ask_simulator(simulator, "/requests").get(KINDS[channel], 0) for simulator in self.simulators.values()]
        return sum(seen)

    def applied(self) -> Counter[tuple[str, str]]:
        """How often each fault was played, by account of the first kind and mode."""
        found: Counter[tuple[str, str]] = Counter()
        for account, simulator in self.simulators.items():
            for fault in ask_simulator(simulator, "/faults"):
                name = account if fault["kind"] == "smtp" else fault["kind"]
                found[name, fault["mode"]] += fault["applied"]
        return found

    # -- the diary

    def _letters(self) -> list[Any]:
        letters = [
            codec("DeadLetter").decode(r.value) for r in read_topic(self.kafka, DEAD_LETTERS) if r.value is not None
        ]
        return list({letter["dead_letter_id"]: letter for letter in letters}.values())

    def _opt_outs(self) -> list[OptOut]:
        """Of the list; when, and with which version, of the records that the relay published."""
        found = []
        for record in read_topic(self.kafka, RECIPIENTS):
            if record.value is None:
                continue
            profile: Any = codec("RecipientProfile").decode(record.value)
            user, at, version = profile["user_id"], profile["updated_at"], profile["version"]
            if user in self.out_of_category and profile["categories"].get("marketing", {}).get("email") is False:
                found.append(OptOut(user, "marketing", "email", at, version))
            if user in self.out_of_sms and profile["channels"].get("sms") is False:
                found.append(OptOut(user, "", "sms", at, version))
        assert len(found) == len(self.out_of_category) + len(self.out_of_sms)
        return found

    def _diary(self) -> Diary:
        hour = (self.began // HOUR) % 24
        made = Diary(TENANT, self.began // DAY * DAY, self.began, PRICES, ("sms-1",), (hour, (hour + 1) % 24))
        ids_of: dict[str, list[str]] = {}
        for entry in self.accepts("sms-1"):
            ids_of.setdefault(str(entry["message_id"]), []).append(str(entry["provider_message_id"]))
        for asked in self.asked:
            accepted = ids.accepted_at(asked.notification_id)
            events = self.events[asked.notification_id]
            made.facts += map(_fact, events)
            fate = _latest([event for event in events if event["message_id"] is None] or events)
            made.requests.append(
                Request(
                    asked.notification_id, asked.template, accepted, fate["state"], fate["reason"] or "", asked.send_at
                )
            )
            for channel in () if self.alone(asked) else asked.channels:
                own = [event for event in events if event["channel"] == channel]
                message = self._message(asked, channel, accepted, own)
                message.vendor_ids = ids_of.get(message.message_id, [])
                for vendor_id in message.vendor_ids:
                    made.receipts[vendor_id] = message.state
                made.messages.append(message)
        made.opt_outs = self._opt_outs()
        made.refused = [
            Refused(letter["stage"], letter["reason"], letter["topic"], letter["offset"], letter["occurred_at"])
            for letter in self._letters()
        ]
        return made

    def _message(self, asked: Asked, channel: str, accepted: int, events: list[DeliveryStatus]) -> Message:
        """Of the list what was asked for, of the facts what became of it."""
        (message_id,) = {str(event["message_id"]) for event in events}
        facts = [_fact(event) for event in events]
        latest = _latest(events)
        known = max(events, key=lambda e: (bool(e["provider"]) + bool(e["provider_message_id"]), *_order(e)))
        over = [fact for fact in facts if fact.state == "failed_over"]
        sent = [fact.at for fact in facts if fact.state in ("sent", "delivered", "undelivered")]
        delivered = [fact.at for fact in facts if fact.state == "delivered"]
        return Message(
            asked.notification_id,
            message_id,
            channel,
            asked.user,
            asked.template,
            TEMPLATES[asked.template][0],
            max((event["template_version"] or 0 for event in events), default=0) or None,
            max(event["locale"] or "" for event in events),
            max(event["domain"] or "" for event in events),
            asked.tags,
            accepted,
            max(accepted, asked.send_at or 0),
            asked.version,
            latest["state"],
            latest["reason"] or "",
            known["provider"] or "",
            max(over, key=lambda fact: fact.attempt).provider if over else "",
            len({fact.attempt for fact in facts if fact.asked}),
            min(sent, default=None),
            min(delivered, default=None),
            max(event["preference_version"] or 0 for event in events),
            facts,
        )


def _fact(event: DeliveryStatus) -> Fact:
    return Fact(
        event["event_id"],
        event["channel"] or "",
        event["state"],
        event["occurred_at"],
        event["attempt"],
        event["provider"] or "",
        event["provider_message_id"] or "",
        event["code"] or "",
        event["reason"] or "",
        event["latency_ms"],
        event["possible_duplicate"],
    )


def _order(event: DeliveryStatus) -> tuple[int, int, str]:
    return states().rank.get(event["state"], -1), event["occurred_at"], event["event_id"]


def _latest(events: list[Any]) -> DeliveryStatus:
    """The fact that decides a state (docs/analytics.md, "Which state a thing is in")."""
    latest: DeliveryStatus = max(events, key=_order)
    return latest if _order(latest)[0] >= 0 else {**latest, "state": "routed", "reason": None}


def _form(event: Any) -> tuple[bool, int]:
    return event["possible_duplicate"], event["occurred_at"]

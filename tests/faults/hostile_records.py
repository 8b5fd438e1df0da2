"""What a hostile tenant with a Kafka producer and an API key may send: hostile, but decodable; from a seed.

Nothing here pretends to be another tenant: that is a matter of access rights. Every record about a notification belongs to
one that was requested too, so that the accounting of a tenant that tries everything still adds up.
May import schemas and runtime.ids. Never: a client, a judgement of what came of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from runtime import ids
from schemas.channels import CHANNELS
from schemas.codec import codec
from schemas.events import LANES, RecordName
from schemas.topics import (
    CANCELLATIONS,
    MAX_VALUE_BYTES,
    RECEIPTS,
    RECIPIENTS,
    STATUS,
    SUPPRESSIONS,
    TEMPLATES,
    TIMERS,
    dispatch_topic,
    ledger_topic,
    requests_topic,
)
from tests.support.made import made

TENANT = "hostile"
MARK = "hostile"
"""In every address of theirs, so that vendors' faults meet nobody else."""
FAR = 253_402_300_800_000
"""Milliseconds: the year 10000."""
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b[31m",
    "a\r\nBcc: x@evil.example",
    "\u202e",
    "\u2028",
    "\ufffe",
    "x" * 300,
    "ä" * 5_000,
    "=?utf-8?q?x?=",
    "{{ a }}",
    "{% for x in y %}",
    "'; DROP TABLE users; --",
    "../../etc/passwd",
    "a/b",
    "%00",
    "%2F",
    "🛰" * 50,
    "null",
    "-1",
    "NaN",
)
JSON = (
    b"",
    b"{}",
    b"[]",
    b"[1]",
    b'"x"',
    b"null",
    b"1",
    b"1e400",
    b"-0",
    b"NaN",
    b"{",
    b"\xff\xfe",
    b'{"a": "\\ud800"}',
    b'{"a": "\\u0000"}',
    b'{"a": 1, "a": 2}',
    b"[" * 900 + b"]" * 900,
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b'{"n": ' + b"9" * 400 + b"}",
    b'{"_text": "x", "_missing": 1}',
    b'{"aps": {}, "from": "x", "google": 1}',
    b'{"text": 7}',
    b'{"text": "x", "subject": {}}',
    b'{"title": "t", "body": [], "data": [1]}',
)
NUMBERS = (-(1 << 63), (1 << 63) - 1, -1, 0, 1, 1 << 53, FAR)
INTS = (-(1 << 31), (1 << 31) - 1, -1, 0, 1, 60, 61)


@dataclass(frozen=True, slots=True)
class Sent:
    """A record as a hostile tenant publishes it; `timestamp` 0 is now."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the API."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class HostileRecords:
    """An endless supply, the same for the same seed but for ids, which carry the time."""

    def __init__(self, seed: int, now: int) -> None:
        self._rng = random.Random(seed)
        self._now = now
        self._count = 0
        corpus = Path(__file__).resolve().parents[1] / "contract" / "hostile_templates.txt"
        self._templates = [line for line in corpus.read_text("utf-8").splitlines() if line and not line.startswith("#")]

    # -- records ------------------------------------------------------------------------------------------------------

    def records(self, now: int) -> list[Sent]:
        """The next record, and what belongs to it."""
        self._now = now
        self._count += 1
        make = self._rng.choices(
            [self._request, self._dispatch, self._status, self._timer, self._reference, self._rubbish, self._receipt],
            [6, 3, 2, 2, 2, 3, 1],
        )[0]
        return [self._dressed(record) for record in make()]

    def _dressed(self, record: Sent) -> Sent:
        """With headers and a time of the hostile tenant's choice."""
        rng = self._rng
        headers: list[tuple[str, bytes | None]] = []
        if rng.random() < 0.3:
            headers = [
                (
                    rng.choice(("traceparent", "ce_id", "x", "", "content-type")),
                    rng.choice((None, b"", b"\xff\0", b"x" * 2_000)),
                )
                for _ in range(rng.choice((1, 2, 30)))
            ]
        timestamp = rng.choice((0, 0, 0, 1, self._now + 3_000_000))  # a broker refuses what is over an hour ahead
        return Sent(record.topic, record.key, record.value, tuple(headers), timestamp)

    def _one(self, *values: Any) -> Any:
        return self._rng.choice(values)

    def _id(self) -> str:
        return ids.notification_id(self._now, TENANT)

    def _encoded(self, name: RecordName, record: dict[str, Any]) -> bytes:
        return codec(name).encode(record)

    def _plain_request(self, id_: str, **fields: Any) -> dict[str, Any]:
        about = {
            "notification_id": id_,
            "tenant": TENANT,
            "accepted_at": UUID(id_).int >> 80,
            "addresses": [{"channel": "email", "value": f"{MARK}-{self._count}@example.org", "platform": None}],
            "data": b"{}",
            "content": b'{"subject": "S", "text": "T"}',
            "channels": ["email"],
            "source": MARK,
        }
        return made("NotificationRequest", **{**about, **fields})

    def _paired(self, id_: str) -> Sent:
        """A request that ends as unknown_recipient: the id of another record is a notification's then."""
        request = self._plain_request(
            id_, user_id=f"nobody-{self._count}", addresses=[], content=None, template_id="none"
        )
        return Sent(requests_topic("normal"), f"{TENANT}:{id_}".encode(), self._encoded("NotificationRequest", request))

    def _request(self) -> list[Sent]:
        def text() -> str:
            return str(self._one(*TEXTS))

        short = self._one(*(each for each in TEXTS if len(each) < 100))
        changes: list[dict[str, Any]] = [
            {"user_id": text(), "addresses": []},
            {"template_id": text(), "content": None},
            {"template_version": self._one(*INTS), "template_id": "x"},
            {"content": self._one(*JSON)},
            {"data": self._one(*JSON), "template_id": "t", "content": None},
            {"overrides": self._one(*JSON)},
            {"channels": [text(), "email"]},
            {"channels": ["email"] * 3_000},
            {"strategy": text()},
            {"locale": text()},
            {"lane": text()},
            {"category": text()},
            {"delivery": text()},
            {"tags": [short] * self._one(1, 5_000)},
            {"metadata": {text(): text()}},
            {"correlation_id": text()},
            {"source": text()},
            {"idempotency_key": text()},
            {"generation": self._one(*INTS)},
            {"expires_at": self._one(*NUMBERS)},
            {
                "addresses": [
                    {
                        "channel": self._one("email", "sms", "push", short),
                        "value": short,
                        "platform": self._one(None, "fcm", short),
                    }
                ]
                * self._one(1, 500)
            },
            {
                "channels": ["push"],
                "addresses": [{"channel": "push", "value": f"{MARK}-token", "platform": "fcm"}],
                "content": b'{"title": "t", "body": "b", "data": ' + (self._one(*JSON) or b"1") + b"}",
            },
            {
                "content": json.dumps(
                    {"subject": "S", "text": "x" * self._one(60_000, MAX_VALUE_BYTES - 3_000)}
                ).encode()
            },
            {"send_at": self._now + 3_000, "content": json.dumps({"text": "x" * (MAX_VALUE_BYTES - 3_000)}).encode()},
            {"replay": text()},
            {"dry_run": True},
            {},
        ]
        id_ = self._id()
        request = self._plain_request(id_, **self._rng.choice(changes))
        key = self._one(None, b"", b"\xff\0", f"{TENANT}:{id_}".encode(), b"k" * 100_000)
        return [
            Sent(requests_topic(self._one(*LANES)), key, self._encoded("NotificationRequest", request))
        ] * self._one(1, 1, 2)

    def _message(self, id_: str, channel: str, lane: str, **fields: Any) -> dict[str, Any]:
        address = {
            "email": f"{MARK}-{self._count}@example.org",
            "sms": f"+4916{self._count:09d}",
            "push": f"{MARK}-{self._count}",
            "webhook": f"https://{MARK}-{self._count}.example.org/hook",
        }
        about = {
            "message_id": self._id(),
            "notification_id": id_,
            "tenant": TENANT,
            "accepted_at": self._now,
            "channel": channel,
            "lane": lane,
            "category": "default",
            "address": address[channel],
            "platform": {"push": "fcm", "webhook": "webhook"}.get(channel),
            "subject": "S",
            "text": "T",
            "title": "T",
            "body": "B",
            "attempt": 1,
            "routed_at": self._now,
        }
        return made("ChannelMessage", **{**about, **fields})

    def _dispatch(self) -> list[Sent]:
        id_, channel, lane = self._id(), self._one(*CHANNELS), self._one(*LANES)
        text = self._one(*TEXTS)
        changes: list[dict[str, Any]] = [
            {"address": text},
            {"data": self._one(*JSON)},
            {"platform": text},
            {"provider": text},
            {"subject": text},
            {"text": text},
            {"title": None, "body": None},
            {"attempt": self._one(*INTS)},
            {"retries": self._one(*INTS)},
            {"generation": self._one(*INTS)},
            {"expires_at": self._one(*NUMBERS)},
            {"routed_at": self._one(*NUMBERS)},
            {"accepted_at": self._one(*NUMBERS)},
            {"overrides": self._one(*JSON)},
            {"replay": text},
            {"user_id": text},
            {"category": text},
            {"template_id": text},
            {"text": "x" * (MAX_VALUE_BYTES - 2_000)},
            {"message_id": text},
            {"message_id": id_.replace("-", "") + "\n"},
            {"possible_duplicate": True, "expires_at": 1},
            {"delivery": text},
            {"correlation_id": text},
        ]
        value = self._encoded("ChannelMessage", self._message(id_, channel, lane, **self._rng.choice(changes)))
        if self._rng.random() < 0.1:
            value += b"\0"  # the ids can be read, the record cannot
        key = self._one(None, b"\xff", f"{TENANT}:{id_}".encode())
        return [self._paired(id_), Sent(dispatch_topic(channel, lane), key, value)]

    def _status(self) -> list[Sent]:
        id_, text = self._id(), self._one(*TEXTS)
        changes: list[dict[str, Any]] = [
            {"provider": text},
            {"detail": text},
            {"reason": text},
            {"recipient": text},
            {"channel": text},
            {"provider_message_id": text},
            {"occurred_at": self._one(*NUMBERS)},
            {"latency_ms": self._one(*INTS)},
            {"attempt": self._one(*INTS)},
            {"event_id": text},
            {"template_id": text},
            {"source": {"topic": text, "partition": -1, "offset": -1}},
            {"message_id": text},
            {"lane": text},
            {"state": "bounced", "reason": "hard_bounce", "recipient": text},
            {"state": "bounced", "reason": "invalid_token", "recipient": text},
        ]
        about = {
            "event_id": self._id(),
            "notification_id": id_,
            "message_id": self._id(),
            "tenant": TENANT,
            "channel": "push",
            "lane": "normal",
            "state": "opened",
            "attempt": 1,
            "provider": "p",
            "occurred_at": self._now,
        }
        status = made("DeliveryStatus", **{**about, **self._rng.choice(changes)})
        return [
            self._paired(id_),
            Sent(STATUS, self._one(None, b"", id_.encode()), self._encoded("DeliveryStatus", status)),
        ]

    def _receipt(self) -> list[Sent]:
        text = self._one(*TEXTS)
        receipt = {
            "event_id": self._one(self._id(), text),
            "provider": text,
            "provider_message_id": text,
            "message_id": None,
            "state": text,
            "reason": text,
            "code": text,
            "occurred_at": self._one(*NUMBERS),
            "received_at": self._one(*NUMBERS),
            "raw": self._one(*JSON),
        }
        return [Sent(RECEIPTS, self._one(None, b"k"), self._encoded("ProviderReceipt", receipt))]

    def _timer(self) -> list[Sent]:
        id_, text = self._id(), self._one(*TEXTS)
        key = self._one(id_.encode(), id_.encode(), None, b"other")
        timer = {
            "timer_id": id_,
            "due_at": self._one(*NUMBERS, self._now, self._now + 500),
            "purpose": self._one("retry", "schedule", text),
            "topic": self._one(
                requests_topic("bulk"), dispatch_topic("sms", "bulk"), "notify.requests.evil.v1", STATUS, text
            ),
            "key": self._one(b"", b"k", b"k" * 50_000),
            "headers": [{"name": text[:100], "value": b"\xff"}] * self._one(0, 1, 200),
            "value": self._one(b"", b"\0", b"x" * 500_000),
        }
        return [
            Sent(TIMERS, key, self._encoded("Timer", timer)),
            *([Sent(TIMERS, key, None)] if self._rng.random() < 0.3 else []),
        ]

    def _reference(self) -> list[Sent]:
        text, number = self._one(*TEXTS), self._one(*NUMBERS)
        key = f"{TENANT}:{text}".encode()
        made: list[tuple[str, RecordName, dict[str, Any]]] = [
            (
                RECIPIENTS,
                "RecipientProfile",
                {
                    "tenant": TENANT,
                    "user_id": text,
                    "name": text,
                    "email": text,
                    "phone": text,
                    "locale": text,
                    "time_zone": text,
                    "devices": [{"platform": text, "token": text, "registered_at": number}],
                    "channels": {text: True},
                    "categories": {text: {text: False}},
                    "version": number,
                    "updated_at": number,
                },
            ),
            (
                TEMPLATES,
                "Template",
                {
                    "tenant": TENANT,
                    "template_id": text,
                    "version": self._one(*INTS),
                    "category": text,
                    "channels": self._one(*JSON),
                    "locales": self._one(*JSON),
                    "variables": [text],
                    "updated_at": number,
                },
            ),
            (
                TEMPLATES,
                "Template",
                {
                    "tenant": TENANT,
                    "template_id": "t",
                    "version": 1,
                    "category": "c",
                    "locales": b"{}",
                    "variables": [],
                    "updated_at": self._now,
                    "channels": json.dumps(
                        {"email": {"subject": "s", "text": self._rng.choice(self._templates)}}
                    ).encode(),
                },
            ),
            (
                SUPPRESSIONS,
                "Suppression",
                {
                    "suppression_id": text,
                    "tenant": TENANT,
                    "channel": text,
                    "address_hash": text,
                    "reason": text,
                    "expires_at": number,
                    "created_at": number,
                },
            ),
            (CANCELLATIONS, "Cancellation", {"notification_id": text, "tenant": TENANT, "requested_at": number}),
            (
                ledger_topic("email", "bulk"),
                "LedgerEntry",
                {"message_id": text, "next_attempt": self._one(*INTS), "state": text, "recorded_at": number},
            ),
        ]
        topic, name, record = self._rng.choice(made)
        if topic == TEMPLATES and record["template_id"] == "t":
            key = f"{TENANT}:t".encode()
        return [
            Sent(topic, key, self._encoded(name, record)),
            *([Sent(topic, key, None)] if self._rng.random() < 0.2 else []),
        ]

    def _rubbish(self) -> list[Sent]:
        """Null keys, null values, bytes that are nothing: every topic's readers meet them."""
        topics = [
            requests_topic(self._one(*LANES)),
            dispatch_topic(self._one(*CHANNELS), self._one(*LANES)),
            STATUS,
            RECEIPTS,
            RECIPIENTS,
            TEMPLATES,
            SUPPRESSIONS,
            CANCELLATIONS,
            TIMERS,
        ]
        topic = self._rng.choice(topics)
        compacted = topic in (RECIPIENTS, TEMPLATES, SUPPRESSIONS, CANCELLATIONS, TIMERS)
        key = self._one(b"", b"\xff", b"k" * 1_000, *([] if compacted else [None]))  # a broker refuses those
        return [
            Sent(
                topic, key, self._one(None, b"", b"\0", b"\0\0\0\0\x01", b"\0\0\0\0\x01" + b"\xff" * 50, b"x" * 100_000)
            )
        ]

    # -- calls --------------------------------------------------------------------------------------------------------

    def calls(self) -> Iterator[Call]:
        """Without end."""
        while True:
            self._count += 1
            yield self._rng.choice(
                [self._notify, self._notify, self._user, self._template, self._ask, self._suppress, self._bulk]
            )()

    def _call(self, *calls: Call) -> Call:
        return self._rng.choice(calls)

    def _json(self, value: Any) -> bytes:
        return json.dumps(value).encode()

    def _deliverable(self) -> dict[str, Any]:
        to, content = self._one(
            ({"email": f"{MARK}-{self._count}@example.org"}, {"subject": "S", "text": "T"}),
            ({"phone": f"+4916{self._count:09d}"}, {"text": "T"}),
            ({"device_tokens": [{"platform": "fcm", "token": f"{MARK}-{self._count}"}]}, {"title": "T", "body": "B"}),
        )
        return {"to": to, "content": content, "priority": self._one(*LANES)}

    def _notify(self) -> Call:
        text, good = self._one(*TEXTS), self._deliverable()
        bodies: list[bytes] = [
            self._json(good),
            self._json(good),
            self._json({**good, "to": {"user_id": text}}),
            self._json({**good, "to": {"email": text}}),
            self._json({**good, "to": self._one("x", 7, [], [[]], None, {"device_tokens": ["x"]})}),
            self._json({**good, "template": text}),
            self._json({**good, "data": self._one([], 7, "x", {"a": {"b": [None] * 1_000}})}),
            self._json({**good, "locale": text}),
            self._json({**good, "content": {"subject": "S", "text": "x" * 262_000}})[:262_144],
            self._json({**good, "tags": [text] * 2_000}),
            b" " * 262_145,
            b"{" * 60_000,
            b'{"a":' * 50_000,
            b"\xef\xbb\xbf{}",
            b"\xff",
            b"",
            b"NaN",
            b"9" * 200_000,
            b"{" + b",".join(b'"%05x":1' % n for n in range(20_000)) + b',"zz":1,"zz":1}',
            b'{"a": 1, "a": 2}',
            self._json({**good, "send_at": self._one("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", text, -1)}),
        ]
        headers: list[tuple[tuple[str, str], ...]] = [
            (),
            (),
            (("Idempotency-Key", self._one("a", "x" * 256, "~")),),
            (("Content-Encoding", "gzip"),),
            (("Content-Type", "text/plain"),),
            (("traceparent", "00-" + "f" * 200),),
            (("X-Correlation-ID", "x" * 4_000),),
        ]
        return Call("POST", "/v1/notifications", self._rng.choice(bodies), self._rng.choice(headers))

    def _bulk(self) -> Call:
        items: list[Any] = [self._deliverable() for _ in range(self._one(1, 20))] + [
            self._one(None, 7, {}, {"to": []}, {"to": {"email": "x"}})
        ]
        # Not what anybody may send anyway: how much of that there is, is a matter of capacity.
        items = self._one(items, [self._one(None, 7, {}, {"to": [7]})] * 1_000, [items[0]] * 1_001)
        return Call("POST", "/v1/notifications/bulk", self._json({"notifications": items}))

    def _user(self) -> Call:
        text = self._one(*TEXTS)
        body = {
            "id": text,
            "name": text,
            "email": self._one("a@example.org", text),
            "phone": text,
            "locale": text,
            "time_zone": text,
            "devices": self._one([], ["x"], [{"platform": "fcm", "token": text}] * 200),
        }
        id_ = quote(text[:200], safe="")
        return self._call(
            Call("POST", "/v1/users", self._json(body)),
            Call("PUT", f"/v1/users/{id_}", self._json(body)),
            Call("GET", f"/v1/users/{id_}"),
            Call("PUT", f"/v1/users/{id_}/preferences", self._json({"channels": {text: self._one(True, 7, text)}})),
            Call("DELETE", f"/v1/users/{id_}"),
        )

    def _template(self) -> Call:
        source, text = self._rng.choice(self._templates), self._one(*TEXTS)
        part = {"subject": "s", "text": source, "html": source}
        body: dict[str, Any] = {"id": self._one("t", text, f"t{self._count}"), "channels": {"email": part}}
        if self._rng.random() < 0.2:
            body["locales"] = {f"aa-{n}": {"email": part} for n in range(100)}
        return self._call(
            Call("POST", "/v1/templates", self._json(body)),
            Call("POST", "/v1/templates/t/preview", self._json({"channel": "email", "data": {"a": text}})),
            Call("GET", f"/v1/templates/{quote(text[:200], safe='')}"),
            Call("POST", "/v1/templates/t/publish", self._json({"version": self._one(-1, 1, 1 << 40)})),
        )

    def _suppress(self) -> Call:
        text = self._one(*TEXTS)
        line = json.dumps({"channel": "email", "address": text, "reason": text})
        return self._call(
            Call(
                "POST",
                "/v1/suppressions",
                self._json({"channel": self._one("email", text), "address": text, "reason": text}),
            ),
            Call("POST", "/v1/suppressions/import", ("\n".join([line] * 200)).encode()),
            Call("POST", "/v1/suppressions/import", b"x" * 200_000),
            Call("DELETE", f"/v1/suppressions/{quote(text[:200], safe='')}"),
            Call("GET", f"/v1/suppressions?cursor={quote(text[:500], safe='')}"),
        )

    def _ask(self) -> Call:
        text = quote(self._one(*TEXTS)[:500], safe="")
        return self._call(
            Call("GET", f"/v1/notifications/{text}"),
            Call("GET", f"/v1/notifications/{self._id()}"),
            Call("GET", f"/v1/notifications?status={text}"),
            Call("GET", f"/v1/notifications?user_id={text}"),
            Call("GET", f"/v1/notifications?cursor={text}"),
            Call("GET", f"/v1/notifications?tag={text}"),
            Call("POST", f"/v1/notifications/{self._id()}/cancel"),
            Call("POST", f"/v1/notifications/{text}/resend"),
            Call("GET", f"/{text}"),
            Call("GET", f"/v1/notifications/{self._id()}/explain"),
        )


RETRY_AFTER = (
    "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
    "Sun, 06 Nov 1994 08:49:37 +99999999999999",
    "9" * 400,
    "-1",
    "nan",
    "1e400",
    "x",
    "Sun, 31 Dec 9999 23:59:59 -2359",
    "Sun, 06 Nov 0001 00:00:00 +2359",
)
"""What a vendor may answer in that header."""

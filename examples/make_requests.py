"""Writes the demo's data beside itself: requests.jsonl and reference.json, the same bytes at every run.

    python examples/make_requests.py            write both files
    python examples/make_requests.py --check    exit status 1 when a file differs from what would be written

Each line of requests.jsonl is a body of POST /v1/notifications; a bulk's worth of ordinary ones with every way in which a
notification can end mixed in. Addresses cannot be real: the domains example.org and .example (RFC 2606), numbers that the
numbering plans set aside for films (+1 xxx 555-01xx, +44 20 7946 0xxx, Berlin, Frankfurt, Hamburg and Munich, +33 1 99 00).

May import the standard library only, so that it runs anywhere. Never: a clock, a source of randomness other
than `random.Random(SEED).random()`, which gives the same numbers on every Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import uuid
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate, count
from pathlib import Path
from typing import Any, TypeVar

SEED = 1821
"""The year of the first heliotrope, which Gauss built to send sunlight over a hundred kilometres."""
USERS = 300
REQUESTS = 2_400
COPIES = 60
"""Lines that are sent a second time with the same request_id, as a caller does that saw no answer."""
GONE = "gone@nowhere.example"
"""The demo lets the simulator refuse this mailbox."""

SERVICES = "https://services.example"
"""Where the browsers' endpoints and the webhooks are: the demo puts the simulator's address in its place."""
HOOKS = ("webhook", "slack", "teams")
"""Platforms of the webhooks that the first users have, one each."""
BROWSERS = (
    (
        "demo-0",
        "bNQF83zxErAtsa6SGIpQNg",
        "BD66QepIg91CXEAa3GURE86isAJR2t5bBth0aA90RYbRLx-5EwwInH9le2DfSnYkg1QjfSc3aJdF1I4w3c8ec7Q",
    ),
    (
        "demo-1",
        "P2Wuo0DVAVBNFfh2BIUDcA",
        "BHeixq8M8x6Zy3G3J2Oeo_7PJqNigqr6h8BvobZmea1McGnk0P3dD1cv41PEJxD4C9E3z9ugQB4l5SbRjN3A9sk",
    ),
    (
        "demo-2",
        "dg2mNcKCvv3MKxt8fBL2mA",
        "BE37hasWmTokvSP3wyObGSsIXWTp0NLPNxJcQChMfzs5jZZmR2GvLGSutZp3PSYfHH_B248BFxc5uQXEusMhw-Q",
    ),
    (
        "demo-3",
        "2dOApScZicKn9QhpC_sR5Q",
        "BHwMI7N4PD3xFzZBVrw8nz_MinFQ6_t1C91-3-dc_mvkwUHEEcwSWYvY2IgAEUR5kXMfVQlsYdW_LOCgwyJSXk4",
    ),
    (
        "demo-4",
        "nyOVy4WKP6wD_sFSFfGGWA",
        "BEvYBc8S0aCMi1paF1jvy13b6s4xns3gQxxMiHnb2nGLOMR94SWcRfjXclS9DpLVvibJCVODWeQnshh9OQUHxZA",
    ),
    (
        "demo-5",
        "muEFDTVrECg7S5Ag0YN2vg",
        "BKDRDguEAlnjRYJRhI8dtVr-X1WddB6wrq3IUwhGK2tE-hDQHaRwVpPSoyVh64ZujqBvic6mUEgoFkiJxg7EZeA",
    ),
)
"""Name, authentication secret and public key of the first users' browsers, which the simulator knows by their names."""

DIRECTORY = Path(__file__).resolve().parent
T = TypeVar("T")
Json = dict[str, Any]

NAMES = (
    "Ada Lovelace",
    "Zoë Brontë",
    "Łukasz Żółć",
    "Ömer Güneş",
    "Nguyễn Thị Ánh",
    "Søren Ørsted",
    "José Ñíguez",
    "François Noël",
    "Марія Шевченко",
    "Γιώργος Σεφέρης",
    "山田 太郎",
    "김민준",
    "王小明",
    "محمد الفاتح",
    "שרה כהן",
    "अनन्या शर्मा",
    "สมชาย ใจดี",
    "Zoe\u0308 Mu\u0308ller",
    "Ana 🌻 Sousa",
    "O’Brien & Sons <Ltd>",
    "Þóra Æsa",
    "Ivana Čačić",
    "Tāne Māhuta",
    "👩\u200d💻 Grace",
)
LOCALES = (
    "en",
    "en",
    "en-GB",
    "de",
    "de-AT",
    "de-CH",
    "fr",
    "fr-CA",
    "ja",
    "ar",
    "he",
    "pt-BR",
    "zh-Hans-CN",
    "tr",
    "is",
    None,
)
ZONES = ("Europe/Vienna", "Europe/London", "America/New_York", "Asia/Tokyo", "Asia/Kolkata", "Pacific/Auckland", None)
DOMAINS = ("example.org", "example.org", "mail.example", "bücher.example", "ünïcøde.example", "sub.host.example")
GOODS = (
    "Cappuccino cup ☕",
    "Crème brûlée torch",
    "折り紙セット",
    "كتاب الطبخ",
    "Matryoshka 🪆",
    "Straßenkarte",
    "Piñata",
    "e\u0301clair tin",
    "1/2\u2033 bolt",
    "Family 👨\u200d👩\u200d👧\u200d👦 mug",
    "Kürbiskernöl",
    '<b>bold</b> & "quoted" paint',
)
SENTENCES = (
    "Sounds good 👍",
    "Bis morgen! Grüße",
    "それは素晴らしい",
    "أراك غدًا",
    "נתראה מחר",
    "Voilà, c’est fait",
    "Zażółć gęślą jaźń",
    "1 < 2 && 3 > 2",
    "Tabs\tand\nnew lines",
    "क्या बात है",
    "e\u0301 is é",
    "🏳️\u200d🌈 see you there",
    "See https://shop.example/?a=1&b=2",
)
PLACES = ("Wien", "São Paulo", "東京", "القاهرة", "Reykjavík")
CURRENCIES = ("EUR", "GBP", "JPY", "BRL", "TRY")


class Dice:
    """Choices made from `random()` alone."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def below(self, limit: int) -> int:
        """0 … limit − 1."""
        return int(self.random() * limit)

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.below(len(options))]

    def one_in(self, count: int) -> bool:
        """True once in `count` times."""
        return self.below(count) == 0


def phone(index: int) -> str:
    """The index-th number of a range that no subscriber has."""
    block, rest = divmod(index, 100)
    prefixes = (
        "+120255501",
        "+121255501",
        "+130355501",
        "+141555501",
        "+161755501",
        "+4420794600",
        "+4420794601",
        "+4930231250",
        "+4969900090",
        "+4940669690",
        "+4989999980",
        "+331990000",
    )
    prefix = prefixes[block % len(prefixes)]
    return f"{prefix}{rest:02d}"


def token(dice: Dice) -> str:
    """A device token of FCM's shape."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return "demo:" + "".join(dice.pick(letters) for _ in range(40))


def device(number: int, token: str) -> Json:
    """The number-th device of all: FCM's, Apple's and OneSignal's in turn, each with an address of its platform's shape."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return (
        {"platform": "fcm", "token": token},
        {"platform": "apns", "token": digest},
        {"platform": "onesignal", "token": str(uuid.UUID(digest[:32]))},
    )[number % 3]


def browser(name: str, auth: str, p256dh: str) -> Json:
    """A browser that has subscribed."""
    subscription = {"endpoint": f"{SERVICES}/webpush/{name}", "keys": {"auth": auth, "p256dh": p256dh}}
    return {"platform": "webpush", "subscription": subscription}


def hook(platform: str) -> Json:
    """A receiver of webhooks."""
    return {"platform": platform, "token": f"{SERVICES}/hooks/{platform}/demo"}


def make_users(dice: Dice) -> list[Json]:
    """Users, the first ones with everything; later ones lack an address, a locale or a name's worth of ASCII."""
    users: list[Json] = []
    numbers = count()
    for index in range(USERS):
        user: Json = {"id": f"u{index:04d}", "name": dice.pick(NAMES)}
        complete = index < 5
        if complete or not dice.one_in(12):
            tag = "+news" if dice.one_in(9) else ""
            user["email"] = f"{user['id']}{tag}@{dice.pick(DOMAINS)}"
        if complete or not dice.one_in(4):
            user["phone"] = phone(index * 3)
        devices = 2 if complete else dice.pick((0, 0, 1, 1, 1, 2, 3))
        user["devices"] = [device(next(numbers), token(dice)) for _ in range(devices)]
        user["devices"] += [browser(*each) for each in BROWSERS[index : index + 1]]
        user["devices"] += [hook(platform) for platform in HOOKS[index : index + 1]]
        locale, zone = dice.pick(LOCALES), dice.pick(ZONES)
        if locale:
            user["locale"] = locale
        if zone:
            user["time_zone"] = zone
        users.append(user)
    users[7] |= {"email": GONE}
    return users


def make_preferences(dice: Dice, users: list[Json]) -> Json:
    """Opt-outs of a fifth of the users, by channel or by category."""
    choices: tuple[Json, ...] = (
        {"channels": {"sms": False}},
        {"channels": {"push": False}},
        {"channels": {"email": False, "push": True}},
        {"categories": {"marketing": {"email": False, "push": False}}},
        {"categories": {"marketing": {"email": False}, "social": {"push": False, "email": False}}},
        {"channels": {"sms": False}, "categories": {"orders": {"push": False}}},
        {"categories": {"security": {"sms": False}}},
    )
    return {
        user["id"]: {"channels": {}, "categories": {}, **dice.pick(choices)} for user in users[5:] if dice.one_in(5)
    }


def make_suppressions(users: list[Json]) -> list[Json]:
    """Addresses that must not be written to, whoever asks."""
    mails = [user["email"] for user in users[11:200:24] if "email" in user]
    numbers = [user["phone"] for user in users[17:200:40] if "phone" in user]
    return [
        *({"channel": "email", "address": address, "reason": "complaint"} for address in mails),
        *({"channel": "sms", "address": number, "reason": "stop"} for number in numbers),
        {"channel": "email", "address": "blocked@example.org", "reason": "manual"},
    ]


class Requests:
    """Makes one body after the other."""

    def __init__(self, dice: Dice, users: list[Json]) -> None:
        self._dice, self._users = dice, users
        self._weights = list(accumulate(1 / (rank + 1) ** 1.05 for rank in range(len(users))))

    def user(self) -> Json:
        """A user by Zipf's law: a few get many notifications, many get few."""
        return self._users[bisect(self._weights, self._dice.random() * self._weights[-1])]

    def make(self, number: int) -> Json:
        """The number-th body."""
        dice = self._dice
        special: tuple[Callable[[Json], Json], ...] = (
            self._first_available,
            self._first_available,
            self._addresses,
            self._addresses,
            self._content,
            self._content,
            self._other_locale,
            self._other_locale,
            self._version,
            self._unknown_user,
            self._unknown_template,
            self._unknown_version,
            self._missing_variable,
            self._blocked,
            self._expired,
            self._dry_run,
            self._at_most_once,
            self._gone,
            self._own_address,
            self._one_channel,
            self._one_channel,
        )
        body = self._ordinary()
        if dice.one_in(4):
            body = dice.pick(special)(body)
        if dice.random() < 0.5:
            body["request_id"] = f"r{number:05d}"
        return body

    def _ordinary(self) -> Json:
        dice, user = self._dice, self.user()
        kind = dice.pick(("order", "order", "order", "code", "password", "payment", "reply", "reply", "sale", "sale"))
        body: Json = {"to": {"user_id": user["id"]}}
        data: Json
        if kind == "order":
            items = [{"title": dice.pick(GOODS), "quantity": 1 + dice.below(5)} for _ in range(1 + dice.below(4))]
            hooked = ["webhook"] if any(each["platform"] in HOOKS for each in user["devices"]) else []
            body |= {
                "template": {"id": "order-shipped"},
                "data": {
                    "name": user["name"],
                    "order": f"A-{dice.below(10**6):06d}",
                    "items": items,
                    "total": (100 + dice.below(50_000)) / 100,
                    "currency": dice.pick(CURRENCIES),
                },
                "channels": [*dice.pick((["email"], ["email", "push"], ["email", "sms", "push"])), *hooked],
                "tags": ["shop"],
            }
        elif kind == "code":
            data = {"code": f"{dice.below(10**6):06d}"} | ({"minutes": 5} if dice.one_in(3) else {})
            body |= {"template": {"id": "login-code"}, "data": data, "channels": ["sms"], "priority": "critical"}
        elif kind == "password":
            data = {"name": user["name"]} | ({"place": dice.pick(PLACES)} if dice.one_in(2) else {})
            body |= {"template": {"id": "password-changed"}, "data": data, "priority": "critical"}
        elif kind == "payment":
            data = {"name": user["name"], "amount": dice.below(90_000) / 100, "currency": dice.pick(CURRENCIES)}
            if dice.one_in(2):
                data["reason"] = "card expired"
            body |= {
                "template": {"id": "payment-failed"},
                "data": data,
                "metadata": {"invoice": f"№ {dice.below(9999)}"},
            }
        elif kind == "reply":
            data = {"author": dice.pick(NAMES), "text": dice.pick(SENTENCES), "thread": f"t{dice.below(500)}"}
            body |= {"template": {"id": "comment-reply"}, "data": data, "channels": ["push"]}
        else:
            data = {"name": user["name"], "discount": 5 + dice.below(40), "until": "2031-03-31"}
            body |= {
                "template": {"id": "spring-sale"},
                "variables": data,
                "priority": "bulk",
                "tags": ["campaign", "spring-31"],
            }
        return body

    def _first_available(self, body: Json) -> Json:
        order = self._dice.pick((["push", "sms", "email"], ["sms", "email"], ["push", "email"]))
        data = {
            "name": "you",
            "order": "A-1",
            "items": [{"title": self._dice.pick(GOODS), "quantity": 1}],
            "total": 9.5,
            "currency": "EUR",
        }
        template = {"id": "order-shipped"}
        routing = {"strategy": "first_available"}
        return {"to": body["to"], "template": template, "data": data, "channels": order, "routing": routing}

    def _addresses(self, body: Json) -> Json:
        dice = self._dice
        number = 901 + dice.below(250)
        to, content = dice.pick(
            (
                (
                    {"email": f"guest{number}@example.org"},
                    {"subject": dice.pick(SENTENCES[:7]), "text": dice.pick(SENTENCES)},
                ),
                (
                    {"email": f"Guest.{number}@bücher.example"},
                    {"subject": "Rechnung № 7", "text": "Anbei", "html": "<p>Anbei 🧾</p>"},
                ),
                ({"phone": phone(number)}, {"text": dice.pick(SENTENCES)}),
                (
                    {
                        "device_tokens": [
                            {"platform": "fcm", "token": token(dice)},
                            {"platform": "fcm", "token": token(dice)},
                        ]
                    },
                    {"title": dice.pick(SENTENCES[:7]), "body": dice.pick(SENTENCES), "data": {"n": number, "é": "✓"}},
                ),
            )
        )
        return {"to": to, "content": content}

    def _content(self, body: Json) -> Json:
        content = {
            "subject": "{{ this }} stays as it is",
            "text": self._dice.pick(SENTENCES),
            "html": "<p>☀️ {% raw %}</p>",
        }
        return {"to": body["to"], "content": content, "category": "social"}

    def _other_locale(self, body: Json) -> Json:
        return {
            **body,
            "locale": self._dice.pick(("de-AT", "de-CH-1996", "fr-CA", "ja-JP", "zh-Hant-TW", "nl", "ar-EG")),
        }

    def _version(self, body: Json) -> Json:
        return {**body, "template": {**body["template"], "version": 1}}

    def _unknown_version(self, body: Json) -> Json:
        return {**body, "template": {**body["template"], "version": 4096}}

    def _unknown_template(self, body: Json) -> Json:
        return {**body, "template": {"id": "no-such-template"}}

    def _unknown_user(self, body: Json) -> Json:
        return {**body, "to": {"user_id": f"ghost-{self._dice.below(40)} 👻"}}

    def _missing_variable(self, body: Json) -> Json:
        return {"to": body["to"], "template": {"id": "payment-failed"}, "data": {"name": "nobody"}}

    def _blocked(self, body: Json) -> Json:
        return {"to": {"email": "blocked@example.org"}, "content": {"subject": "You will not read this", "text": "…"}}

    def _gone(self, body: Json) -> Json:
        return {"to": {"email": GONE}, "content": {"subject": "Anybody there?", "text": "Hello, hello, hello"}}

    def _expired(self, body: Json) -> Json:
        return {**body, "expires_at": "2021-06-30T12:00:00+02:00"}

    def _dry_run(self, body: Json) -> Json:
        return {**body, "dry_run": True}

    def _at_most_once(self, body: Json) -> Json:
        return {**body, "delivery": "at_most_once"}

    def _own_address(self, body: Json) -> Json:
        to = {**body["to"], "email": f"work{self._dice.below(50)}@sub.host.example"}
        return {**body, "to": to, "channels": [c for c in body.get("channels", ["email"]) if c != "sms"] or ["email"]}

    def _one_channel(self, body: Json) -> Json:
        return {**body, "channels": [self._dice.pick(("email", "push"))]}


def make_requests(dice: Dice, users: list[Json]) -> list[Json]:
    """All bodies; COPIES of those with a request_id come a second time, some lines later."""
    requests = Requests(dice, users)
    bodies = [requests.make(number) for number in range(REQUESTS - COPIES)]
    keyed = [index for index, body in enumerate(bodies) if "request_id" in body]
    for place in reversed(keyed[:: len(keyed) // COPIES][:COPIES]):  # from the end: earlier places stay what they are
        bodies.insert(place + 1 + dice.below(60), dict(bodies[place]))
    return bodies


def build() -> dict[str, str]:
    """File name → its text."""
    dice = Dice(SEED)
    users = make_users(dice)
    reference = {"users": users, "preferences": make_preferences(dice, users), "suppressions": make_suppressions(users)}
    bodies = make_requests(dice, users)
    return {
        "reference.json": json.dumps(reference, ensure_ascii=False, indent=1) + "\n",
        "requests.jsonl": "".join(
            json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n" for body in bodies
        ),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description="Write the demo's requests and reference data.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args(arguments).check
    different = 0
    for name, text in build().items():
        path = DIRECTORY / name
        if not check:
            path.write_text(text, "utf-8", newline="\n")
        elif not path.exists() or path.read_text("utf-8") != text:
            different += 1
            sys.stderr.write(f"{name} differs from what {Path(__file__).name} makes: run it without --check\n")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())

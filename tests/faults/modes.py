"""What becomes of a message whose first request meets each fault of each vendor: the table of docs/guarantees.md.

    python -m tests.faults.modes [KIND ...]     every kind where none is named

A channel has one account at a time here, so kinds of one channel take turns, each in a stack of its own. Each row has recipients of its own: the first request of each meets the fault, later ones are answered properly. Messages
that meet none go out between them, so that no breaker opens: this is about messages, not accounts. What was accepted comes from
the vendors' log, the states from ClickHouse. Prints Markdown; ends with 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from local.ports import PortBook
from local.simulator.faults import Mode
from local.supervisor.layout import to_toml
from local.verification import CHANNELS
from producers.publisher import Publication, Publisher
from runtime.clock import system_clock
from runtime.settings import KafkaSettings, ProviderSettings
from schemas.channels import SUBSCRIPTION_PLATFORMS
from tests.faults.world import World, world
from tests.support.accounts import GIVEN_URL_KINDS, SPEAKS, account, given_address

EACH = 12
WELL = 4
"""Messages that meet no fault, for each that does."""
DELIVERIES = ("at_least_once", "at_most_once")
HEAD = (
    "| vendor | fault of the first request | delivery | messages | accepted | accepted twice | flagged | ended |",
    "|---|---|---|---|---|---|---|---|",
)
DATE_S = 90
"""A Retry-After given as a date this far ahead."""


OF_THE_STACK = ("smtp", "twilio", "fcm", "apns")
"""Kinds of the accounts that every local stack has; their channels' addresses are told apart."""


def turns(kinds: Sequence[str]) -> list[list[str]]:
    """The kinds by stack: those that every stack has together, of the others one of each channel at a time."""
    left = [kind for kind in kinds if kind not in OF_THE_STACK]
    made = [[kind for kind in kinds if kind in OF_THE_STACK]]
    while left:
        first = {CHANNELS[kind]: kind for kind in reversed(left)}
        made.append(list(first.values()))
        left = [kind for kind in left if kind not in first.values()]
    return [turn for turn in made if turn]


@dataclass(frozen=True)
class Case:
    """A fault of a vendor."""

    number: int
    kind: str
    name: str
    fault: dict[str, Any] = field(compare=False)

    def recipient(self, n: int, simulator: str) -> tuple[dict[str, Any], str]:
        """`to`, and what of it only this case has."""
        mark = f"mode{self.number:02d}x"
        if self.kind in GIVEN_URL_KINDS:
            address = given_address(self.kind, simulator, f"{mark}-{n}")
            whole = self.kind in SUBSCRIPTION_PLATFORMS
            held = {"subscription": json.loads(address)} if whole else {"token": address}
            return {"device_tokens": [{"platform": self.kind, **held}]}, mark
        match CHANNELS[self.kind]:
            case "email":
                return {"email": f"{mark}-{n}@example.org"}, mark
            case "sms":
                return {"phone": f"+49151{self.number:02d}{n:06d}"}, f"+49151{self.number:02d}"
            case _ if self.kind != "apns":
                return {"device_tokens": [{"platform": self.kind, "token": f"{mark}-{n}"}]}, mark
        prefix = f"abc{self.number:02d}def"
        return {"device_tokens": [{"platform": "apns", "token": f"{prefix}{n:056x}"}]}, prefix


def cases(kinds: Sequence[str]) -> Iterator[Case]:
    """Every mode of the vendors, and throttling that names a date."""
    number = 0
    for kind in kinds:
        for mode in Mode:
            number += 1
            extra = {Mode.SLOW: {"latency_ms": 15_000}, Mode.THROTTLE: {"retry_after_s": 2}}.get(mode, {})
            yield Case(number, kind, "slow, 15 s" if mode is Mode.SLOW else mode.value, {"mode": mode.value, **extra})
        if SPEAKS.get(kind, kind) != "smtp":  # which has no such header
            number += 1
            fault = {"mode": "429", "retry_after_s": DATE_S, "retry_after_date": True}
            yield Case(number, kind, f"429, a date {DATE_S} s ahead", fault)


def publish(made: World, everything: list[Case]) -> dict[str, tuple[Case, str]]:
    """Notification id → its case and delivery."""
    endpoints = made.endpoints
    simulator = endpoints["simulator"]
    published: dict[str, tuple[Case, str]] = {}
    contents = {"email": {"subject": "S", "text": "T"}, "sms": {"text": "T"}, "webhook": {"text": "T"}}
    with Publisher(
        KafkaSettings(bootstrap_servers=endpoints["kafka"]), tenant=endpoints["tenant"], source="modes"
    ) as out:
        for case in everything:
            kind = SPEAKS.get(case.kind, case.kind)
            made.fault(kind=kind, match=case.recipient(0, simulator)[1], times=2 * EACH, **case.fault)
        for n in range(EACH):
            for place, delivery in enumerate(DELIVERIES):
                for case in everything:
                    body = {
                        "channels": [CHANNELS[case.kind]],
                        "content": contents.get(CHANNELS[case.kind], {"title": "T", "body": "B"}),
                    }
                    others = [
                        replace(case, number=case.number + 50).recipient(
                            EACH * len(DELIVERIES) * k + n * 2 + place, simulator
                        )[0]
                        for k in range(WELL)
                    ]
                    to, _ = case.recipient(n * 2 + place, simulator)
                    marked, *_ = out.publish_many(
                        [
                            Publication({**body, "to": to, "delivery": delivery}),
                            *(Publication({**body, "to": other}) for other in others),
                        ]
                    )
                    published[marked] = case, delivery
                    time.sleep(0.05)
    return published


def table(
    made: World, since: int, since_seq: int, published: dict[str, tuple[Case, str]]
) -> tuple[list[str], list[str]]:
    """Markdown lines, and what broke a promise."""
    verification = made.verification(since, since_seq, set(published))
    accepts = Counter((CHANNELS[kind], id_) for kind, id_ in verification.accepts)
    cells: dict[tuple[Case, str], list[Any]] = {}
    for message in verification.messages:
        if message.notification_id in published:
            cells.setdefault(published[message.notification_id], []).append(message)
    lines = list(HEAD)
    broken = []
    for (case, delivery), messages in sorted(cells.items(), key=lambda cell: (cell[0][0].number, cell[0][1])):
        counts = [accepts[message.channel, message.id] for message in messages]
        twice = sum(count > 1 for count in counts)
        flagged = sum(message.possible_duplicate for message in messages)
        states = Counter(message.state for message in messages)
        ended = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
        lines.append(
            f"| {case.kind} | {case.name} | {delivery} | {len(messages)} | {sum(counts)} | {twice} | {flagged} | {ended} |"
        )
        silent = sum(
            count > 1 and not message.possible_duplicate for count, message in zip(counts, messages, strict=True)
        )
        if silent or (delivery == "at_most_once" and twice) or len(messages) != EACH:
            broken.append(lines[-1])
    return lines, broken


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _account(kind: str, folder: Path, port: int, smtp: int) -> ProviderSettings:
    """At the simulator of the stack."""
    if SPEAKS.get(kind) == "smtp":
        open_relay: dict[str, Any] = {
            "tls": "none",
            "username": None,
            "password_file": None,
            "credentials_file": None,
            "relay": True,
        }
        return account(kind, folder, smtp, timeout_s=10, rate_per_second=None, **open_relay)
    return account(kind, folder, port, timeout_s=10, rate_per_second=None)


def run(kinds: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines of the table and what broke a promise, of kinds that one stack can serve."""
    everything = list(cases(kinds))
    book = PortBook()
    port, smtp = book.reserve("simulator"), book.reserve("smtp")
    book.close()
    with tempfile.TemporaryDirectory(prefix="heliograph-modes-") as name:
        directory = Path(name)
        config = directory / "modes.toml"
        own = [_account(kind, directory, port, smtp) for kind in kinds if kind not in OF_THE_STACK]
        config.write_text(to_toml({"providers": [each.model_dump(mode="json", exclude_none=True) for each in own]}))
        with world(
            directory / "stack", seconds=(), config=config if own else None, ports={"simulator": port, "smtp": smtp}
        ) as made:
            since, since_seq = system_clock(), made.accept_count()
            started = time.monotonic()
            published = publish(made, everything)
            accounting = made.settle(since, (1 + WELL) * len(published), 600, say)
            lines, broken = table(made, since, since_seq, published)
    say(f"{', '.join(kinds)}: {len(published)} notifications in {time.monotonic() - started:.0f} s: {accounting}")
    if accounting.get("in_flight") or accounting.get("residual"):
        broken.append(f"{', '.join(kinds)}: {accounting}")
    return lines, broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.modes", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    named = parser.parse_args().kinds
    unknown = [kind for kind in named if kind not in CHANNELS]
    if unknown:
        parser.error(f"the simulator plays no vendor of kind {', '.join(unknown)}")
    wrong = []
    for place, kinds in enumerate(turns(named or list(CHANNELS))):
        lines, broken = run(kinds)
        sys.stdout.write("\n".join(lines if place == 0 else lines[len(HEAD) :]) + "\n")
        wrong += broken
    for line in wrong:
        say(f"BROKEN: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

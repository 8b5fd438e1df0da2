"""Scripted misbehaviour: what a vendor does wrong, to whom, how often.

Modes, over HTTP / over SMTP:
    slow                 answers late / answers late after DATA
    429                  vendor's throttling error / 451 4.7.1 at RCPT
    500                  vendor's server error (503 with a Retry-After where the vendor has one) / 451 4.3.0 after DATA
    500_after_accept     accepts, then says 500 / accepts, then 451 4.3.0
    drop_after_accept    accepts, then closes the connection without an answer
    reset                resets the connection (RST) instead of accepting
    bad_json             accepts, then answers garbage
    reject               vendor's permanent error for the recipient / 550 5.1.1 at RCPT

A fault is of requests to send, or of look-ups (`"of": "look_up"`): a message that is asked after. There `reject` is that the vendor does
not show it, and the three that accept first close the connection or answer garbage.

Faults are tried in the order they were added. Slowness adds up and the search continues; the first other mode that
applies ends the search. Pure: no network, no clock. Never: a vendor's wire format.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Any


class Mode(StrEnum):
    """How a vendor misbehaves."""

    SLOW = "slow"
    THROTTLE = "429"
    FAIL = "500"
    FAIL_AFTER_ACCEPT = "500_after_accept"
    DROP_AFTER_ACCEPT = "drop_after_accept"
    RESET = "reset"
    BAD_JSON = "bad_json"
    REJECT = "reject"


SEND, LOOK_UP = "send", "look_up"
"""What a fault is of."""


class FaultError(ValueError):
    """A fault cannot be added: the message says why."""


@dataclass(slots=True)
class Fault:
    """One scripted fault and how often it was applied."""

    kind: str
    mode: Mode
    rate: float = 1.0
    latency_ms: float = 0.0
    retry_after_s: float | None = None
    retry_after_date: bool | str = False
    match: str | None = None
    times: int | None = None
    of: str = SEND
    applied: int = 0

    def as_json(self) -> dict[str, Any]:
        """The fault as it is listed."""
        return {
            "kind": self.kind,
            "mode": self.mode.value,
            "rate": self.rate,
            "latency_ms": self.latency_ms,
            "retry_after_s": self.retry_after_s,
            "retry_after_date": self.retry_after_date,
            "match": self.match,
            "times": self.times,
            "of": self.of,
            "applied": self.applied,
        }


@dataclass(frozen=True, slots=True)
class FaultDecision:
    """What happens to one request."""

    latency_s: float = 0.0
    mode: Mode | None = None
    retry_after_s: float | None = None
    retry_after_date: bool | str = False

    def retry_after(self, now: datetime) -> str | None:
        """The value of a Retry-After header: seconds, or a date."""
        if isinstance(self.retry_after_date, str):
            return self.retry_after_date
        if self.retry_after_date:
            return format_datetime(now + timedelta(seconds=self.retry_after_s or 0), usegmt=True)
        return None if self.retry_after_s is None else f"{self.retry_after_s:g}"


FINE = FaultDecision()
_FIELDS = frozenset({"kind", "mode", "rate", "latency_ms", "retry_after_s", "retry_after_date", "match", "times", "of"})


def _number(payload: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = payload.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise FaultError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
    return float(value)


def parse_fault(payload: object, kinds: Collection[str]) -> Fault:
    """A fault out of a JSON value. Raises FaultError with what is wrong."""
    if not isinstance(payload, dict):
        raise FaultError("a fault is a JSON object with kind and mode")
    unknown = sorted(set(payload) - _FIELDS)
    if unknown:
        raise FaultError(f"unknown field {unknown[0]}; known are {', '.join(sorted(_FIELDS))}")
    kind = payload.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise FaultError(f"kind must be one of {', '.join(sorted(kinds))}, not {kind!r}")
    mode = payload.get("mode")
    if isinstance(mode, int) and not isinstance(mode, bool):
        mode = str(mode)  # 429 and 500 look like numbers
    if not isinstance(mode, str) or mode not in set(Mode):
        raise FaultError(f"mode must be one of {', '.join(Mode)}, not {mode!r}")
    match = payload.get("match")
    if match is not None and not isinstance(match, str):
        raise FaultError("match must be a part of the recipient as a string")
    date = payload.get("retry_after_date", False)
    if date is not None and not isinstance(date, bool | str):
        raise FaultError("retry_after_date must be true, false or an HTTP date")
    times = payload.get("times")
    if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
        raise FaultError("times must be a whole number from 1")
    of = payload.get("of", SEND)
    if of not in (SEND, LOOK_UP):
        raise FaultError(f"of must be {SEND} or {LOOK_UP}")
    rate = _number(payload, "rate", 0, 1)
    latency = _number(payload, "latency_ms", 0, 3_600_000)
    if mode == Mode.SLOW and not latency:
        raise FaultError("slow needs latency_ms")
    return Fault(
        kind=str(kind),
        mode=Mode(mode),
        rate=1.0 if rate is None else rate,
        latency_ms=latency or 0.0,
        retry_after_s=_number(payload, "retry_after_s", 0, 86_400),
        retry_after_date=date or False,
        match=match or None,
        times=times,
        of=of,
    )


@dataclass(slots=True)
class FaultBook:
    """The faults in force."""

    kinds: Collection[str]
    draw: Callable[[], float] = random.random
    faults: list[Fault] = field(default_factory=list)

    def add(self, payload: object) -> Fault:
        """Add a fault. Raises FaultError."""
        fault = parse_fault(payload, self.kinds)
        self.faults.append(fault)
        return fault

    def clear(self) -> int:
        """Remove every fault; returns how many there were."""
        count = len(self.faults)
        self.faults.clear()
        return count

    def decide(self, kind: str, recipient: str, of: str = SEND) -> FaultDecision:
        """What happens to a request of `kind` for `recipient`: to send, or to look up."""
        if not self.faults:
            return FINE
        latency_s = 0.0
        for fault in self.faults:
            if fault.kind != kind or fault.of != of or (fault.times is not None and fault.applied >= fault.times):
                continue
            if fault.match is not None and fault.match not in recipient:
                continue
            if fault.rate < 1 and self.draw() >= fault.rate:
                continue
            fault.applied += 1
            latency_s += fault.latency_ms / 1000
            if fault.mode is not Mode.SLOW:
                return FaultDecision(latency_s, fault.mode, fault.retry_after_s, fault.retry_after_date)
        return FaultDecision(latency_s)

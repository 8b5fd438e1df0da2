"""What is asked of the API, without how it is asked: both clients send these calls, and repeat them by the same rules.

May import the standard library and types. Never: a connection, a clock.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from heliograph_client.types import Notification

PATH = "/v1/notifications"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0
MAX_IDS = 100
"""Notifications of one stream."""
MAX_ITEMS = 1_000
"""Notifications of one call."""


class HeliographError(Exception):
    """Of this package."""


class UnavailableError(HeliographError):
    """No answer in time, or none but 429 and 503 for as long as it was asked again."""


class ApiError(HeliographError):
    """The API refused: what its problem document says."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code: str = str(problem.get("code") or "unknown")
        self.detail: str = str(problem.get("detail") or problem.get("title") or "without a reason")
        self.errors: list[dict[str, Any]] = list(problem.get("errors") or ())
        self.request_id: str | None = problem.get("request_id")
        super().__init__(f"{status} {self.code}: {self.detail}")


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `again`: made twice it does what it does once, so that it is repeated when its answer is lost."""

    method: str
    path: str
    body: Any = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    again: bool = True


def segment(name: str) -> str:
    """A name as one step of a path."""
    return quote(name, safe="")


def send(notification: Notification, key: str | None) -> Call:
    """With the key given, else that of `request_id`, else one made now: a repeated call is the same notification."""
    if isinstance(notification["to"], list):
        raise HeliographError("one notification has one recipient here: send_many takes one for each")
    if key is None and notification.get("request_id"):
        return Call("POST", PATH, notification)
    return Call("POST", PATH, notification, headers={"Idempotency-Key": key or str(uuid.uuid4())})


def send_many(notifications: Sequence[Notification]) -> list[Call]:
    """As many calls as it takes; each notification has a `request_id` afterwards."""
    keyed: list[Notification] = [
        one if one.get("request_id") else {**one, "request_id": str(uuid.uuid4())} for one in notifications
    ]
    parts = [keyed[start : start + MAX_ITEMS] for start in range(0, len(keyed), MAX_ITEMS)]
    return [Call("POST", f"{PATH}/bulk", {"notifications": part}) for part in parts]


def in_order(answers: Sequence[Any]) -> list[Any]:
    """The results of several calls as those of one."""
    return [
        {**result, "index": number * MAX_ITEMS + result["index"]}
        for number, answer in enumerate(answers)
        for result in answer["results"]
    ]


def page(path: str, filters: Mapping[str, Any], cursor: str | None) -> Call:
    """One page of a list; filters that are None are left out."""
    given = {name: str(value) for name, value in filters.items() if value is not None}
    return Call("GET", path, query={**given, **({"cursor": cursor} if cursor else {})})


class Patience:
    """Whether and when a call is made again. Times are seconds of one monotonic clock."""

    def __init__(self, call: Call, now: float, retry_for_s: float) -> None:
        self._call, self._ends = call, now + retry_for_s
        self._wait_s = FIRST_WAIT_S

    def after_status(self, status: int, retry_after: str | None, now: float) -> float | None:
        """Seconds to wait before the next try; None when there is none. After a 503 of a call that is no repetition nothing is known."""
        if status != 429 and not (status == 503 and self._call.again):
            return None
        try:
            asked = float(retry_after or 0)
        except ValueError:
            asked = 0.0
        return self._next(max(asked, 0.0), now)

    def after_loss(self, now: float, *, was_sent: bool) -> float | None:
        """The same, when no answer came; `was_sent` when the API may have had the call."""
        return None if was_sent and not self._call.again else self._next(0.0, now)

    def _next(self, at_least: float, now: float) -> float | None:
        wait = max(at_least, self._wait_s * random.uniform(0.5, 1.0))
        self._wait_s = min(LONGEST_WAIT_S, self._wait_s * 2)
        return wait if now + wait < self._ends else None


def value_of(status: int, raw: bytes) -> Any:
    """The JSON of an answer. Raises ApiError for a refusal, UnavailableError for what is no JSON."""
    try:
        value = json.loads(raw) if raw else None
    except ValueError as exc:
        if status < 300:
            raise UnavailableError("the answer is not JSON: is this the address of the API?") from exc
        value = None
    if not 200 <= status < 300:
        raise ApiError(status, value if isinstance(value, dict) else {})
    return value

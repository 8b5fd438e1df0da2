"""An account whose requests go to URLs that users give: each of them is a receiver of its own, and a secret.

    | what a request came to                               | result                                               |
    |------------------------------------------------------|------------------------------------------------------|
    | its URL may not be asked for (runtime/outbound.py)   | rejected: no connection was made                     |
    | its address asked for a pause that is not over       | throttled, without a request                         |
    | any other                                            | as of every account over HTTP (http_account.py)      |

No result says anything of the account: a receiver that is away or slow concerns its own messages alone. One that throttles, or
whose gateway fails, is left alone for as long as it asks, else 1 s, doubled each time in a row up to 60 s.
May import the shared modules of vendors. Never: a vendor, a URL in a result.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import from_json
from yarl import URL

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.outbound import OutboundRefusedError, OutboundRules
from runtime.retry import asked_s
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.http_account import MESSAGE_ID_HEADER, GivenUrlAccount, HttpRequest
from vendors.provider import UnsendableError
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult

MAX_PAUSES = 10_000
"""Addresses that are paused at most; a further one takes the place of the oldest."""
MAX_PAUSE_S = 60.0
_RESTS = "its address asked for a pause"


class Pauses:
    """Which addresses are left alone, and until when; by fingerprint, as an address is a secret."""

    def __init__(self, monotonic: Monotonic = system_monotonic) -> None:
        self._monotonic = monotonic
        self._until: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def left_s(self, address: str) -> float:
        """Seconds until it may be asked again; 0 where it may."""
        if not self._until:
            return 0.0
        until, _ = self._until.get(_fingerprint(address), (0.0, 0))
        return max(0.0, until - self._monotonic())

    def note(self, address: str, result: SendResult) -> None:
        """What a request to it came to."""
        slows = isinstance(result, InDoubt) or (isinstance(result, Retry) and result.error is ErrorClass.THROTTLED)
        if not slows and not self._until:
            return
        key, now = _fingerprint(address), self._monotonic()
        until, in_a_row = self._until.pop(key, (now, 0))
        if isinstance(result, InDoubt | Retry) and slows:
            if until <= now:  # else it was under way together with the one that began the pause
                in_a_row += 1
            asked = result.retry_after_s
            wait_s = min(MAX_PAUSE_S, 2.0 ** min(in_a_row - 1, 6)) if asked is None else asked_s(asked)
            self._until[key] = (max(until, now + wait_s), in_a_row)
            if len(self._until) > MAX_PAUSES:
                self._until.popitem(last=False)


def _fingerprint(address: str) -> bytes:
    return hashlib.sha256(address.encode("utf-8", "surrogatepass")).digest()[:16]


class HookAccount(GivenUrlAccount):
    """One account of a kind whose addresses are URLs. A vendor says what is posted, and what the answers mean."""

    def __init__(self, provider: ProviderSettings, outbound: OutboundRules, clock: Clock = system_clock) -> None:
        super().__init__(provider, outbound, clock)
        self._pauses = Pauses()

    def checked_url(self, message: ChannelMessage) -> URL:
        """The address. Raises UnsendableError for one that may not be asked for."""
        try:
            return self._outbound.check_url(message["address"])
        except OutboundRefusedError as exc:
            raise UnsendableError(str(exc)) from exc

    async def deliver(self, prepared: HttpRequest) -> SendResult:
        """One POST at most."""
        address = str(prepared.url)
        if (left_s := self._pauses.left_s(address)) > 0:
            return Retry(ErrorClass.THROTTLED, _RESTS, left_s, account_wide=False)
        try:
            result = await super().deliver(prepared)
        except OutboundRefusedError as exc:
            return Rejected(ErrorClass.PERMANENT_MESSAGE, str(exc))
        self._pauses.note(address, result)
        return replace(result, account_wide=False) if isinstance(result, Retry | InDoubt) else result


def posted_json(message: ChannelMessage) -> dict[str, Any] | None:
    """The message's part json, None where it has none. Raises UnsendableError for what is none."""
    if message["data"] is None:
        return None
    try:
        value = from_json(message["data"], allow_inf_nan=False)
    except (ValueError, RecursionError) as exc:
        raise UnsendableError("its json is not JSON") from exc
    if not isinstance(value, dict) or not value:
        raise UnsendableError("its json is not an object with members")
    return value


def headers_of(message: ChannelMessage, **more: str) -> Mapping[str, str]:
    """Headers of a JSON body; our message id is for whoever reads logs between us, and for the simulator."""
    return {
        "Content-Type": "application/json",
        "User-Agent": "Heliograph",
        MESSAGE_ID_HEADER: message["message_id"],
        **more,
    }

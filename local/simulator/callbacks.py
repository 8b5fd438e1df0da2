"""Delivery reports of the simulated Twilio: `sent`, then the final status, signed and repeated until accepted.

    POST StatusCallback   form, X-Twilio-Signature: base64(HMAC-SHA1(auth token, URL + sorted fields))

`sent` goes out 0.1 s after the accept and the final status after 2 s, independently. A callback that is not accepted (5xx, no
connection) is repeated after 0.25 s, then twice as long each time up to 5 s, for two minutes: more patient than Twilio,
which stops after 15 s. A refused one (4xx) is not repeated. Nothing is kept through a restart of the simulator.
Recipients that are not reached: +1500555 and the last four digits of the error code, +15005553003 is `undelivered` with 30003.

May import aiohttp. Never: a twilio SDK, the log of accepts.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlencode

import aiohttp

SENT_AFTER_S = 0.1
END_AFTER_S = 2.0
TIMEOUT_S = 120.0
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 5.0
_TIMEOUT = aiohttp.ClientTimeout(total=15)
_AT_ONCE = 32
_UNREACHABLE = re.compile(r"\+1500555(3\d{3})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message whose sender wants to hear of it."""

    account_sid: str
    auth_token: str
    sid: str
    to: str
    sender: str
    url: str


def end_of(to: str) -> dict[str, str]:
    """How a message to this number ends."""
    unreachable = _UNREACHABLE.fullmatch(to)
    if unreachable is None:
        return {"MessageStatus": "delivered"}
    return {"MessageStatus": "undelivered", "ErrorCode": f"3{unreachable[1][1:].zfill(4)}"}


def signature(auth_token: str, url: str, fields: dict[str, str]) -> str:
    """X-Twilio-Signature."""
    signed = url + "".join(name + fields[name] for name in sorted(fields))
    return base64.b64encode(hmac.digest(auth_token.encode(), signed.encode(), "sha1")).decode()


@dataclass(slots=True)
class Callbacks:
    """Posts delivery reports. `answers` counts by status and HTTP status; 0 is a callback that was never accepted."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    _session: aiohttp.ClientSession | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @property
    def pending(self) -> int:
        """Callbacks not accepted yet."""
        return len(self._tasks)

    def report(self, accepted: Accepted) -> None:
        """Report this message's deliveries from now on."""
        for after_s, report in ((SENT_AFTER_S, {"MessageStatus": "sent"}), (END_AFTER_S, end_of(accepted.to))):
            task = asyncio.create_task(self._post_until_taken(accepted, report, after_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _post_until_taken(self, accepted: Accepted, report: dict[str, str], after_s: float) -> None:
        status = report["MessageStatus"]
        url, _, _ = accepted.url.partition("#")  # the fragment is for Twilio, and never sent
        fields = {
            "AccountSid": accepted.account_sid,
            "ApiVersion": "2010-04-01",
            "From": accepted.sender,
            "To": accepted.to,
            "MessageSid": accepted.sid,
            "SmsSid": accepted.sid,
            "SmsStatus": status,
            **report,
        }
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Twilio-Signature": signature(accepted.auth_token, url, fields),
        }
        await asyncio.sleep(after_s)
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        wait_s = _FIRST_WAIT_S
        while True:
            async with self._room:
                answer = await self._post(url, urlencode(fields).encode(), headers)
            if answer and answer < 500:
                break
            if asyncio.get_running_loop().time() + wait_s > deadline:
                break
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        self.answers[status, answer] += 1

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):  # ValueError: an invalid URL
            return 0

    async def close(self) -> None:
        """Stop reporting."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

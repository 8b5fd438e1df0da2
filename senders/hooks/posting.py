"""One signed request to an endpoint, and what its answer means; the test of a webhook (api) makes the same one.

    | answer                                   | outcome                                                    |
    |------------------------------------------|------------------------------------------------------------|
    | 2xx                                      | delivered                                                  |
    | 410                                      | gone: it wants no more                                     |
    | 429, 502, 503, 504                       | throttled                                                  |
    | any other; redirects are not followed    | refused                                                    |
    | none within MAX_S, no connection         | unreachable                                                |
    | a URL that may not be asked for          | unreachable: no connection was made (runtime/outbound.py)  |

May import runtime.outbound, vendors.http and the signature. Never: a URL or an address in a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.clock import Clock, system_clock
from runtime.outbound import MAX_ANSWER_BYTES, MAX_S, CheckedResolver, OutboundRefusedError, OutboundRules
from runtime.retry import parse_retry_after
from runtime.settings import OutboundSettings
from vendors.http import HttpTransport, NotSentError, ResponseLostError
from vendors.webhook.signature import Signer

OutcomeKind = Literal["delivered", "gone", "throttled", "refused", "unreachable"]
_GONE = 410
_THROTTLES = frozenset({429, 502, 503, 504})
_UNLIMITED = 0
"""Connections of the session: every endpoint has its own bound, so that one that is slow takes none from another."""
NOT_ALLOWED = "url_not_allowed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request came to: `code` is the HTTP status, else a word."""

    kind: OutcomeKind
    code: str
    retry_after_s: float | None = None
    body: bytes = b""


class HookClient:
    """Kept connections to endpoints."""

    def __init__(self, outbound: OutboundSettings, clock: Clock = system_clock) -> None:
        self._rules, self._clock = OutboundRules(outbound), clock
        self._http = HttpTransport(
            MAX_S, _UNLIMITED, max_response_bytes=MAX_ANSWER_BYTES, resolver=CheckedResolver(self._rules)
        )

    def start(self) -> None:
        """Make the session; opens no connection."""
        self._http.start()

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

    def check_url(self, url: str) -> None:
        """Raises OutboundRefusedError for a URL that may not be asked for, whatever its name resolves to."""
        self._rules.check_url(url)

    async def post(self, url: str, signer: Signer, webhook_id: str, body: bytes) -> Outcome:
        """One request."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Heliograph",
            **signer.headers(webhook_id, self._clock(), body),
        }
        try:
            response = await self._http.post(self._rules.check_url(url), headers=headers, body=body)
        except OutboundRefusedError:
            return Outcome("unreachable", NOT_ALLOWED)
        except (NotSentError, ResponseLostError) as exc:
            return Outcome("unreachable", str(exc))
        status, code = response.status, str(response.status)
        if 200 <= status < 300:
            return Outcome("delivered", code, body=response.body)
        if status == _GONE:
            return Outcome("gone", code, body=response.body)
        if status in _THROTTLES:
            asked = parse_retry_after(response.headers.get("retry-after"), self._clock())
            return Outcome("throttled", code, asked, response.body)
        return Outcome("refused", code, body=response.body)

"""Push to browsers (RFC 8030): one POST to the subscription's endpoint, encrypted for its browser, signed with our key.

    | response                                      | result                                          |
    |-----------------------------------------------|-------------------------------------------------|
    | any 2xx (services say 201)                    | sent; the id is the last part of its Location   |
    | any other status                              | its row in codes.py                             |
    | the service is not on a public address        | account: our resolver is wrong, not the browser |

The address is the subscription as JSON. Its endpoint is a URL that a stranger gave: it is asked for only where the account's
`hosts` name it and runtime/outbound.py lets it through. The service worker gets JSON: title, body, data and message_id.
A push waits at the service until it expires (TTL), 28 days where the message names no end; a possible duplicate takes the place
of the first while that waits (Topic).
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Any

from runtime import ids
from runtime.clock import Clock, system_clock
from runtime.outbound import OutboundRefusedError, OutboundRules
from runtime.settings import ProviderSettings
from runtime.subscriptions import read_subscription
from schemas.events import ChannelMessage
from vendors.http import HttpResponse
from vendors.http_account import Answer, GivenUrlAccount, HttpRequest, by_status, json_body
from vendors.provider import UnsendableError
from vendors.push_data import push_data
from vendors.sender import ErrorClass, InDoubt, Retry, SendResult, Sent
from vendors.settings import parse_keys
from vendors.webpush.codes import CODES
from vendors.webpush.encryption import ENCODING, encrypted
from vendors.webpush.keys import WebpushKeys
from vendors.webpush.vapid import VapidTokens, read_key

MAX_TTL_S = 28 * 86_400
"""Longest that services keep a push; RFC 8030's 0 would drop it where the browser is not connected."""
_URGENCY = {"critical": "high", "normal": "normal", "bulk": "low"}


class WebpushSender(GivenUrlAccount):
    """One application server's key."""

    channel = "push"
    platforms = frozenset({"webpush"})
    codes = CODES

    def __init__(
        self, provider: ProviderSettings, keys: WebpushKeys, outbound: OutboundRules, clock: Clock = system_clock
    ) -> None:
        super().__init__(provider, outbound, clock)
        self._keys = keys
        self._tokens = VapidTokens(read_key(provider, keys.key(provider)), keys.subject, clock)

    def doubts(self) -> list[str]:
        """Hosts that cannot be asked, or that are more than a push service."""
        found = []
        for host in self._keys.hosts:
            if host.startswith("*.") and "." not in host[2:]:
                found.append(f"hosts: {host} is whatever a stranger registers below a top-level domain")
                continue
            try:
                self._outbound.check_url(f"https://{host.removeprefix('*.')}/")
            except OutboundRefusedError as exc:
                found.append(f"hosts: {host}: {exc}")
        return found

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The encrypted push. Raises UnsendableError for an address that is no subscription, or is not at one of `hosts`."""
        try:
            subscription = read_subscription(message["address"])
            endpoint = self._outbound.check_url(subscription.endpoint)
        except (ValueError, OutboundRefusedError) as exc:
            raise UnsendableError(str(exc)) from exc
        if not self._keys.serves((endpoint.raw_host or "").lower()):
            raise UnsendableError("the endpoint's host is none of the account's hosts")
        message_id = message["message_id"]
        push: dict[str, Any] = {"title": message["title"], "body": message["body"], "message_id": message_id}
        if data := push_data(message):
            push["data"] = data
        expires_at = message["expires_at"]
        left_s = MAX_TTL_S if expires_at is None else (expires_at - self._clock()) // 1000
        headers = {
            "Authorization": self._tokens.authorization(str(endpoint.origin())),
            "Content-Encoding": ENCODING,
            "Content-Type": "application/octet-stream",
            "TTL": str(min(MAX_TTL_S, max(1, left_s))),
            "Topic": urlsafe_b64encode(ids.bytes_of(message_id)).decode().rstrip("="),
            "Urgency": _URGENCY[message["lane"]],
        }
        return HttpRequest(endpoint, headers, encrypted(subscription, json_body(push)))

    async def deliver(self, prepared: HttpRequest) -> SendResult:
        """One POST."""
        try:
            return await super().deliver(prepared)
        except OutboundRefusedError as exc:
            return Retry(ErrorClass.ACCOUNT, str(exc))

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if not 200 <= response.status < 300:
            return by_status(response)
        return Sent(response.headers.get("location", "").rpartition("/")[2] or None)


def create(provider: ProviderSettings, outbound: OutboundRules) -> WebpushSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return WebpushSender(provider, parse_keys(WebpushKeys, provider), outbound)

"""Push through OneSignal's POST /notifications: one subscription a request, with our message id as its idempotency key.

    | response                                      | result                                          |
    |-----------------------------------------------|-------------------------------------------------|
    | 200 with an id                                | sent                                            |
    | 200 with an empty id and errors               | permanent_recipient: no push was made           |
    | 200 that cannot be read, or says neither      | in doubt                                        |
    | any other status                              | its row in codes.py                             |

A key that it knows gets the first request's answer again and makes no push, for 30 days and whatever came of the answer
(documentation.onesignal.com/reference/idempotent-notification-requests): a doubt is repeated (senders/repeats.py).
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import UUID

from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.http import HttpResponse
from vendors.http_account import (
    UNREADABLE,
    Answer,
    HttpAccount,
    HttpRequest,
    by_status,
    json_body,
    member,
    parsed,
    said,
)
from vendors.onesignal.codes import CODES, NOT_SUBSCRIBED
from vendors.onesignal.keys import OnesignalKeys
from vendors.push_data import is_silent, push_data
from vendors.sender import InDoubt, Sent
from vendors.settings import checked_base_url, parse_keys


class OnesignalSender(HttpAccount):
    """One OneSignal app."""

    channel = "push"
    platforms = frozenset({"onesignal"})
    repeatable_s = 30 * 86_400.0
    codes = CODES

    def __init__(self, provider: ProviderSettings, keys: OnesignalKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._app_id = keys.app_id
        self._url = f"{checked_base_url(provider, keys.base_url)}/notifications"
        self._headers = {"Authorization": f"Key {keys.secret(provider)}", "Content-Type": "application/json"}

    def doubts(self) -> list[str]:
        """OneSignal's ids of apps are UUIDs."""
        try:
            UUID(self._app_id)
        except ValueError:
            return ["app_id is no UUID: it is in Settings, Keys & IDs"]
        return []

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The push as JSON."""
        push: dict[str, Any] = {
            "app_id": self._app_id,
            "target_channel": "push",
            "include_subscription_ids": [message["address"]],
            "idempotency_key": message["message_id"],
            # On the device, a possible duplicate takes the place of the first.
            "collapse_id": message["message_id"][:64],
        }
        if data := push_data(message):
            push["data"] = data
        if is_silent(message):
            push["content_available"] = True
        else:
            # "en" is what every device falls back to, and the API wants it; a push of a title alone shows that.
            push["contents"] = {"en": message["body"] or message["title"]}
            if message["title"] and message["body"]:
                push["headings"] = {"en": message["title"]}
        if (expires_at := message["expires_at"]) is not None:
            push["ttl"] = max(1, (expires_at - self._clock()) // 1000)
        return HttpRequest(self._url, self._headers, json_body(push))

    def reference(self, message: ChannelMessage, provider_message_id: str | None) -> str | None:
        """OneSignal's own id: what it knows of ours it does not report."""
        return provider_message_id

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if response.status != 200:
            return by_status(response)
        body = parsed(response)
        given = member(body, "id")
        if given and isinstance(given, str):
            return Sent(given)
        if given == "" and member(body, "errors"):  # a list or an object
            return Answer((NOT_SUBSCRIBED,), said(200, NOT_SUBSCRIBED))
        return UNREADABLE

    def probe_request(self) -> HttpRequest:
        """The app's last message: what an app's own key may read."""
        return HttpRequest(f"{self._url}?app_id={quote(self._app_id, safe='')}&limit=1", self._headers, None)

    def read_probe(self, response: HttpResponse) -> Answer | None:
        """It needs the key of this app."""
        return None if response.status == 200 else by_status(response)


def create(provider: ProviderSettings) -> OnesignalSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return OnesignalSender(provider, parse_keys(OnesignalKeys, provider))

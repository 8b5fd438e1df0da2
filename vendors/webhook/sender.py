"""Webhooks by the Standard Webhooks specification: one signed POST to the address.

    | response                       | result                          |
    |--------------------------------|---------------------------------|
    | 2xx                            | sent                            |
    | any other                      | its row in codes.py             |

`webhook-id` is the message id, also of a message that is sent again because its answer was lost: a receiver that keeps ids
sees each message once. The body is the message's JSON object, else {"text": …}.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

from runtime.clock import Clock, system_clock
from runtime.outbound import OutboundRules
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.hook_account import HookAccount, headers_of, posted_json
from vendors.http import HttpResponse
from vendors.http_account import Answer, HttpRequest, by_status, json_body, said
from vendors.provider import UnsendableError
from vendors.sender import Sent
from vendors.settings import parse_keys
from vendors.webhook.codes import CODES, REDIRECT, REFUSED
from vendors.webhook.keys import WebhookKeys
from vendors.webhook.signature import Signer

_CLASSES = {3: REDIRECT, 4: REFUSED}


class WebhookSender(HookAccount):
    """One secret, and every receiver that knows it."""

    channel = "webhook"
    platforms = frozenset({"webhook"})
    codes = CODES

    def __init__(
        self, provider: ProviderSettings, keys: WebhookKeys, outbound: OutboundRules, clock: Clock = system_clock
    ) -> None:
        super().__init__(provider, outbound, clock)
        self._signatures = Signer(keys.secrets(provider))

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The message as JSON, with a signature by each secret. Raises UnsendableError for one without content."""
        content = posted_json(message)
        if content is None and not message["text"]:
            raise UnsendableError("a webhook needs a json or a text")
        body = json_body(content or {"text": message["text"]})
        signed = self._signatures.headers(message["message_id"], self._clock(), body)
        return HttpRequest(self.checked_url(message), headers_of(message, **signed), body)

    def read(self, response: HttpResponse) -> Sent | Answer:
        """See the table above."""
        if 200 <= response.status < 300:
            return Sent()
        answer = by_status(response)
        whole_class = _CLASSES.get(response.status // 100)
        return answer if whole_class is None else Answer((*answer.keys, whole_class), said(response.status))


def create(provider: ProviderSettings, outbound: OutboundRules) -> WebhookSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return WebhookSender(provider, parse_keys(WebhookKeys, provider), outbound)

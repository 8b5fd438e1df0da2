"""Messages to Slack through incoming webhooks: one POST to the address.

    | response                               | result                                            |
    |----------------------------------------|---------------------------------------------------|
    | 200 `ok`                               | sent                                              |
    | 200 with anything else                 | in doubt                                          |
    | any other                              | the row of its word, else of its status           |

A text is shown as it is: `& < >` are escaped, so that no data makes a link or calls a channel together. A JSON object (blocks,
attachments) is its author's, who may write links; in it, data calls nobody: `<!` and `<@` are made inert.
Slack knows no id of ours, so a doubt that is sent again shows twice.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

import re
from typing import Any

from runtime.json_texts import with_texts
from runtime.outbound import OutboundRules
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.hook_account import HookAccount, headers_of, posted_json
from vendors.http import HttpResponse
from vendors.http_account import UNREADABLE, Answer, HttpRequest, json_body, said
from vendors.provider import UnsendableError
from vendors.sender import InDoubt, Sent
from vendors.settings import parse_keys
from vendors.slack.codes import CODES, word_key
from vendors.slack.keys import SlackKeys

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_CALL = re.compile("<(?=[!@])")
_WORD = re.compile(rb"[a-z_]{1,64}")


def escaped(text: str) -> str:
    """Text that Slack shows as it was: none of it is a link or calls anybody."""
    return text.translate(_ESCAPES)


class SlackSender(HookAccount):
    """Every incoming webhook of Slack."""

    channel = "webhook"
    platforms = frozenset({"slack"})
    codes = CODES

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The payload. Raises UnsendableError for a message without content."""
        payload: dict[str, Any] = with_texts(posted_json(message) or {}, lambda text, _: _CALL.sub("&lt;", text))
        if message["text"]:
            payload.setdefault("text", escaped(message["text"]))
        if not payload:
            raise UnsendableError("a message to Slack needs a text or a json with blocks")
        return HttpRequest(self.checked_url(message), headers_of(message), json_body(payload))

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        word = response.body.strip()
        if response.status == 200:
            return Sent() if word == b"ok" else UNREADABLE
        status, code = str(response.status), word.decode() if _WORD.fullmatch(word) else None
        return Answer((word_key(code), status) if code else (status,), said(response.status, code))


def create(provider: ProviderSettings, outbound: OutboundRules) -> SlackSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    parse_keys(SlackKeys, provider)
    return SlackSender(provider, outbound)

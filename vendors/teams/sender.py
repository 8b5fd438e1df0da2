"""Messages to Microsoft Teams through the webhooks of Workflows: one Adaptive Card a POST.

    | response                        | result                                                            |
    |---------------------------------|-------------------------------------------------------------------|
    | 202                             | sent: the flow was triggered; nobody says whether it has posted   |
    | any other 2xx                   | in doubt: the flow replies by itself                              |
    | any other                       | the row of its status in codes.py                                 |

A text becomes a card that shows it as it is, line by line: a text run knows no Markdown, so data makes no link. A JSON object is
a card of the template's author. The URLs of Office 365 connectors, which Microsoft retired, are refused: some of them answered
200 with an error in words. Teams knows no id of ours, so a doubt that is sent again shows twice.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

from typing import Any

from yarl import URL

from runtime.outbound import OutboundRules
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.hook_account import HookAccount, headers_of, posted_json
from vendors.http import HttpResponse
from vendors.http_account import Answer, HttpRequest, by_status, json_body, said
from vendors.provider import UnsendableError
from vendors.sender import Sent
from vendors.settings import parse_keys
from vendors.teams.codes import CODES, OWN_REPLY
from vendors.teams.keys import TeamsKeys

MAX_BODY_BYTES = 28 * 1024
_CARD = "AdaptiveCard"
_RETIRED = (".webhook.office.com", "outlook.office.com", "outlook.office365.com")
"""Hosts of Office 365 connectors."""


def card_of(text: str) -> dict[str, Any]:
    """A card that shows the text."""
    return {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": _CARD,
        "version": "1.4",
        "body": [
            # An empty run is dropped, and its line with it.
            {"type": "RichTextBlock", "spacing": "None", "inlines": [{"type": "TextRun", "text": line or " "}]}
            for line in text.splitlines()
        ],
    }


class TeamsSender(HookAccount):
    """Every webhook of Workflows."""

    channel = "webhook"
    platforms = frozenset({"teams"})
    codes = CODES

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The message with its card. Raises UnsendableError for a connector's URL, a card that is none, and one over 28 KB."""
        url = self._url_of_a_flow(message)
        card = posted_json(message)
        if card is None:
            card = card_of(message["text"] or "")
        if card.get("type") != _CARD or not card.get("body"):
            raise UnsendableError(f'a message to Teams needs a text, or a json with "type": "{_CARD}" and a body')
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
        body = json_body({"type": "message", "attachments": [attachment]})
        if len(body) > MAX_BODY_BYTES:
            raise UnsendableError(f"the card has {len(body)} bytes; Teams takes {MAX_BODY_BYTES}")
        return HttpRequest(url, headers_of(message), body)

    def _url_of_a_flow(self, message: ChannelMessage) -> URL:
        url = self.checked_url(message)
        if f".{(url.host or '').lower().rstrip('.')}".endswith(_RETIRED):
            raise UnsendableError(
                "the URL is of an Office 365 connector, which Microsoft retired: make a webhook in Teams' Workflows app"
                ' ("Send webhook alerts to a channel"), and give the URL that it shows'
            )
        return url

    def read(self, response: HttpResponse) -> Sent | Answer:
        """See the table above."""
        if response.status == 202:
            return Sent()
        if 200 <= response.status < 300:
            return Answer((OWN_REPLY,), said(response.status, OWN_REPLY))
        return by_status(response)


def create(provider: ProviderSettings, outbound: OutboundRules) -> TeamsSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    parse_keys(TeamsKeys, provider)
    return TeamsSender(provider, outbound)

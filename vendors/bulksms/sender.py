"""SMS through BulkSMS's POST /v1/messages: one message a request.

    | response                                         | result                                       |
    |--------------------------------------------------|----------------------------------------------|
    | 201, a message with an id, on its way            | sent                                         |
    | 201, a message with an id, failed or unknown     | the row of its status                        |
    | 201 that cannot be read, or without an id        | in doubt                                     |
    | any other status                                 | its row in codes.py                          |

The vendor's deduplication-id is not used: it is 32 bits wide, and two messages that share one by chance would be one, with an
answer that says success. userSuppliedId is 120 bits of our message id, by which a message can be asked for.
The vendor fills templates in a text ({F0##}, {fn##}, {sn##}) and documents no escape: a zero-width space after the brace keeps
such a text as it was written, which rests on that document alone.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import quote
from uuid import UUID

from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.bulksms.codes import CODES
from vendors.bulksms.keys import BulksmsKeys
from vendors.http import HttpResponse, basic_auth
from vendors.http_account import (
    MESSAGE_ID_HEADER,
    UNREADABLE,
    Answer,
    HttpRequest,
    LookUpAccount,
    by_status,
    items,
    json_body,
    member,
    parsed,
    said,
    sent_as,
)
from vendors.provider import UnsendableError
from vendors.sender import Doubt, ErrorClass, InDoubt, Rejected, Sent
from vendors.settings import checked_base_url, parse_keys
from vendors.sms_text import checked_parts, clean_text, noted_parts

_TEMPLATE = re.compile(r"\{(?=(?:F[0-9]+|fn|sn)#*\})", re.IGNORECASE)
_INERT = "{\u200b"
_TAKEN = ("ACCEPTED", "SCHEDULED", "SENT", "DELIVERED")
_STATUS = re.compile(r"[A-Za-z_.]{1,40}")


def user_supplied_id(message_id: str) -> str:
    """120 bits of the message id as 20 characters, the most the vendor takes. Raises UnsendableError for no UUID."""
    try:
        return urlsafe_b64encode(UUID(message_id).bytes[:15]).decode()
    except ValueError as exc:
        raise UnsendableError("the message id is not a Heliograph id") from exc


def sender_type(sender: str) -> str:
    """What the vendor itself takes a sender for that is given without its type."""
    return "INTERNATIONAL" if sender.removeprefix("+").isdigit() else "ALPHANUMERIC"


class BulksmsSender(LookUpAccount):
    """One BulkSMS account."""

    channel = "sms"
    codes = CODES
    shows_after_s = 5.0

    def __init__(self, provider: ProviderSettings, keys: BulksmsKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._sender, self._max_parts = keys.sender, keys.max_parts
        base = checked_base_url(provider, keys.base_url)
        self._url, self._profile = f"{base}/v1/messages", f"{base}/v1/profile"
        authorization = {"Authorization": basic_auth(keys.key, keys.password(provider))}
        self._headers = {**authorization, "Content-Type": "application/json"}

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The message as JSON. Raises UnsendableError for a text of too many parts."""
        text = _TEMPLATE.sub(_INERT, clean_text(message["text"] or ""))
        unicode, _ = checked_parts(text, self._max_parts)
        entry: dict[str, Any] = {
            "to": [{"type": "INTERNATIONAL", "address": message["address"]}],
            "body": text,
            "encoding": "UNICODE" if unicode else "TEXT",
            "longMessageMaxParts": self._max_parts,
            "deliveryReports": "ALL",
            "userSuppliedId": user_supplied_id(message["message_id"]),
        }
        if self._sender is not None:
            entry["from"] = {"type": sender_type(self._sender), "address": self._sender}
        headers = {**self._headers, MESSAGE_ID_HEADER: message["message_id"]}
        return HttpRequest(self._url, headers, json_body([entry]))

    def detail(self, message: ChannelMessage) -> str:
        """Parts of the text."""
        return noted_parts(message["text"] or "")

    def reference(self, message: ChannelMessage, provider_message_id: str | None) -> str | None:
        """Ours: it is known also where the answer is lost."""
        return user_supplied_id(message["message_id"])

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if response.status == 201:
            body = parsed(response)
            made = body[0] if isinstance(body, list) and len(body) == 1 else None
            given, status = member(made, "id"), member(made, "status")
            if member(status, "type") in _TAKEN:
                return sent_as(given)
            state = member(status, "id")
            if isinstance(state, str) and _STATUS.fullmatch(state):
                return Answer((state,), said(201, state))
            return UNREADABLE
        return by_status(response)

    def look_up_request(self, doubt: Doubt) -> HttpRequest:
        """The messages with our part of the id: exact."""
        wanted = quote(f"userSuppliedId={user_supplied_id(doubt.message_id)}", safe="")
        return HttpRequest(f"{self._url}?filter={wanted}&limit=10", self._headers, None)

    def read_look_up(self, response: HttpResponse, doubt: Doubt) -> Sent | Rejected | None:
        """The message, as far as it is ours: a filter that the vendor does not know would show others."""
        ours = user_supplied_id(doubt.message_id)
        found = [entry for entry in items(parsed(response)) if member(entry, "userSuppliedId") == ours]
        refused = None
        for entry in found:
            status = member(entry, "status")
            state = member(status, "id")
            if member(status, "type") in _TAKEN:
                return Sent(member(entry, "id"), reference=ours)
            rule = self.codes.find(state) if isinstance(state, str) and _STATUS.fullmatch(state) else None
            if rule and rule.error in (ErrorClass.PERMANENT_RECIPIENT, ErrorClass.PERMANENT_MESSAGE):
                refused = Rejected(rule.error, said(200, state), rule.opted_out)
            # Any other that failed may be an earlier try, which its sender knows of: it says nothing of the last one.
        return refused

    def probe_request(self) -> HttpRequest:
        """The account's profile."""
        return HttpRequest(self._profile, self._headers, None)

    def read_probe(self, response: HttpResponse) -> Answer | None:
        """It needs the credentials and nothing else."""
        return None if response.status == 200 else by_status(response)


def create(provider: ProviderSettings) -> BulksmsSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return BulksmsSender(provider, parse_keys(BulksmsKeys, provider))

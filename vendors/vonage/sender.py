"""SMS through Vonage's SMS API (POST /sms/json): one text to one number a request.

    | response                                         | result                                       |
    |--------------------------------------------------|----------------------------------------------|
    | 200, every part has status 0                     | sent; the id of the first part               |
    | 200, some parts have it and others have not      | in doubt: part of the text is on its way     |
    | 200, no part has it                              | the row of the first part's status           |
    | 200 that cannot be read, or without an id        | in doubt                                     |
    | any other status                                 | its row in codes.py                          |

A text is sent as `unicode` where GSM-7 has not all of its characters: the API does not find out by itself. The token
(runtime/callbacks.py) goes along as client-ref. Basic authentication is what the vendor's own SDK uses here.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

from typing import Any

from runtime.callbacks import subject_token
from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.http import HttpResponse, basic_auth
from vendors.http_account import (
    UNREADABLE,
    Answer,
    HttpAccount,
    HttpRequest,
    by_status,
    form_body,
    items,
    member,
    parsed,
    said,
    sent_as,
)
from vendors.sender import InDoubt, Sent
from vendors.settings import checked_base_url, parse_keys
from vendors.sms_text import checked_parts, clean_text
from vendors.vonage.codes import CODES, PARTIAL, status_key
from vendors.vonage.keys import VonageKeys

_TAKEN = "0"
_MAX_REFERENCE = 100
"""Characters of client-ref."""


class VonageSender(HttpAccount):
    """One Vonage account."""

    channel = "sms"
    codes = CODES

    def __init__(self, provider: ProviderSettings, keys: VonageKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._sender, self._max_parts = keys.sender, keys.max_parts
        base = checked_base_url(provider, keys.base_url)
        self._url, self._balance = f"{base}/sms/json", f"{base}/account/get-balance"
        authorization = {"Authorization": basic_auth(keys.key, keys.password(provider))}
        self._headers = {**authorization, "Content-Type": "application/x-www-form-urlencoded"}

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The form. Raises UnsendableError for a text of too many parts."""
        text = clean_text(message["text"] or "")
        parts = checked_parts(text, self._max_parts)
        form = {
            "from": self._sender,
            "to": message["address"].removeprefix("+"),
            "text": text,
            "client-ref": _reference(message),
            **({"type": "unicode"} if parts.unicode else {}),
        }
        return HttpRequest(self._url, self._headers, form_body(form), str(parts))

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if response.status != 200:
            return by_status(response)
        parts = items(member(parsed(response), "messages"))
        statuses = [_status(part) for part in parts]
        if not statuses or None in statuses:
            return UNREADABLE
        if set(statuses) == {_TAKEN}:
            first = member(parts[0], "message-id")
            return sent_as(first)
        refused = next(status for status in statuses if status != _TAKEN)
        key = status_key(str(refused))
        return Answer(
            (PARTIAL if _TAKEN in statuses else key,), said(200, PARTIAL if _TAKEN in statuses else None, key)
        )

    def probe_request(self) -> HttpRequest:
        """The balance."""
        return HttpRequest(self._balance, self._headers, None)

    def read_probe(self, response: HttpResponse) -> Answer | None:
        """It needs the credentials and nothing else."""
        return None if response.status == 200 else by_status(response)


def _reference(message: ChannelMessage) -> str:
    """The token, without the account: a report names that itself. The message id where a long tenant leaves no room for it."""
    token = subject_token(message)
    return token if token and len(token) <= _MAX_REFERENCE else message["message_id"]


def _status(part: Any) -> str | None:
    """The status of a part as text, None for what is none."""
    status = member(part, "status")
    if isinstance(status, int) and not isinstance(status, bool):
        status = str(status)
    return status if isinstance(status, str) and status.isascii() and status.isdigit() and len(status) <= 3 else None


def create(provider: ProviderSettings) -> VonageSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return VonageSender(provider, parse_keys(VonageKeys, provider))

"""E-mail through SendGrid's POST /v3/mail/send: one mail to one recipient a request.

    | response                               | result                                  |
    |----------------------------------------|-----------------------------------------|
    | 202, whose body is empty               | sent; the id is in X-Message-Id         |
    | any other 2xx                          | in doubt: only 202 says that it is queued |
    | an error                               | its row in codes.py, by its status      |
    | an error about our sender identity     | account                                 |

Click and open tracking are switched off in every request: what an account has by default rewrites links. The token
(runtime/callbacks.py) goes along in the custom arguments, which SendGrid keeps and repeats in its events: nothing of a person is in it.
The header X-Message-Id, and X-RateLimit-Reset as seconds since 1970, rest on the vendor's documents alone.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from runtime.callbacks import token_fields
from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.http import HttpResponse
from vendors.http_account import (
    UNREADABLE,
    Answer,
    HttpRequest,
    LookUpAccount,
    items,
    json_body,
    member,
    parsed,
    said,
)
from vendors.mime import MailError, check_mail
from vendors.provider import UnsendableError
from vendors.sender import Doubt, ErrorClass, InDoubt, ProbeRefusal, Sent
from vendors.sendgrid.codes import CODES, UNVERIFIED
from vendors.sendgrid.keys import SendgridKeys
from vendors.settings import checked_from, parse_keys

MAY_SEND = "mail.send"
"""The scope that an API key needs."""
_FIELD = re.compile(r"[a-z0-9_.]{1,64}")
_OFF: dict[str, Any] = {
    "click_tracking": {"enable": False, "enable_text": False},
    "open_tracking": {"enable": False},
}


class SendgridSender(LookUpAccount):
    """One SendGrid account."""

    channel = "email"
    codes = CODES
    shows_after_s = 60.0

    def __init__(self, provider: ProviderSettings, keys: SendgridKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        sender = checked_from(provider, keys.from_address)
        self._from = {"email": sender.address, **({"name": sender.name} if sender.name else {})}
        self._host = keys.host(provider)
        self._url = f"{self._host}/v3/mail/send"
        self._headers = {"Authorization": f"Bearer {keys.secret(provider)}", "Content-Type": "application/json"}

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The mail as JSON. SendGrid takes neither an empty subject nor an empty part."""
        try:
            check_mail(message)
        except MailError as exc:
            raise UnsendableError(str(exc)) from exc
        if not message["subject"]:
            raise UnsendableError("SendGrid takes no mail without a subject")
        # Plain text comes first (RFC 2046 §5.1.4: the last part that is understood is shown).
        parts = (("text/plain", message["text"]), ("text/html", message["html"]))
        content = [{"type": kind, "value": text} for kind, text in parts if text]
        if not content:
            raise UnsendableError("SendGrid takes no mail without a text")
        mail = {
            "personalizations": [
                {"to": [{"email": message["address"]}], "custom_args": token_fields(message, self.name)}
            ],
            "from": self._from,
            "subject": message["subject"],
            "content": content,
            "headers": {"Auto-Submitted": "auto-generated"},
            "tracking_settings": _OFF,
        }
        return HttpRequest(self._url, self._headers, json_body(mail))

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if response.status == 202:
            return Sent(response.headers.get("x-message-id"))
        if 200 <= response.status < 300:
            return UNREADABLE
        wait_s = _reset_s(response, self._clock()) if response.status == 429 else None
        return _refused(response, wait_s)

    def look_up_request(self, doubt: Doubt) -> HttpRequest:
        """The Email Activity with our message id among the custom arguments: exact, and an extra that the vendor sells."""
        query = urlencode({"query": f"unique_args['message_id']=\"{doubt.message_id}\"", "limit": "10"})
        return HttpRequest(f"{self._host}/v3/messages?{query}", self._headers, None)

    def read_look_up(self, response: HttpResponse, doubt: Doubt) -> Sent | None:
        """Any message: the query is for ours alone. Its id begins with what X-Message-Id had said."""
        for found in items(member(parsed(response), "messages")):
            if isinstance(given := member(found, "msg_id"), str) and given:
                return Sent(given.partition(".")[0])
        return None

    def probe_request(self) -> HttpRequest:
        """The scopes of the API key."""
        return HttpRequest(f"{self._host}/v3/scopes", self._headers, None)

    def read_probe(self, response: HttpResponse) -> ProbeRefusal | Answer | None:
        """A key may be good and not allowed to send."""
        if response.status != 200:
            return _refused(response)
        if MAY_SEND not in items(member(parsed(response), "scopes")):
            return ProbeRefusal(ErrorClass.ACCOUNT, f"the API key lacks the scope {MAY_SEND}")
        return None


def _refused(response: HttpResponse, wait_s: float | None = None) -> Answer:
    errors = items(member(parsed(response), "errors"))
    field = next((name for error in errors if isinstance(name := member(error, "field"), str)), "")
    words = " ".join(str(member(error, "message")) for error in errors[:5])
    keys = [str(response.status)]
    if response.status in (400, 403) and "sender identity" in words.lower():
        keys.insert(0, UNVERIFIED)
    return Answer(tuple(keys), said(response.status, field if _FIELD.fullmatch(field) else None), wait_s)


def _reset_s(response: HttpResponse, now_ms: int) -> float | None:
    """Seconds until the limit is lifted; None where the answer does not say it."""
    reset = response.headers.get("x-ratelimit-reset", "")
    return max(0.0, int(reset) - now_ms / 1000) if re.fullmatch(r"[0-9]{1,12}", reset) else None


def create(provider: ProviderSettings) -> SendgridSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return SendgridSender(provider, parse_keys(SendgridKeys, provider))

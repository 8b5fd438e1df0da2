"""SMS through Twilio's Messages resource (API version 2010-04-01).

    | response                                 | result                            |
    |------------------------------------------|-----------------------------------|
    | an error with a code, or a status alone  | its row in codes.py               |
    | a code no row knows, status 4xx          | transient, counted                |
    | a code no row knows, any other status    | in_doubt, counted                 |
    | unreadable 2xx, one without a sid        | in_doubt                          |

May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

from urllib.parse import quote

from runtime import callbacks
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
    member,
    parsed,
    said,
    sent_as,
)
from vendors.sender import ErrorClass, InDoubt, ProbeRefusal, Sent
from vendors.settings import checked_base_url, parse_keys
from vendors.sms_text import checked_parts, clean_text
from vendors.twilio.codes import CODES
from vendors.twilio.keys import TwilioKeys


def build_sms(message: ChannelMessage, sender: str, callback_url: str | None, provider: str = "") -> dict[str, str]:
    """The form of a new message."""
    fields = {"To": message["address"], "From": sender, "Body": clean_text(message["text"] or "")}
    if callback_url:
        fields["StatusCallback"] = callbacks.callback_url(callback_url, message, provider)
    return fields


class TwilioSender(HttpAccount):
    """One Twilio account."""

    channel = "sms"
    codes = CODES

    def __init__(self, provider: ProviderSettings, keys: TwilioKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._sender, self._callback_url, self._max_parts = keys.sender, keys.callback_url, keys.max_parts
        base = checked_base_url(provider, keys.base_url)
        self._account = f"{base}/2010-04-01/Accounts/{quote(keys.account_sid, safe='')}"
        self._messages = f"{self._account}/Messages.json"
        authorization = {"Authorization": basic_auth(keys.account_sid, keys.token(provider))}
        self._headers = {**authorization, "Content-Type": "application/x-www-form-urlencoded"}

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The form. Raises UnsendableError for a text of too many parts."""
        form = build_sms(message, self._sender, self._callback_url, self.name)
        parts = checked_parts(form["Body"], self._max_parts)
        return HttpRequest(self._messages, self._headers, form_body(form), str(parts))

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if not 200 <= response.status < 300:
            return _refused(response)
        sid = member(parsed(response), "sid")
        return sent_as(sid)

    def probe_request(self) -> HttpRequest:
        """The account itself."""
        return HttpRequest(f"{self._account}.json", self._headers, None)

    def read_probe(self, response: HttpResponse) -> ProbeRefusal | Answer | None:
        """It serves us while it is active."""
        if not 200 <= response.status < 300:
            return _refused(response)
        status = member(parsed(response), "status")
        if not isinstance(status, str):
            return ProbeRefusal(ErrorClass.TRANSIENT, UNREADABLE.code)
        return None if status == "active" else ProbeRefusal(ErrorClass.ACCOUNT, f"the account is {status[:40]}")


def _refused(response: HttpResponse) -> Answer:
    """A code decides before its status does."""
    code = member(parsed(response), "code")
    if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code < 1_000_000:
        return by_status(response)
    return Answer((str(code),), said(response.status, str(code)))


def create(provider: ProviderSettings) -> TwilioSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return TwilioSender(provider, parse_keys(TwilioKeys, provider))

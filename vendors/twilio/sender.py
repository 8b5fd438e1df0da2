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

from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlencode

from runtime import callbacks
from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from runtime.status import rfc3339
from schemas.events import ChannelMessage
from vendors.http import HttpResponse, basic_auth
from vendors.http_account import (
    UNREADABLE,
    Answer,
    HttpRequest,
    LookUpAccount,
    by_status,
    items,
    member,
    parsed,
    said,
    sent_as,
)
from vendors.sender import Doubt, ErrorClass, InDoubt, ProbeRefusal, Sent
from vendors.settings import checked_base_url, parse_keys
from vendors.sms_text import checked_parts, clean_text, noted_parts
from vendors.twilio.codes import CODES
from vendors.twilio.keys import TwilioKeys

_SKEW_S = 5.0
"""By which the vendor's clock may differ from ours."""
_WAIT_S = 60.0
"""For how long a message may have waited for its request."""


def build_sms(message: ChannelMessage, sender: str, callback_url: str | None, provider: str = "") -> dict[str, str]:
    """The form of a new message."""
    fields = {"To": message["address"], "From": sender, "Body": clean_text(message["text"] or "")}
    if callback_url:
        fields["StatusCallback"] = callbacks.callback_url(callback_url, message, provider)
    return fields


class TwilioSender(LookUpAccount):
    """One Twilio account."""

    channel = "sms"
    codes = CODES
    shows_after_s = 5.0

    def __init__(self, provider: ProviderSettings, keys: TwilioKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._sender, self._callback_url, self._max_parts = keys.sender, keys.callback_url, keys.max_parts
        self._timeout_s = provider.timeout_s
        base = checked_base_url(provider, keys.base_url)
        self._account = f"{base}/2010-04-01/Accounts/{quote(keys.account_sid, safe='')}"
        self._messages = f"{self._account}/Messages.json"
        authorization = {"Authorization": basic_auth(keys.account_sid, keys.token(provider))}
        self._headers = {**authorization, "Content-Type": "application/x-www-form-urlencoded"}

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The form. Raises UnsendableError for a text of too many parts."""
        form = build_sms(message, self._sender, self._callback_url, self.name)
        checked_parts(form["Body"], self._max_parts)
        return HttpRequest(self._messages, self._headers, urlencode(form).encode())

    def detail(self, message: ChannelMessage) -> str:
        """Parts of the text."""
        return noted_parts(message["text"] or "")

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if not 200 <= response.status < 300:
            return _refused(response)
        sid = member(parsed(response), "sid")
        return sent_as(sid)

    def look_up_request(self, doubt: Doubt) -> HttpRequest | None:
        """What went to the number on that day: the resource has no field for our message id."""
        if doubt.address is None or doubt.text is None:
            return None
        query = urlencode({"To": doubt.address, "DateSent>": rfc3339(doubt.since)[:10], "PageSize": "100"})
        return HttpRequest(f"{self._messages}?{query}", self._headers, None)

    def read_look_up(self, response: HttpResponse, doubt: Doubt) -> Sent | None:
        """The only message with our text and sender of the seconds after the request: two of them prove nothing."""
        text, found = clean_text(doubt.text or ""), []
        for each in items(member(parsed(response), "messages")):
            same = (member(each, "to"), member(each, "from"), member(each, "body")) == (
                doubt.address,
                self._sender,
                text,
            )
            if same and isinstance(sid := member(each, "sid"), str) and self._is_of(each, doubt.since):
                found.append(sid)
        return Sent(found[0]) if len(found) == 1 else None

    def _is_of(self, resource: object, since: int) -> bool:
        """Whether a message was made in the time that a request of `since` had; Twilio's times are whole seconds."""
        try:
            made_s = parsedate_to_datetime(str(member(resource, "date_created"))).timestamp()
        except (ValueError, TypeError, OverflowError):
            return False
        return since / 1000 - _SKEW_S <= made_s <= since / 1000 + self._timeout_s + _WAIT_S

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

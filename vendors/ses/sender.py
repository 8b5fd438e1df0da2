"""E-mail through Amazon SES, POST /v2/email/outbound-emails, as our own MIME (Raw): one recipient a request.

    | response                                          | result                       |
    |---------------------------------------------------|------------------------------|
    | 200 with a MessageId                              | sent                         |
    | 200 without one                                   | in doubt                     |
    | words about the day's quota                       | account                      |
    | MessageRejected about an address not verified     | account                      |
    | any other error                                   | its row in codes.py          |

SES gives the mail a Message-ID of its own. The token (runtime/callbacks.py) goes along as a tag, which its events repeat.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

import re
from base64 import b64encode

from runtime.callbacks import token_fields
from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.http import HttpResponse
from vendors.http_account import Answer, HttpAccount, HttpRequest, by_status, json_body, member, parsed, said, sent_as
from vendors.mime import MailError, build_mail
from vendors.provider import UnsendableError
from vendors.sender import ErrorClass, InDoubt, ProbeRefusal, Sent
from vendors.ses.codes import CODES, DAILY_QUOTA, REJECTED, UNVERIFIED
from vendors.ses.keys import SesKeys
from vendors.settings import checked_from, parse_keys
from vendors.sigv4 import NOT_ALLOWED

_TAG = re.compile(r"[A-Za-z0-9_-]{1,256}")
_NAME = re.compile(r"[A-Za-z]{1,80}")
_JSON = {"Content-Type": "application/json"}


class SesSender(HttpAccount):
    """One SES account in one region."""

    channel = "email"
    codes = CODES

    def __init__(self, provider: ProviderSettings, keys: SesKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._keys = keys
        self._from = checked_from(provider, keys.from_address)
        self._host = keys.host(provider)
        self._url = f"{self._host}/v2/email/outbound-emails"
        self._signer = keys.signer(provider, "ses")
        self._set = {"ConfigurationSetName": keys.configuration_set} if keys.configuration_set else {}

    def doubts(self) -> list[str]:
        """See sigv4.py."""
        return self._keys.doubts("sesv2")

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The mail as JSON, signed."""
        try:
            mail = build_mail(message, self._from, self._clock())
        except MailError as exc:
            raise UnsendableError(str(exc)) from exc
        tags = token_fields(message, self.name)
        body = json_body(
            {
                "FromEmailAddress": self._from.address,
                "Destination": {"ToAddresses": [message["address"]]},
                "Content": {"Raw": {"Data": b64encode(mail).decode()}},
                "EmailTags": [{"Name": name, "Value": value} for name, value in tags.items() if _TAG.fullmatch(value)],
                **self._set,
            }
        )
        return HttpRequest(self._url, self._signer.sign("POST", self._url, _JSON, body), body)

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if response.status != 200:
            return _refused(response)
        given = member(parsed(response), "MessageId")
        return sent_as(given)

    def probe_request(self) -> HttpRequest:
        """The account."""
        url = f"{self._host}/v2/email/account"
        return HttpRequest(url, self._signer.sign("GET", url, _JSON, None), None)

    def read_probe(self, response: HttpResponse) -> ProbeRefusal | Answer | None:
        """A user who may only send may not read it: then the key is good all the same."""
        if response.status != 200:
            answer = _refused(response)
            return None if answer.keys[0] in NOT_ALLOWED else answer
        if member(parsed(response), "SendingEnabled") is False:
            return ProbeRefusal(ErrorClass.ACCOUNT, "sending is not enabled in this region")
        return None


def _refused(response: HttpResponse) -> Answer:
    """The name is in a header, with a URL behind it, and in some bodies."""
    body = parsed(response)
    name = response.headers.get("x-amzn-errortype") or member(body, "__type") or member(body, "code")
    name = str(name or "").partition(":")[0].rpartition("#")[2]
    if not _NAME.fullmatch(name):
        return by_status(response)
    words = str(member(body, "message") or member(body, "Message")).lower()
    key = name
    if "daily" in words and "quota" in words:
        key = DAILY_QUOTA
    elif name == REJECTED and "not verified" in words:
        key = UNVERIFIED
    return Answer((key,), said(response.status, name, key if key != name else None))


def create(provider: ProviderSettings) -> SesSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return SesSender(provider, parse_keys(SesKeys, provider))

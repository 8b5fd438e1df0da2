"""SMS through Amazon SNS, Publish to a phone number: one text a request.

    | response                                 | result                                               |
    |------------------------------------------|------------------------------------------------------|
    | 200 with a MessageId                     | sent: SNS reports no more (its log is in CloudWatch) |
    | 200 without one                          | in doubt                                             |
    | InvalidParameter that names PhoneNumber  | permanent_recipient                                  |
    | any other error                          | its row in codes.py                                  |

An account over its monthly spend limit accepts texts and sends none: nothing in an answer says so.
Answers are XML: what is wanted of them is found by its tag, and nothing is parsed.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

import re

from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.http import HttpResponse
from vendors.http_account import (
    MESSAGE_ID_HEADER,
    UNREADABLE,
    Answer,
    HttpAccount,
    HttpRequest,
    by_status,
    form_body,
    said,
)
from vendors.sender import InDoubt, Sent
from vendors.settings import parse_keys
from vendors.sms_text import checked_parts, clean_text
from vendors.sns.codes import BAD_NUMBER, CODES, INVALID, NOT_ALLOWED
from vendors.sns.keys import SnsKeys

_VERSION = "2010-03-31"
_FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
_MESSAGE_ID = re.compile(rb"<MessageId>([0-9A-Za-z-]{1,100})</MessageId>")
_CODE = re.compile(rb"<Code>([A-Za-z]{1,80})</Code>")
_WORDS = re.compile(rb"<Message>([^<]{0,1000})")


class SnsSender(HttpAccount):
    """One AWS account in one region."""

    channel = "sms"
    codes = CODES

    def __init__(self, provider: ProviderSettings, keys: SnsKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._keys = keys
        self._max_parts = keys.max_parts
        self._url = f"{keys.host(provider)}/"
        self._signer = keys.signer(provider, "sns")
        attributes: dict[str, str] = {"AWS.SNS.SMS.SMSType": keys.sms_type}
        if keys.sender_id:
            attributes["AWS.SNS.SMS.SenderID"] = keys.sender_id
        self._form = {"Action": "Publish", "Version": _VERSION}
        for place, (name, value) in enumerate(attributes.items(), start=1):
            entry = f"MessageAttributes.entry.{place}"
            self._form |= {
                f"{entry}.Name": name,
                f"{entry}.Value.DataType": "String",
                f"{entry}.Value.StringValue": value,
            }

    def doubts(self) -> list[str]:
        """See sigv4.py."""
        return self._keys.doubts("sns")

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The form, signed. Raises UnsendableError for a text of too many parts."""
        text = clean_text(message["text"] or "")
        parts = checked_parts(text, self._max_parts)
        signed = self._signed({**self._form, "PhoneNumber": message["address"], "Message": text})
        # Not part of what is signed: AWS takes no notice of it.
        headers = {**signed.headers, MESSAGE_ID_HEADER: message["message_id"]}
        return HttpRequest(signed.url, headers, signed.body, str(parts))

    def _signed(self, form: dict[str, str]) -> HttpRequest:
        body = form_body(form)
        return HttpRequest(self._url, self._signer.sign("POST", self._url, _FORM, body), body)

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        if response.status != 200:
            return _refused(response)
        found = _MESSAGE_ID.search(response.body)
        return Sent(found[1].decode()) if found else UNREADABLE

    def probe_request(self) -> HttpRequest:
        """The account's settings for SMS."""
        return self._signed({"Action": "GetSMSAttributes", "Version": _VERSION})

    def read_probe(self, response: HttpResponse) -> Answer | None:
        """A user who may only publish may not read them: then the key is good all the same."""
        if response.status == 200:
            return None
        answer = _refused(response)
        return None if answer.keys[0] in NOT_ALLOWED else answer


def _refused(response: HttpResponse) -> Answer:
    found = _CODE.search(response.body)
    if found is None:
        return by_status(response)
    code = found[1].decode()
    words = _WORDS.search(response.body)
    number = code == INVALID and words is not None and b"PhoneNumber" in words[1]
    return Answer((BAD_NUMBER if number else code,), said(response.status, code, BAD_NUMBER if number else None))


def create(provider: ProviderSettings) -> SnsSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return SnsSender(provider, parse_keys(SnsKeys, provider))

"""Vonage's delivery receipts and incoming messages of the SMS API: one a request, as JSON or a form.

    | status                                       | state, reason                                    | status made of it |
    |----------------------------------------------|--------------------------------------------------|-------------------|
    | delivered                                    | delivered                                        | yes               |
    | failed, rejected, expired with err-code 3, 4 | bounced / invalid_number                         | yes               |
    | the same with err-code 9                     | bounced / invalid_number, opted out              | yes               |
    | the same with any other                      | undelivered / carrier                            | yes               |
    | accepted, buffered                           | sending                                          | no                |
    | unknown, a word not known yet                | unknown                                          | no                |
    | an incoming message that says STOP           | unsubscribed, opted out; about a number          | no                |
    | any other incoming message                   | nothing is kept of it                            | no                |

Signed where the account's settings ask for it (`signature = {method, secret}`; the vendor's support switches it on), else known
by a secret in the path. The method is fixed by the settings: what a request says of it is not looked at. Every part of a long
text has a receipt of its own, with the same client-ref.
developer.vonage.com/en/messaging/sms/guides/delivery-receipts, /en/getting-started/concepts/signing-messages
May import the shared modules of vendors. Never: another vendor.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from runtime.callbacks import Subject, message_id_of, subject_of_token
from runtime.settings import ProviderSettings
from vendors.reports import (
    LOST,
    MAX_ID,
    NEW_WORD,
    NOTED,
    DeliveryReport,
    ForgedError,
    Intake,
    MalformedError,
    Meaning,
    Reports,
    Request,
    UnknownAccountError,
    check_age,
    event_time,
    iso_time,
    parse_json,
    stop,
    word,
)
from vendors.settings import parse_keys
from vendors.sms_text import says_stop
from vendors.vonage.keys import VonageKeys

_JSON = "application/json"
_MAX_FIELDS = 100
_GONE = frozenset({"3", "4"})
_STOPPED = "9"
_ON_THE_WAY = frozenset({"accepted", "buffered"})
_ENDED = frozenset({"failed", "rejected", "expired"})


def meaning(status: str, code: str | None) -> Meaning:
    """The table above; total."""
    if status == "delivered":
        return Meaning("delivered")
    if status in _ON_THE_WAY:
        return NOTED
    if status not in _ENDED:
        return NEW_WORD
    detail = f"{status} {code}" if code else status
    if code in _GONE or code == _STOPPED:
        return Meaning("bounced", "invalid_number", detail=detail, opted_out=code == _STOPPED)
    return LOST._replace(detail=detail)


def signature(method: str, secret: str, fields: Mapping[str, str]) -> str:
    """The hex digits of `sig` over the other fields."""
    signed = "".join(f"&{name}={_plain(fields[name])}" for name in sorted(fields) if name != "sig").encode()
    if method == "md5hash":
        return hashlib.md5(signed + secret.encode(), usedforsecurity=False).hexdigest()
    return hmac.digest(secret.encode(), signed, method).hex()


def _plain(value: str) -> str:
    return value.replace("&", "_").replace("=", "_")


class _Account(NamedTuple):
    provider: str
    key: str
    secret: str | None
    """In the path."""
    method: str | None
    signature_secret: str

    def speaks(self, request: Request, fields: Mapping[str, str]) -> bool:
        """Whether the request is this account's: by its signature where it has one, else by the path."""
        if self.method is not None:
            given = fields.get("sig", "").lower().encode("utf-8", "replace")
            return hmac.compare_digest(signature(self.method, self.signature_secret, fields).encode(), given)
        return self.secret is not None and hmac.compare_digest(self.secret.encode(), request.secret.encode())


class VonageReports:
    """Every account that has a `signature` or a `callback_secret`."""

    intake = Intake(
        frozenset({_JSON, "application/x-www-form-urlencoded"}), retry_window_s=24 * 3_600, takes_secret=True
    )

    def __init__(self, accounts: Sequence[_Account]) -> None:
        self._accounts = accounts

    async def read(self, request: Request) -> Reports:
        """See ReportReader."""
        if not self._accounts:
            raise UnknownAccountError
        fields = _fields(request)
        speakers = [account for account in self._accounts if account.speaks(request, fields)]
        if not speakers:
            raise ForgedError
        if speakers[0].method is not None:
            check_age(fields.get("timestamp", ""), self.intake, request.received_at)
        named = [account.provider for account in speakers if account.key == fields.get("api-key")]
        return _reports(fields, named[0] if named else speakers[0].provider, request.received_at)


def _fields(request: Request) -> dict[str, str]:
    """The fields of either form. Raises MalformedError for a field that is there twice or is no text."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _JSON:
        given = parse_json(request.body)
        if not isinstance(given, Mapping):
            raise MalformedError("the body is no object")
        if not all(isinstance(value, str | int) and not isinstance(value, bool) for value in given.values()):
            raise MalformedError("a field is neither text nor a whole number")
        return {name: str(value) for name, value in given.items()}
    try:
        pairs = parse_qsl(
            request.body.decode("ascii"), True, encoding="utf-8", errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError as exc:  # UnicodeDecodeError is one
        raise MalformedError("the body is not a form") from exc
    if len(dict(pairs)) != len(pairs):
        raise MalformedError("a field is there more than once")
    return dict(pairs)


def _reports(fields: Mapping[str, str], provider: str, received_at: int) -> Reports:
    message_id = word(fields.get("messageId"), MAX_ID)
    if message_id is None:
        raise MalformedError("messageId is missing")
    number = f"+{fields.get('msisdn', '').removeprefix('+')}"
    if "status" not in fields:  # an incoming message
        said_stop = says_stop(fields.get("text", ""))
        return Reports([stop(provider, message_id, "sms", number, _time(fields, received_at))] if said_stop else [])
    status, code = word(fields["status"]), word(fields.get("err-code"))
    if status is None:
        raise MalformedError("status is no word")
    said = meaning(status, code)
    report = DeliveryReport(
        provider,
        message_id,
        f"{message_id}:{status}",
        "sms",
        said.state,
        said.reason,
        status if said is NEW_WORD else code,
        said.detail,
        said.final,
        number,
        said.opted_out,
        _subject(fields.get("client-ref", "")),
        _time(fields, received_at),
    )
    return Reports([report])


def _subject(reference: str) -> Subject:
    """What client-ref is about: the token, or the message id where that would have been too long."""
    subject = subject_of_token(reference)
    return subject if subject.message_id else Subject(message_id_of({"message_id": reference}))


def _time(fields: Mapping[str, str], received_at: int) -> int | None:
    return iso_time(fields.get("message-timestamp", "").removesuffix(" +0000"), received_at) or event_time(
        fields.get("timestamp"), received_at
    )


def create(providers: Iterable[ProviderSettings]) -> VonageReports:
    """The reports of the accounts of this kind. Raises SettingsError when a secret cannot be read or used."""
    accounts = []
    for provider in providers:
        keys = parse_keys(VonageKeys, provider)
        method, signed = keys.signing(provider)
        account = _Account(provider.name, keys.key, keys.path_secret(provider), method, signed)
        if account.method is not None or account.secret is not None:
            accounts.append(account)
    return VonageReports(accounts)

"""Twilio's status callbacks: a form, signed with the account's auth token over the whole URL and the sorted fields.

    | MessageStatus                               | state, reason                                     | status made of it |
    |---------------------------------------------|---------------------------------------------------|-------------------|
    | accepted, scheduled, queued, sending        | sending                                           | no                |
    | sent                                        | sent                                              | no: known already |
    | delivered                                   | delivered                                         | yes               |
    | read                                        | read                                              | yes               |
    | undelivered, failed                         | undelivered / carrier; bounced for a permanent row| yes               |
    | canceled                                    | cancelled / by_caller                             | no                |
    | a word not known yet                        | unknown                                           | no                |
    | an incoming message that says STOP          | unsubscribed, opted out; about a number           | no                |
    | any other incoming message                  | nothing is kept of it                             | no                |

Twilio reports `failed` after it accepted the request, so it is not our `failed`, which would rank below `sent`.
Two accounts of one account_sid are two valid tokens, so that a token can be changed. HMAC-SHA1 is fixed here: a header that asks for
another algorithm is not trusted. The signature has no time; a repetition makes the same ids.
The only module here that imports twilio. Never: the Host header, an HTTP response.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from twilio.request_validator import RequestValidator

from runtime.callbacks import subject_of
from runtime.settings import ProviderSettings
from vendors.reports import (
    MAX_WORD,
    DeliveryReport,
    ForgedError,
    Intake,
    MalformedError,
    Reports,
    Request,
    UnknownAccountError,
    account_of,
    stop,
)
from vendors.sender import ErrorClass
from vendors.settings import parse_keys
from vendors.sms_text import says_stop
from vendors.twilio.codes import CODES
from vendors.twilio.keys import TwilioKeys

_SIGNATURE = "x-twilio-signature"
_MAX_FIELDS = 200

_ON_THE_WAY: Mapping[str, tuple[str, str | None]] = {
    "accepted": ("sending", None),
    "scheduled": ("sending", None),
    "queued": ("sending", None),
    "sending": ("sending", None),
    "sent": ("sent", None),
    "canceled": ("cancelled", "by_caller"),
}
_FINAL = {"delivered": "delivered", "read": "read"}


class _Account(NamedTuple):
    provider: str
    validator: Any
    fragment: str
    """Of its callback_url: Twilio's connection overrides, which are not sent with a request."""


class _Form(dict[str, list[str]]):
    """Fields with all their values, as the SDK wants them."""

    def getall(self, name: str) -> list[str]:
        """For the SDK."""
        return self[name]

    def one(self, name: str) -> str:
        """The field's only value, "" when it is absent. Raises MalformedError when it is there twice."""
        values = self.get(name, [""])
        if len(values) > 1:
            raise MalformedError(f"{name} is there more than once")
        return values[0]


def _form(body: bytes) -> _Form:
    form = _Form()
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError as exc:  # UnicodeDecodeError is one
        raise MalformedError("the body is not a form") from exc
    for name, value in fields:
        form.setdefault(name, []).append(value)
    return form


def _urls(url: str, fragments: Iterable[str]) -> list[str]:
    """What Twilio may have signed: with the port of the scheme or without, with the fragment it was given or without."""
    parts = urlsplit(url)
    default = {"https": 443, "http": 80}[parts.scheme]
    urls = [url]
    if parts.port is None:
        urls.append(parts._replace(netloc=f"{parts.netloc}:{default}").geturl())
    else:
        urls.append(parts._replace(netloc=parts.netloc.rpartition(":")[0]).geturl())
    return [*urls, *(f"{each}#{fragment}" for each in urls for fragment in fragments if fragment)]


def _classify(status: str, code: str) -> tuple[str, str | None, str | None, bool]:
    """(state, reason, detail, whether a status is made of it)."""
    if status in _FINAL:
        return _FINAL[status], None, None, True
    if status in ("undelivered", "failed"):
        known = CODES.find(code)
        if known is not None and known.error is ErrorClass.PERMANENT_RECIPIENT:
            return "bounced", "invalid_number", f"{code} opted out at the provider" if known.opted_out else code, True
        return "undelivered", "carrier", code or status, True
    state, reason = _ON_THE_WAY.get(status, ("unknown", None))
    return state, reason, None, False


class TwilioReports:
    """Every configured account, by its account_sid."""

    # A signature has no time, and Twilio repeats for as long as the URL asks it to, 15 s at most.
    intake = Intake(frozenset({"application/x-www-form-urlencoded"}), retry_window_s=15)

    def __init__(self, accounts: Mapping[str, Sequence[_Account]]) -> None:
        self._accounts = accounts

    async def read(self, request: Request) -> Reports:
        """See ReportReader."""
        form = _form(request.body)
        account_sid = form.one("AccountSid")
        if not account_sid:
            raise MalformedError("AccountSid is missing")
        accounts = self._accounts.get(account_sid)
        if accounts is None:
            raise UnknownAccountError
        account = _signer(accounts, request, form)
        if "Body" in form and "MessageStatus" not in form:
            return _incoming(form, account.provider)
        sid = form.one("MessageSid") or form.one("SmsSid")
        status = form.one("MessageStatus") or form.one("SmsStatus")
        code = form.one("ErrorCode")
        if not (0 < len(sid) <= MAX_WORD and 0 < len(status) <= MAX_WORD and len(code) <= MAX_WORD):
            raise MalformedError("MessageSid or MessageStatus is missing, or a word is too long")
        state, reason, detail, final = _classify(status, code)
        row = CODES.find(code)
        opted_out = state == "bounced" and row is not None and row.opted_out
        # The account that sent it; a token of the same account_sid under another name may have signed.
        subject = subject_of(request.query)
        report = DeliveryReport(
            account_of(subject, [account.provider, *(each.provider for each in accounts)]),
            sid,
            f"{sid}:{status}",
            "sms",
            state,
            reason,
            code or (status if state == "unknown" else None),
            detail,
            final,
            form.one("To") or None,
            opted_out,
            subject,
        )
        return Reports((report,))


def _incoming(form: _Form, provider: str) -> Reports:
    """What an incoming message says: STOP, or nothing that is kept."""
    sid, number = form.one("MessageSid"), form.one("From")
    if not (0 < len(sid) <= MAX_WORD and 0 < len(number) <= MAX_WORD):
        raise MalformedError("MessageSid or From is missing, or too long")
    # OptOutType is there where the messaging service has advanced opt-out, with the keywords of its own.
    stopped = form.one("OptOutType") == "STOP" or says_stop(form.one("Body"))
    return Reports([stop(provider, sid, "sms", number, None)] if stopped else [])


def _signer(accounts: Sequence[_Account], request: Request, form: _Form) -> _Account:
    given = request.headers.get(_SIGNATURE, "").encode()
    urls = _urls(request.url, {account.fragment for account in accounts})
    found = None
    for account in accounts:
        for url in urls:
            wanted = account.validator.compute_signature(url, form).encode()
            if hmac.compare_digest(wanted, given):
                found = found or account
    if found is None:
        raise ForgedError
    return found


def create(providers: Iterable[ProviderSettings]) -> TwilioReports:
    """The reports of the accounts of this kind. Raises SettingsError when a token cannot be read."""
    accounts: dict[str, list[_Account]] = {}
    for provider in providers:
        keys = parse_keys(TwilioKeys, provider)
        fragment = urlsplit(keys.callback_url or "").fragment
        accounts.setdefault(keys.account_sid, []).append(
            _Account(provider.name, RequestValidator(keys.token(provider)), fragment)
        )
    return TwilioReports(accounts)

"""Mailgun's webhooks: one event a request, signed with the account's webhook signing key (HMAC-SHA256).

    | event                                     | state, reason                                   | status made of it |
    |-------------------------------------------|-------------------------------------------------|-------------------|
    | accepted                                  | sent                                            | yes: it may end an unknown |
    | delivered                                 | delivered                                       | yes               |
    | failed, permanent: suppress-bounce        | bounced / hard_bounce                           | yes               |
    | failed, permanent: suppress-unsubscribe, suppress-complaint | undelivered / carrier, opted out | yes            |
    | failed, permanent: a code about the mailbox | bounced / hard_bounce                         | yes               |
    | failed, permanent: any other; rejected    | undelivered / carrier                           | yes               |
    | opened, clicked, complained, unsubscribed | the same                                        | yes               |
    | failed, temporary                         | sending                                         | no                |
    | a word not known yet                      | unknown                                         | no                |

The signature covers time and token alone, not the event: a token is good for one body (see Reports.nonce). Whether a
repetition has the same token is not documented, and does not matter. Mailgun repeats for eight hours whatever is not answered
200 or 406. An event's id is unique for a day only, so the event's name and time are part of ours.
documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks, .../events/event-structure
May import the shared modules of vendors. Never: another vendor.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from runtime.callbacks import TOKEN_FIELD, subject_of_token
from runtime.settings import ProviderSettings
from vendors.mailgun.keys import MailgunKeys
from vendors.reports import (
    LOST,
    MAX_ID,
    NEW_WORD,
    NOTED,
    OPTED_OUT,
    DeliveryReport,
    ForgedError,
    Intake,
    MalformedError,
    Meaning,
    Reports,
    Request,
    UnknownAccountError,
    account_of,
    check_age,
    event_time,
    parse_json,
    word,
)
from vendors.sender import ErrorClass
from vendors.settings import parse_keys
from vendors.smtp_codes import shown, smtp_rule

_HARD = Meaning("bounced", "hard_bounce")
_PLAIN: Mapping[str, Meaning] = {
    "accepted": Meaning("sent"),
    "delivered": Meaning("delivered"),
    "opened": Meaning("opened"),
    "clicked": Meaning("clicked"),
    "complained": Meaning("complained"),
    "unsubscribed": Meaning("unsubscribed"),
    "rejected": LOST,
}
_SUPPRESSED: Mapping[str, Meaning] = {
    "suppress-bounce": _HARD,
    "suppress-unsubscribe": OPTED_OUT,
    "suppress-complaint": OPTED_OUT,
}


def meaning(event: Mapping[str, Any]) -> Meaning:
    """The table above; total."""
    if event.get("event") != "failed":
        return _PLAIN.get(str(event.get("event")), NEW_WORD)
    if event.get("severity") != "permanent":
        return NOTED
    reason = str(event.get("reason"))
    if (suppressed := _SUPPRESSED.get(reason)) is not None:
        return suppressed._replace(detail=reason)
    code, text = _reply(event)
    # Nobody says at which command the server refused: what only the place of a code would tell is not told.
    rule = smtp_rule(code, text, "BODY")
    gone = rule is not None and rule.error is ErrorClass.PERMANENT_RECIPIENT
    return (_HARD if gone else LOST)._replace(detail=shown(code, text) if code else None)


def _reply(event: Mapping[str, Any]) -> tuple[int, str]:
    """The server's reply code, 0 without one; its enhanced code and words."""
    status = event.get("delivery-status")
    status = status if isinstance(status, Mapping) else {}
    code, enhanced, text = status.get("code"), word(status.get("enhanced-code")), status.get("message")
    number = code if isinstance(code, int) and 100 <= code <= 999 else 0
    return number, " ".join(part for part in (enhanced, str(text)[:500]) if part)


class _Account(NamedTuple):
    provider: str
    signing_key: bytes


class MailgunReports:
    """Every account that has a `signing_key`."""

    intake = Intake(frozenset({"application/json"}), retry_window_s=8 * 3_600, taken=200, unusable=406)

    def __init__(self, accounts: Sequence[_Account]) -> None:
        self._accounts = accounts

    async def read(self, request: Request) -> Reports:
        """See ReportReader."""
        if not self._accounts:
            raise UnknownAccountError
        body = parse_json(request.body)
        match body:
            case {"signature": {"timestamp": str(timestamp), "token": str(token), "signature": str(given)}}:
                pass
            case _:
                raise MalformedError("the signature is missing")
        signers = [account.provider for account in self._accounts if _is_signed(account, timestamp, token, given)]
        if not signers:
            raise ForgedError
        check_age(timestamp, self.intake, request.received_at)
        report = _report(body.get("event-data"), signers, request.received_at)
        return Reports([report] if report else [], 0 if report else 1, nonce=f"{timestamp}:{token}")


def _is_signed(account: _Account, timestamp: str, token: str, given: str) -> bool:
    wanted = hmac.digest(account.signing_key, (timestamp + token).encode("utf-8", "replace"), "sha256").hex()
    return hmac.compare_digest(wanted.encode(), given.encode("utf-8", "replace"))


def _report(event: Any, signers: Sequence[str], received_at: int) -> DeliveryReport | None:
    """The report of an event, None for what is none."""
    if not isinstance(event, Mapping):
        return None
    name, event_id, timestamp = word(event.get("event")), word(event.get("id")), event.get("timestamp")
    message = event.get("message")
    headers = message.get("headers") if isinstance(message, Mapping) else None
    mail_id = word(headers.get("message-id") if isinstance(headers, Mapping) else None, MAX_ID - 2)
    if name is None or event_id is None or mail_id is None:
        return None
    said = meaning(event)
    variables = event.get("user-variables")
    subject = subject_of_token(variables.get(TOKEN_FIELD) if isinstance(variables, Mapping) else None)
    address = event.get("recipient")
    code, text = _reply(event)
    return DeliveryReport(
        account_of(subject, signers),
        f"<{mail_id}>",  # as the answer to the message had it
        f"{name}:{event_id}:{timestamp if isinstance(timestamp, int | float) else ''}",
        "email",
        said.state,
        said.reason,
        name if said is NEW_WORD else shown(code, text) if code else None,
        said.detail,
        said.final,
        address if isinstance(address, str) and address else None,
        said.opted_out,
        subject,
        event_time(timestamp, received_at),
    )


def create(providers: Iterable[ProviderSettings]) -> MailgunReports:
    """The reports of the accounts of this kind. Raises SettingsError when a key cannot be read."""
    keys = [(provider, parse_keys(MailgunKeys, provider)) for provider in providers]
    return MailgunReports(
        [_Account(provider.name, key.encode()) for provider, own in keys if (key := own.webhook_key(provider))]
    )

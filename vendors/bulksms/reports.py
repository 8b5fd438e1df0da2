"""BulkSMS's webhooks: an array of at most ten messages, sent ones and incoming ones; nothing is signed.

    | status                            | state, reason                                | status made of it |
    |-----------------------------------|----------------------------------------------|-------------------|
    | DELIVERED                         | delivered                                    | yes               |
    | FAILED, BLOCKED                   | undelivered / carrier, opted out             | yes               |
    | FAILED, any other                 | undelivered / carrier                        | yes               |
    | ACCEPTED, SCHEDULED, SENT         | sending                                      | no                |
    | UNKNOWN, a word not known yet     | unknown                                      | no                |
    | RECEIVED, that says STOP          | unsubscribed, opted out; about a number      | no                |
    | RECEIVED, any other               | nothing is kept of it                        | no                |

An account is known by the secret in its path. What comes back is userSuppliedId, which has no room for more than a part of the
message id: it is looked up. No time is given but that of the submission. A refusal (4xx) is final for BulkSMS, so what cannot be
read is passed over; anything else it repeats for two days. It asks with an empty array whether the URL answers.
bulksms.com/developer/json/v1/#tag/Webhooks
May import the shared modules of vendors. Never: another vendor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from runtime.settings import ProviderSettings
from vendors.bulksms.keys import BulksmsKeys
from vendors.reports import (
    LOST,
    MAX_ID,
    MAX_RAW,
    NEW_WORD,
    NOTED,
    OPTED_OUT,
    DeliveryReport,
    Intake,
    MalformedError,
    Meaning,
    Reports,
    Request,
    iso_time,
    known_by,
    parse_json,
    spoken_for,
    stop,
    word,
)
from vendors.settings import path_secrets
from vendors.sms_text import says_stop

_INCOMING = "RECEIVED"
_PLAIN: Mapping[str, Meaning] = {
    "DELIVERED": Meaning("delivered"),
    "ACCEPTED": NOTED,
    "SCHEDULED": NOTED,
    "SENT": NOTED,
}


def meaning(kind: str, subtype: str | None) -> Meaning:
    """The table above; total."""
    if kind != "FAILED":
        return _PLAIN.get(kind, NEW_WORD)
    return (OPTED_OUT if subtype == "BLOCKED" else LOST)._replace(detail=f"{kind}.{subtype}" if subtype else kind)


class BulksmsReports:
    """Every account that has a `callback_secret`."""

    intake = Intake(frozenset({"application/json"}), retry_window_s=2 * 86_400, takes_secret=True)

    def __init__(self, accounts: Sequence[tuple[str, str]]) -> None:
        """`accounts`: (name, secret in the path)."""
        self._accounts = accounts

    async def read(self, request: Request) -> Reports:
        """See ReportReader."""
        provider = spoken_for(self._accounts, request)[0]
        messages = parse_json(request.body)
        if not isinstance(messages, list):
            raise MalformedError("the body is no array of messages")
        reports, unreadable = [], 0
        for message in messages:
            if isinstance(message, Mapping) and message.get("type") == _INCOMING:
                report = _stop(message, provider, request.received_at)
            else:
                report = _report(message, provider, request.received_at)
                unreadable += report is None
            if report is not None:
                reports.append(report)
        return Reports(reports, unreadable)


def _stop(message: Mapping[str, Any], provider: str, received_at: int) -> DeliveryReport | None:
    """The report of an incoming STOP, None for any other message."""
    message_id, number = word(message.get("id"), MAX_ID), word(message.get("from"))
    if message_id is None or number is None or not says_stop(str(message.get("body"))):
        return None
    return stop(provider, message_id, "sms", _e164(number), _submitted_at(message, received_at))


def _report(message: Any, provider: str, received_at: int) -> DeliveryReport | None:
    """The report of a sent message, None for what is none."""
    if not isinstance(message, Mapping):
        return None
    status = message.get("status")
    status = status if isinstance(status, Mapping) else {}
    message_id, kind, number = word(message.get("id"), MAX_ID), word(status.get("type")), word(message.get("to"))
    raw = to_json(message)
    if message_id is None or kind is None or len(raw) > MAX_RAW:
        return None
    said = meaning(kind, word(status.get("subtype")))
    return DeliveryReport(
        provider,
        message_id,
        f"{message_id}:{word(status.get('id')) or kind}",
        "sms",
        said.state,
        said.reason,
        said.detail or kind,
        said.detail,
        said.final,
        _e164(number) if number else None,
        said.opted_out,
        raw=raw,
        reference=word(message.get("userSuppliedId"), MAX_ID),
        known_by=known_by(_submitted_at(message, received_at)),
    )


def _e164(number: str) -> str:
    return f"+{number.removeprefix('+')}"


def _submitted_at(message: Mapping[str, Any], received_at: int) -> int | None:
    submission = message.get("submission")
    return iso_time(submission.get("date") if isinstance(submission, Mapping) else None, received_at)


def create(providers: Iterable[ProviderSettings]) -> BulksmsReports:
    """The reports of the accounts of this kind. Raises SettingsError when a secret cannot be read or used."""
    return BulksmsReports(path_secrets(BulksmsKeys, providers))

"""SendGrid's Event Webhook: an array of events, signed as a whole with a key of the account (ECDSA, P-256, SHA-256).

    | event                                        | state, reason                                      | status made of it |
    |----------------------------------------------|----------------------------------------------------|-------------------|
    | processed                                    | sent                                               | yes: it may end an unknown |
    | delivered                                    | delivered                                          | yes               |
    | bounce: 5.1.x, 5.2.1 or class Invalid        | bounced / hard_bounce                              | yes               |
    | bounce: any other, and every `blocked`       | bounced / soft_bounce                              | yes               |
    | dropped: Bounced Address, Invalid            | bounced / hard_bounce                              | yes               |
    | dropped: Unsubscribed or Spam Reporting Address | undelivered / carrier, opted out                | yes               |
    | dropped: any other                           | undelivered / carrier                              | yes               |
    | open, click                                  | opened, clicked                                    | yes               |
    | spamreport                                   | complained                                         | yes               |
    | unsubscribe, group_unsubscribe               | unsubscribed                                       | yes               |
    | deferred                                     | sending                                            | no                |
    | group_resubscribe, a word not known yet      | unknown                                            | no                |

A drop comes after `sent`, so it is never our `suppressed`, which ranks below it. The signature is over the header's time and the
body's bytes as received, line ends included. It holds for a day: SendGrid repeats for that long, and whether it signs anew is not
documented. What is written in `reason` and `response` may hold addresses, and is kept in the receipt's raw bytes alone.
twilio.com/docs/sendgrid/for-developers/tracking-events/event, .../getting-started-event-webhook-security-features
May import the shared modules of vendors and cryptography. Never: another vendor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic_core import to_json

from runtime.callbacks import TOKEN_FIELD, subject_of_token
from runtime.settings import ProviderSettings
from vendors.reports import (
    LOST,
    MAX_ID,
    MAX_RAW,
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
    decoded_signature,
    event_time,
    parse_json,
    word,
)
from vendors.sendgrid.keys import SendgridKeys
from vendors.settings import parse_keys

SIGNATURE = "x-twilio-email-event-webhook-signature"
TIMESTAMP = "x-twilio-email-event-webhook-timestamp"
_DAY_S = 86_400.0
_ALGORITHM = ECDSA(SHA256())
_MAX_EVENT_ID = 100
_HARD = re.compile(r"5\.(1\.[0-9]{1,3}|2\.1)")
# What is behind it names the machine that handled the mail; what is before it was in X-Message-Id.
_HANDLED_BY = re.compile(r"\.(?:filter|recvd).*", re.DOTALL)


_PLAIN: Mapping[str, Meaning] = {
    "processed": Meaning("sent"),
    "delivered": Meaning("delivered"),
    "open": Meaning("opened"),
    "click": Meaning("clicked"),
    "spamreport": Meaning("complained"),
    "unsubscribe": Meaning("unsubscribed"),
    "group_unsubscribe": Meaning("unsubscribed"),
    "deferred": NOTED,
}
_DROPPED: Mapping[str, Meaning] = {
    "bounced address": Meaning("bounced", "hard_bounce"),
    "invalid": Meaning("bounced", "hard_bounce"),
    "unsubscribed address": OPTED_OUT,
    "spam reporting address": OPTED_OUT,
    "spam content": LOST,
    "invalid smtpapi header": LOST,
    "recipient list over package quota": LOST,
}


def meaning(event: Mapping[str, Any]) -> Meaning:
    """The table above; total."""
    name = event.get("event")
    if name == "bounce":
        code, kind = word(event.get("status")), word(event.get("bounce_classification"))
        gone = _HARD.fullmatch(code or "") is not None or (kind or "").startswith("Invalid")
        reason = "hard_bounce" if gone and event.get("type") != "blocked" else "soft_bounce"
        return Meaning("bounced", reason, detail=" ".join(part for part in (code, kind) if part) or None)
    if name == "dropped":
        why = str(event.get("reason")).strip().lower()
        known = _DROPPED.get(why)
        return known._replace(detail=why) if known else LOST
    return _PLAIN.get(str(name), NEW_WORD)


class _Account(NamedTuple):
    provider: str
    key: EllipticCurvePublicKey


class SendgridReports:
    """Every account that has an `events_key`."""

    intake = Intake(frozenset({"application/json"}), retry_window_s=_DAY_S, max_body=1 << 20)

    def __init__(self, accounts: Sequence[_Account]) -> None:
        self._accounts = accounts

    async def read(self, request: Request) -> Reports:
        """See ReportReader."""
        signers = self._signers(request)
        check_age(request.headers[TIMESTAMP], self.intake, request.received_at)
        events = parse_json(request.body)
        if not isinstance(events, list):
            raise MalformedError("the body is no array of events")
        reports = [report for event in events if (report := _report(event, signers, request.received_at)) is not None]
        return Reports(reports, len(events) - len(reports))

    def _signers(self, request: Request) -> list[str]:
        """Names of the accounts whose key signed it."""
        if not self._accounts:
            raise UnknownAccountError
        signature = decoded_signature(request.headers.get(SIGNATURE, ""))
        signed = request.headers.get(TIMESTAMP, "").encode() + request.body
        signers = [account.provider for account in self._accounts if _is_signed(account.key, signature, signed)]
        if not signers:
            raise ForgedError
        return signers


def _is_signed(key: EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed, _ALGORITHM)
    except InvalidSignature:
        return False
    return True


def _report(event: Any, signers: Sequence[str], received_at: int) -> DeliveryReport | None:
    """The report of an event, None for what is none."""
    if not isinstance(event, Mapping):
        return None
    name, event_id = word(event.get("event")), word(event.get("sg_event_id"), _MAX_EVENT_ID)
    raw = to_json(event)
    if name is None or event_id is None or len(raw) > MAX_RAW:
        return None
    said = meaning(event)
    subject = subject_of_token(event.get(TOKEN_FIELD))
    address = event.get("email")
    # An asynchronous bounce has neither the id nor our fields (sendgrid/docs issue 5177).
    given = word(event.get("sg_message_id"), MAX_ID)
    return DeliveryReport(
        account_of(subject, signers),
        _HANDLED_BY.sub("", given) if given else event_id,
        event_id,
        "email",
        said.state,
        said.reason,
        word(event.get("status")) or (name if said.state == "unknown" else None),
        said.detail,
        said.final,
        address if isinstance(address, str) and address else None,
        said.opted_out,
        subject,
        event_time(event.get("timestamp"), received_at),
        raw,
    )


def create(providers: Iterable[ProviderSettings]) -> SendgridReports:
    """The reports of the accounts of this kind. Raises SettingsError for a key that is none."""
    keys = [(provider, parse_keys(SendgridKeys, provider)) for provider in providers]
    return SendgridReports(
        [_Account(provider.name, key) for provider, own in keys if (key := own.verification_key(provider)) is not None]
    )

"""A report becomes a ProviderReceipt, and a DeliveryStatus where it is final and says which message it is about; pure.

Ids are made of the provider's own ids, so a repeated callback makes the same receipt and the same fact.
May import runtime and schemas. Never: a clock, a vendor's field.
"""

from __future__ import annotations

from collections.abc import Iterable

from runtime import ids
from runtime.callbacks import AttemptRef
from runtime.records import ProducerRecord
from runtime.status import fact, status_record
from schemas.codec import codec
from schemas.events import DeliveryStatus, ProviderReceipt
from schemas.topics import RECEIPTS
from vendors.reports import DeliveryReport

_OPT_OUTS = ("complained", "unsubscribed")


def receipt_of(report: DeliveryReport, body: bytes, received_at: int, tenants: Iterable[str] = ()) -> ProviderReceipt:
    """The receipt, with its part of the body as received. Where the vendor names no time, it occurred when it was received.

    `tenants`: for whom the account sends; an opt-out holds for them, and for the owner of the message.
    """
    opted_out = report.address is not None and (report.opted_out or report.state in _OPT_OUTS)
    owner = report.subject.attempt_ref
    return {
        "event_id": ids.receipt_id(report.provider, report.provider_message_id, report.provider_event_id),
        "provider": report.provider,
        "provider_message_id": report.provider_message_id,
        "message_id": report.subject.message_id,
        "state": report.state,
        "reason": report.reason,
        "code": report.code,
        "occurred_at": _occurred_at(report, received_at),
        "received_at": received_at,
        "raw": body if report.raw is None else report.raw,
        "channel": report.channel,
        "tenants": sorted({*tenants, *([owner.tenant] if owner else [])}) if opted_out else [],
        "recipient": _fingerprint(report) if opted_out else None,
    }


def receipt_record(receipt: ProviderReceipt) -> ProducerRecord:
    """The record for notify.receipts.v1."""
    key = f"{receipt['provider']}:{receipt['provider_message_id']}".encode()
    headers = [("ce_id", receipt["event_id"].encode())]
    return ProducerRecord(RECEIPTS, key, codec("ProviderReceipt").encode(receipt), headers)


def status_of(report: DeliveryReport, attempt_ref: AttemptRef, received_at: int) -> DeliveryStatus:
    """The fact. Its recipient is the address' fingerprint: what bounced can be suppressed by it."""
    return fact(
        ids.event_id(attempt_ref.message_id, report.state, attempt_ref.attempt, report.provider_event_id),
        attempt_ref.notification_id,
        attempt_ref.tenant,
        attempt_ref.lane,
        report.state,
        _occurred_at(report, received_at),
        {
            "message_id": attempt_ref.message_id,
            "channel": report.channel,
            "reason": report.reason,
            "detail": report.detail,
            "code": report.code,
            "provider": report.provider,
            "provider_message_id": report.provider_message_id,
            "recipient": report.subject.recipient or _fingerprint(report),
            "opted_out": report.opted_out,
        },
        attempt=attempt_ref.attempt,
    )


def _fingerprint(report: DeliveryReport) -> str | None:
    return ids.recipient(None, report.channel, report.address) if report.address else None


def _occurred_at(report: DeliveryReport, received_at: int) -> int:
    return received_at if report.occurred_at is None else report.occurred_at


def fact_record(report: DeliveryReport, attempt_ref: AttemptRef, received_at: int) -> ProducerRecord:
    """The record for notify.status.v1."""
    return status_record(status_of(report, attempt_ref, received_at))

"""A result becomes facts: status events, the ledger entry, a retry's timer, a dead letter; pure.

    | result                        | at_least_once                          | at_most_once        |
    |-------------------------------|----------------------------------------|---------------------|
    | Sent                          | sent                                   | sent                |
    | Rejected, recipient           | bounced (hard_bounce, invalid_...)     | the same            |
    | Rejected, message             | rejected / provider_rejected           | the same            |
    | Retry, retries left           | retrying + timer                       | the same            |
    | Retry, none left              | failed + dead letter                   | the same            |
    | InDoubt                       | retrying, possible_duplicate + timer   | unknown / in_doubt  |

May import runtime values and schemas. What never enters here: a clock read, a random number, Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime import ids
from runtime.dead_letters import dead_letter
from runtime.records import InRecord, OutRecord
from runtime.retry import retry_delay_s
from runtime.status import message_status, source_of, status_record, traceparent_of
from schemas.codec import codec
from schemas.events import ChannelMessage, LedgerEntry, Timer, states
from schemas.topics import TIMERS, ledger_topic
from senders.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

RETRIES_EXHAUSTED = "retries_exhausted"
MAX_ATTEMPTS = 60
"""Attempts of any kind, throttled ones included: an hour and more of 429s is not a wait any longer."""
_BOUNCE_REASON = {"email": "hard_bounce", "sms": "invalid_number", "push": "invalid_token"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be recorded before the message is released."""

    state: str
    """The state or event it led to."""
    next_attempt: int
    """Attempts below it are done."""
    settled: bool
    facts: tuple[OutRecord, ...]


class RetriesExhausted(Exception):
    """The last attempt failed as well."""


def settle(
    message: ChannelMessage, record: InRecord, state: str, *, now: int, reason: str | None = None, detail: str | None = None,
    provider: str | None = None, provider_message_id: str | None = None, latency_ms: int | None = None,
    extra: tuple[OutRecord, ...] = (),
) -> Outcome:  # fmt: skip
    """The message ends in `state`."""
    status = message_status(
        message, state, now=now, attempt=message["attempt"], reason=reason, detail=detail, provider=provider,
        provider_message_id=provider_message_id, latency_ms=latency_ms, source=source_of(record),
    )  # fmt: skip
    next_attempt = message["attempt"] + 1
    entry = ledger_entry(message, record.partition, next_attempt, state, now)
    return Outcome(state, next_attempt, True, (*extra, status_record(status, traceparent_of(record.headers)), entry))


def ledger_entry(message: ChannelMessage, partition: int, next_attempt: int, state: str | None, now: int) -> OutRecord:
    """The ledger's record, on the partition of the dispatch record."""
    entry: LedgerEntry = {
        "message_id": message["message_id"],
        "next_attempt": next_attempt,
        "state": state,
        "recorded_at": now,
    }
    topic = ledger_topic(message["channel"], message["lane"])
    return OutRecord(topic, message["message_id"].encode(), codec("LedgerEntry").encode(entry), partition=partition)


def from_result(
    message: ChannelMessage, record: InRecord, result: SendResult, *, provider: str, latency_ms: int, now: int,
    jitter: float, max_retries: int,
) -> Outcome:  # fmt: skip
    """The table above."""
    if isinstance(result, Sent):
        return settle(
            message, record, "sent", now=now, provider=provider, provider_message_id=result.provider_message_id,
            latency_ms=latency_ms,
        )  # fmt: skip
    if isinstance(result, Rejected):
        recipient = result.error is ErrorClass.PERMANENT_RECIPIENT
        return settle(
            message, record, "bounced" if recipient else "rejected", now=now, detail=result.code, provider=provider,
            reason=_BOUNCE_REASON[message["channel"]] if recipient else "provider_rejected", latency_ms=latency_ms,
        )  # fmt: skip
    if isinstance(result, InDoubt) and message["delivery"] == "at_most_once":
        return settle(
            message, record, "unknown", now=now, reason="in_doubt", detail=result.code, provider=provider,
            latency_ms=latency_ms,
        )  # fmt: skip
    throttled = isinstance(result, Retry) and result.error is ErrorClass.THROTTLED
    retries = message["retries"] + (0 if throttled else 1)
    if retries > max_retries or message["attempt"] >= MAX_ATTEMPTS:
        return _exhausted(message, record, result, provider=provider, latency_ms=latency_ms, now=now)
    return _retry(
        message, record, result, retries, provider=provider, latency_ms=latency_ms, now=now, jitter=jitter
    )  # fmt: skip


def _exhausted(
    message: ChannelMessage, record: InRecord, result: Retry | InDoubt, *, provider: str, latency_ms: int, now: int
) -> Outcome:
    account = isinstance(result, Retry) and result.error is ErrorClass.ACCOUNT
    if isinstance(result, InDoubt):
        message = {**message, "possible_duplicate": True}
    letter = dead_letter(
        record, stage="sender", reason=RETRIES_EXHAUSTED, error=RetriesExhausted(result.code), now=now,
        attempts=message["attempt"], tenant=message["tenant"], notification_id=message["notification_id"],
        message_id=message["message_id"],
    )  # fmt: skip
    return settle(
        message, record, "failed", now=now, reason="provider_account" if account else RETRIES_EXHAUSTED,
        detail=result.code, provider=provider, latency_ms=latency_ms, extra=(letter,),
    )  # fmt: skip


def _retry(
    message: ChannelMessage, record: InRecord, result: Retry | InDoubt, retries: int, *, provider: str, latency_ms: int,
    now: int, jitter: float,
) -> Outcome:  # fmt: skip
    doubt = isinstance(result, InDoubt)
    again: ChannelMessage = {
        **message,
        "attempt": message["attempt"] + 1,
        "retries": retries,
        "possible_duplicate": message["possible_duplicate"] or doubt,
    }
    after = retry_delay_s(retries - 1, jitter, result.retry_after_s if isinstance(result, Retry) else None)
    status = message_status(
        {**message, "possible_duplicate": again["possible_duplicate"]}, "retrying", now=now, attempt=message["attempt"],
        detail=f"in doubt: {result.code}" if doubt else result.code, provider=provider, latency_ms=latency_ms,
        source=source_of(record),
    )  # fmt: skip
    timer_id = ids.timer_id(message["message_id"], "retry", again["attempt"])
    timer: Timer = {
        "timer_id": timer_id,
        "due_at": now + int(after * 1000),
        "purpose": "retry",
        "topic": record.topic,
        "key": record.key or b"",
        "headers": [{"name": name, "value": value or b""} for name, value in record.headers],
        "value": codec("ChannelMessage").encode(again),
    }
    facts = (
        # The timer first: a released message without its timer would be lost.
        OutRecord(TIMERS, timer_id.encode(), codec("Timer").encode(timer)),
        status_record(status, traceparent_of(record.headers)),
        ledger_entry(message, record.partition, again["attempt"], None, now),
    )
    return Outcome("retrying", again["attempt"], False, facts)


def resend_in_doubt(message: ChannelMessage, record: InRecord, now: int) -> tuple[ChannelMessage, OutRecord]:
    """A message claimed by an owner that ended without a record: sent again, flagged, with the reason on record."""
    flagged: ChannelMessage = {**message, "possible_duplicate": True}
    status = message_status(
        flagged, "sending", now=now, attempt=message["attempt"], detail="in doubt: claimed by a sender that ended",
        source=source_of(record),
    )  # fmt: skip
    return flagged, status_record(status, traceparent_of(record.headers))


assert {"sent", "bounced", "rejected", "failed", "unknown"} <= states().settled

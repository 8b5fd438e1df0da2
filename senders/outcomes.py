"""A result becomes facts: status events, the ledger entry, a retry's timer, a dead letter; pure.

    | result                        | at_least_once                          | at_most_once        |
    |-------------------------------|----------------------------------------|---------------------|
    | Sent                          | sent                                   | sent                |
    | Rejected, recipient           | bounced (hard_bounce, invalid_...)     | the same            |
    | Rejected, message             | rejected / provider_rejected           | the same            |
    | Retry, another account works  | failed_over + dispatched at once       | the same            |
    | Retry, retries left           | retrying + timer                       | the same            |
    | Retry that costs_nothing      | the same, and no retry is used up      | the same            |
    | Retry, none left              | failed + dead letter                   | the same            |
    | Retry, its record too large   | failed + dead letter                   | the same            |
    | InDoubt, repeated or looked up| retrying / in_doubt + timer            | the same (repeated) |
    |   (repeats.py)                |                                        |                     |
    | InDoubt, any other            | retrying / in_doubt, flagged + timer   | unknown / in_doubt  |
    | no account works for long     | failed / provider_account + dead letter| the same            |
    | refused before a request      | what refused it; in doubt unknown      | the same            |
    | a repeated doubt comes to     | failed, flagged + dead letter          | unknown / in_doubt  |
    |   nothing: no retry is left,  |                                        |                     |
    |   or no account works         |                                        |                     |

An outcome without a request may say that the message was not sent only where no earlier attempt was in doubt. `failed` says that
the last request was not accepted, and keeps the flag, so that a replay may try again, flagged. A Rejected in answer to a
repetition is the answer to the request before it as well.

A message that was claimed when its sender ended is in doubt like any other, so that a crash costs a retry as well: a
message that kills its sender ends in the dead letters after the last.

May import runtime values and schemas. Never: a clock read, a random number, Kafka.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Unpack

from runtime import ids
from runtime.dead_letters import dead_letter_record
from runtime.records import ConsumerRecord, ProducerRecord, size_of
from runtime.references import reference_record
from runtime.retry import retry_delay_s, throttle_delay_s
from runtime.status import Particulars, message_status, recipient_of, source_of, status_record, traceparent_of
from schemas.channels import ROWS
from schemas.codec import RecordTooLarge, codec
from schemas.events import ChannelMessage, LedgerEntry, Timer, states
from schemas.topics import MAX_VALUE_BYTES, TIMERS, ledger_topic
from senders.accounts import AccountTrouble, Clearing
from senders.repeats import doubt_since, with_doubt
from vendors.sender import OPTED_OUT, ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

CLAIMED_BY_ENDED = InDoubt("claimed by a sender that ended")
NO_LONGER_REPEATED = InDoubt("its account does not recognise a repetition any more")
RETRIES_EXHAUSTED = "retries_exhausted"
PROVIDER_ACCOUNT = "provider_account"
MAX_ATTEMPTS = 72
"""Limit of attempts of any kind, including those that cost no retry: later ones are at least a minute apart, so more than an
hour of them is no longer a wait."""
LEDGER_DOUBT = ("in-doubt", b"1")
"""Header of a ledger entry whose message may have been sent: a replay of its request, which cannot know this, is flagged.
A header and not a field, because during an upgrade senders of the previous version still read the ledger."""
RECORD_OVERHEAD = 512
"""What Kafka adds to a record alone in its batch, and what a next attempt may add to a message, rounded up."""


class Attempt(NamedTuple):
    """One attempt of a message, as far as it is known when it ends: every outcome is made of it."""

    message: ChannelMessage
    record: ConsumerRecord
    """The dispatch record of the message."""
    now: int
    """When it ended, in ms."""
    provider: str | None = None
    """The account that was asked; None when none was, or when its sender ended before it could say."""
    latency_ms: int | None = None
    """From the request to its response."""
    probe: bool = False
    """Whether the account was half-open when the request began."""

    @property
    def doubt_since(self) -> int | None:
        """Since when (ms) the message is in a doubt that is being repeated: may have been sent, and is not flagged for it."""
        return None if self.message["possible_duplicate"] else doubt_since(self.record.headers)

    @property
    def began(self) -> int:
        """No later than its request (ms): when its record came."""
        return min(self.record.timestamp, self.now) if self.record.timestamp > 0 else self.now


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be recorded before the message is released."""

    state: str
    """The state or event it led to."""
    next_attempt: int
    """Attempts below it are done."""
    records: tuple[ProducerRecord, ...]
    ledger_record: ProducerRecord
    """To be published once the records are acknowledged: with it the attempt counts as recorded."""
    in_doubt: bool = False
    """Whether the message may have been sent all the same."""

    @property
    def settled_state(self) -> str | None:
        """The state it ended in, None while another attempt may follow."""
        return self.state if self.state in states().settled else None


class RetriesExhausted(Exception):
    """The last attempt failed as well."""


class NoAccountWorks(Exception):
    """Every account that reaches the address has been failing for too long."""


def costs_nothing(result: SendResult, *, probe: bool) -> bool:
    """Whether a request uses no retry up: it was refused unseen, or it asked after an account and says nothing of its message.

    `probe`: the account was half-open when the request began. What may have been sent always costs one.
    """
    if not isinstance(result, Retry):
        return False
    return result.error is ErrorClass.THROTTLED or (probe and result.account_wide)


def is_account_failure(result: SendResult) -> bool:
    """Whether a request was certainly not accepted, and that is about its account: not a throttled one, which works."""
    return isinstance(result, Retry) and result.account_wide and result.error is not ErrorClass.THROTTLED


def last_attempt(message: ChannelMessage) -> bool:
    """Whether no attempt may follow this one, throttled or not. A replay continues the count, with as many more attempts."""
    attempt = message["attempt"]
    return attempt % MAX_ATTEMPTS == 0 if message["replay"] else attempt >= MAX_ATTEMPTS


def settle(
    attempt: Attempt, state: str, *, extra: tuple[ProducerRecord, ...] = (), **more: Unpack[Particulars]
) -> Outcome:
    """The message ends in `state`."""
    message = attempt.message
    next_attempt = message["attempt"] + 1
    entry = ledger_entry(message, attempt.record.partition, next_attempt, state, attempt.now)
    if message["possible_duplicate"]:
        entry = entry._replace(headers=[LEDGER_DOUBT])
    facts = (*extra, _status(attempt, state, **more))
    return Outcome(state, next_attempt, facts, entry, message["possible_duplicate"])


def _status(attempt: Attempt, state: str, **more: Unpack[Particulars]) -> ProducerRecord:
    """The status event of the attempt: which account was asked, how long that took, and `more`."""
    said: Particulars = {
        "provider": attempt.provider,
        "latency_ms": attempt.latency_ms,
        "source": source_of(attempt.record),
        **more,
    }
    message = attempt.message
    status = message_status(message, state, now=attempt.now, attempt=message["attempt"], **said)
    return status_record(status, traceparent_of(attempt.record.headers))


def refuse(attempt: Attempt, state: str, reason: str, detail: str | None = None) -> Outcome:
    """The message ends in `state` before a request was made; one that may have been sent before ends `unknown`."""
    if attempt.message["possible_duplicate"] or attempt.doubt_since is not None:
        state, reason = "unknown", "in_doubt"
    return settle(attempt, state, reason=reason, detail=detail)


def ledger_entry(
    message: ChannelMessage, partition: int, next_attempt: int, state: str | None, now: int
) -> ProducerRecord:
    """The ledger's record, on the partition of the dispatch record."""
    entry: LedgerEntry = {
        "message_id": message["message_id"],
        "next_attempt": next_attempt,
        "state": state,
        "recorded_at": now,
    }
    topic = ledger_topic(message["channel"], message["lane"])
    return ProducerRecord(
        topic, message["message_id"].encode(), codec("LedgerEntry").encode(entry), partition=partition
    )


def in_words(result: Rejected) -> str:
    """The provider's code, and that the recipient told it to stop."""
    return f"{result.code} {OPTED_OUT}" if result.opted_out else result.code


def from_result(
    attempt: Attempt,
    result: SendResult,
    *,
    jitter: float,
    max_retries: int,
    next_provider: str | None = None,
    cleared_by: Clearing | None = None,
) -> Outcome:
    """The table above; `next_provider` is the account that takes over after a definite not-sent, where there is one.

    `cleared_by`: the account that clears a doubt about this message up.
    """
    outcome = _from_result(attempt, result, jitter, max_retries, next_provider, cleared_by)
    reference = result.reference if isinstance(result, Sent | InDoubt) else None
    if reference is None or attempt.provider is None:
        return outcome
    record = reference_record(attempt.message, attempt.provider, reference, recipient_of(attempt.message), attempt.now)
    return replace(outcome, records=(record, *outcome.records))


def _from_result(
    attempt: Attempt,
    result: SendResult,
    jitter: float,
    max_retries: int,
    next_provider: str | None,
    cleared_by: Clearing | None,
) -> Outcome:
    message = attempt.message
    if isinstance(result, Sent):
        return settle(attempt, "sent", provider_message_id=result.provider_message_id, detail=result.detail)
    if isinstance(result, Rejected):
        return _rejected(attempt, result)
    if isinstance(result, InDoubt) and message["delivery"] == "at_most_once" and cleared_by is None:
        return settle(attempt, "unknown", reason="in_doubt", detail=result.code, code=result.code)
    free = costs_nothing(result, probe=attempt.probe)
    retries = message["retries"] + (0 if free else 1)
    error: Exception = RetriesExhausted(result.code)
    if retries <= max_retries and not last_attempt(message):
        try:
            if next_provider is not None and isinstance(result, Retry):
                return _fail_over(attempt, result, retries, next_provider)
            return _retry(attempt, result, retries, jitter, free=free, cleared_by=cleared_by)
        except RecordTooLarge as exc:
            error = exc  # of a direct publisher: what the router renders leaves room
    account = isinstance(result, Retry) and result.error is ErrorClass.ACCOUNT
    reason, doubt = PROVIDER_ACCOUNT if account else RETRIES_EXHAUSTED, isinstance(result, InDoubt)
    return _failed(attempt, reason, error, code=result.code, in_doubt=doubt)


def _rejected(attempt: Attempt, result: Rejected) -> Outcome:
    recipient = result.error is ErrorClass.PERMANENT_RECIPIENT
    return settle(
        attempt,
        "bounced" if recipient else "rejected",
        detail=in_words(result),
        code=result.code,
        reason=ROWS[attempt.message["channel"]].bounce_reason if recipient else "provider_rejected",
        opted_out=result.opted_out,
        invalid_since=result.invalid_since,
    )


def no_account_works(attempt: Attempt, troubles: Sequence[AccountTrouble]) -> Outcome:
    """The message waited for accounts that have failed for too long; no request was made, or one that probed in vain.

    The detail names each of them with its last code; the first counts as the message's account.
    """
    words = "; ".join(trouble.words for trouble in troubles)
    error = NoAccountWorks(f"no account works: {words}" if words else "no account works")
    provider = attempt.message["provider"] or (troubles[0].name if troubles else None)
    return _failed(attempt._replace(provider=provider), PROVIDER_ACCOUNT, error)


def no_next_attempt(attempt: Attempt, error: Exception, *, in_doubt: bool) -> Outcome:
    """Kafka does not take the record that would bring the next attempt, which fails; the last one has its own outcome already."""
    message = _next_attempt(attempt.message, attempt.message["retries"], None)
    return _failed(attempt._replace(message=message), RETRIES_EXHAUSTED, error, in_doubt=in_doubt)


def _failed(
    attempt: Attempt, reason: str, error: Exception, *, code: str | None = None, in_doubt: bool = False
) -> Outcome:
    """`in_doubt`: of this attempt, beside what an earlier one left."""
    if in_doubt or attempt.doubt_since is not None:
        if attempt.message["delivery"] == "at_most_once":
            return settle(attempt, "unknown", reason="in_doubt", detail=str(error), code=code)
        attempt = attempt._replace(message={**attempt.message, "possible_duplicate": True})
    message = attempt.message
    dead_letter = dead_letter_record(
        attempt.record,
        stage="sender",
        reason=reason,
        error=error,
        now=attempt.now,
        attempts=message["attempt"],
        tenant=message["tenant"],
        notification_id=message["notification_id"],
        message_id=message["message_id"],
    )
    return settle(attempt, "failed", reason=reason, detail=str(error), code=code, extra=(dead_letter,))


def _next_attempt(message: ChannelMessage, retries: int, provider: str | None, doubt: bool = False) -> ChannelMessage:
    return {
        **message,
        "attempt": message["attempt"] + 1,
        "retries": retries,
        "provider": provider,
        "possible_duplicate": message["possible_duplicate"] or doubt,
    }


def _fail_over(attempt: Attempt, result: Retry, retries: int, next_provider: str) -> Outcome:
    record = attempt.record
    again = _next_attempt(attempt.message, retries, next_provider)
    dispatch = ProducerRecord(
        record.topic, record.key, codec("ChannelMessage").encode(again), record.headers, record.partition
    )
    _check_fits("ChannelMessage", dispatch)
    detail = f"{result.code}; next: {next_provider}"
    status = _status(attempt, "failed_over", reason=_why(result), detail=detail, code=result.code)
    return _continued(attempt, "failed_over", again, dispatch, status)


def _retry(
    attempt: Attempt, result: Retry | InDoubt, retries: int, jitter: float, *, free: bool, cleared_by: Clearing | None
) -> Outcome:
    message = attempt.message
    doubt, since = isinstance(result, InDoubt), attempt.doubt_since
    if doubt:
        since = None if cleared_by is None else attempt.began if since is None else since
    # In doubt it stays with the account that may have sent it: another one would be sure to send it twice.
    provider = message["provider"] if since is not None else None
    if doubt:
        provider = cleared_by.account if cleared_by else attempt.provider or message["provider"]
    again = _next_attempt(message, retries, provider, doubt and cleared_by is None)
    if free:
        after_s = throttle_delay_s(message["attempt"], jitter, result.retry_after_s)
    else:
        after_s = retry_delay_s(retries - 1, jitter, result.retry_after_s)
    if cleared_by is not None:
        after_s = max(after_s, cleared_by.after_s)
    due_at = attempt.now + int(after_s * 1000)
    timer = _timer(again, attempt.record, due_at, since)
    status = _status(
        attempt,
        "retrying",
        possible_duplicate=again["possible_duplicate"],
        reason=_why(result),
        detail=f"in doubt: {result.code}" if doubt else result.code,
        code=result.code,
        due_at=due_at,
    )
    return _continued(attempt, "retrying", again, timer, status, in_doubt=since is not None)


def _why(result: Retry | InDoubt) -> str | None:
    """The reason of an event after which another attempt follows, where it has one."""
    if isinstance(result, InDoubt):
        return "in_doubt"
    return "throttled" if result.error is ErrorClass.THROTTLED else None


def _continued(
    attempt: Attempt,
    event: str,
    again: ChannelMessage,
    carrier: ProducerRecord,
    status: ProducerRecord,
    *,
    in_doubt: bool = False,
) -> Outcome:
    """The outcome of an attempt after which `carrier`, a timer or a dispatch record, brings the next one."""
    entry = ledger_entry(attempt.message, attempt.record.partition, again["attempt"], None, attempt.now)
    return Outcome(event, again["attempt"], (carrier, status), entry, again["possible_duplicate"] or in_doubt)


def _timer(again: ChannelMessage, record: ConsumerRecord, due_at: int, doubt_since: int | None) -> ProducerRecord:
    """The timer that publishes the next attempt to the topic of its record. Raises RecordTooLarge."""
    timer_id = ids.timer_id(again["message_id"], "retry", again["attempt"])
    timer: Timer = {
        "timer_id": timer_id,
        "due_at": due_at,
        "purpose": "retry",
        "topic": record.topic,
        "key": record.key or b"",
        "headers": [{"name": name, "value": value or b""} for name, value in with_doubt(record.headers, doubt_since)],
        "value": codec("ChannelMessage").encode(again),
    }
    made = ProducerRecord(TIMERS, timer_id.encode(), codec("Timer").encode(timer))
    _check_fits("Timer", made)
    return made


def _check_fits(name: str, record: ProducerRecord) -> None:
    """Raises RecordTooLarge for what the broker would refuse: its limit is of the whole record, and would end the process."""
    size = RECORD_OVERHEAD + size_of(record.key, record.value, record.headers)
    if size > MAX_VALUE_BYTES:
        raise RecordTooLarge(name, size, MAX_VALUE_BYTES)

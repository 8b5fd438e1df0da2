"""Ask providers after every message that ended `unknown`: a lost answer is found out, and nothing is sent.

    | the provider                         | what is published                                         |
    |--------------------------------------|-----------------------------------------------------------|
    | shows the message                    | `sent`, with its id; a fact of its own, as a report's is  |
    | shows that it did not send it        | `bounced` or `rejected`                                   |
    | does not show it, or cannot be asked | nothing: that proves nothing                              |

The account that was asked is asked; where that is not known, as its sender ended, those of the channel are, one after the other. What went
out is read from its dispatch record, as long as Kafka keeps it: some vendors are asked by address and text. A fact's id is made of
the message and of what the provider calls it, so that a second run adds nothing.
May import runtime, vendors, sinks. Never: a request that sends, a claim.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from replay.plan import RecordPosition
from runtime import ids
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.logs import get_logger
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.references import reference_record
from runtime.retry import asked_s
from runtime.settings import ClickHouseSettings, ProviderSettings
from runtime.status import fact, status_record
from schemas.channels import ROWS
from schemas.codec import DecodeError, codec
from schemas.events import ChannelMessage
from schemas.identity import HOUR_S
from sinks import clickhouse
from vendors.registry import create_look_ups
from vendors.sender import CANNOT_ASK, Doubt, ErrorClass, InDoubt, Rejected, Retry, Sender, SendResult, Sent

log = get_logger("reconcile")

PAGE = 500
TRIES = 3
"""Of one look-up that fails."""
MAX_WAIT_S = 60.0
TIMEOUT_S = 300.0
FOUND = "the provider was asked after it and has it"
"""What is recorded of a message that was found."""


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message that may have been sent, as ClickHouse knows it."""

    message_id: str
    notification_id: str
    tenant: str
    channel: str
    lane: str
    recipient: str | None
    provider: str | None
    attempt: int
    position: RecordPosition | None
    """Of its dispatch record."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of one message. `outcome`: found, refused, not_shown, failed or cannot_ask."""

    message: UnknownMessage
    provider: str | None
    outcome: str
    result: SendResult
    records: Sequence[ProducerRecord] = field(default=(), repr=False)


class DispatchReader(Protocol):
    """The part of replay.source.Reader that is used."""

    def read(self, positions: Sequence[RecordPosition]) -> dict[RecordPosition, ConsumerRecord]: ...


class Pace:
    """No more than so many requests a second."""

    def __init__(self, per_second: float, monotonic: Monotonic = system_monotonic) -> None:
        self._each_s, self._monotonic, self._next = 1 / per_second, monotonic, 0.0

    async def wait(self) -> None:
        """Until the next request may be made."""
        now = self._monotonic()
        self._next = max(self._next, now)
        await asyncio.sleep(self._next - now)
        self._next += self._each_s


def unknown_messages(
    settings: ClickHouseSettings, since_s: int, provider: str | None, limit: int
) -> Iterable[list[UnknownMessage]]:
    """Pages of the messages in `unknown`, accepted since the hour of `since_s` (s since 1970). Raises UnavailableError, StoreError."""
    client = clickhouse.connect(settings, timeout_s=TIMEOUT_S)
    asked: dict[str, Any] = {"since": since_s // HOUR_S * HOUR_S, "provider": provider or "", "after": ""}
    try:
        while limit > 0:
            page = clickhouse.select(settings, client, "unknown_messages", {**asked, "limit": min(PAGE, limit)})
            if not page:
                return
            yield [_message(row) for row in page]
            asked["after"], limit = page[-1]["message_id"], limit - len(page)
    finally:
        client.close()


def _message(row: Mapping[str, Any]) -> UnknownMessage:
    position = None
    if row["source_topic"]:
        position = RecordPosition(row["source_topic"], row["source_partition"], row["source_offset"])
    return UnknownMessage(
        ids.text_of_bytes(bytes.fromhex(row["message_id"])),
        ids.text_of_bytes(bytes.fromhex(row["notification_id"])),
        row["tenant"],
        row["channel"],
        row["lane"],
        row["recipient"] or None,
        row["provider"] or None,
        row["attempt"],
        position,
    )


class Reconciliation:
    """Asks after messages, one request at a time."""

    def __init__(
        self,
        providers: Sequence[ProviderSettings],
        reader: DispatchReader,
        pace: Pace,
        clock: Clock = system_clock,
        senders: Mapping[str, Sender] | None = None,
    ) -> None:
        """Raises SettingsError. `senders`: by name; those of the providers unless given."""
        self._senders = create_look_ups(providers) if senders is None else senders
        self._channels = {provider.name: provider.channel for provider in providers}
        self._reader, self._pace, self._clock = reader, pace, clock

    async def start(self) -> None:
        """Open what is kept open. Raises SettingsError."""
        for sender in self._senders.values():
            await sender.start()

    async def close(self) -> None:
        """Close it."""
        for sender in self._senders.values():
            await sender.close()

    def candidates(self, message: UnknownMessage) -> list[str]:
        """Names of the accounts to ask: the one that was asked, or all of its channel where that is not known."""
        if message.provider is not None:
            return [message.provider] if message.provider in self._senders else []
        return [name for name in self._senders if self._channels.get(name) == message.channel]

    async def look_up(self, messages: Sequence[UnknownMessage]) -> AsyncIterator[Looked]:
        """What came of each. Raises UnavailableError where the dispatch records cannot be read."""
        positions = sorted(
            {message.position for message in messages if message.position and self.candidates(message)},
            key=lambda position: (position.topic, position.partition, position.offset),
        )
        dispatched = await asyncio.to_thread(self._reader.read, positions) if positions else {}
        for message in messages:
            record = dispatched.get(message.position) if message.position else None
            went_out = _dispatched(message, record)
            since = _accepted_at(message.notification_id)
            if record is not None and went_out is not None and record.timestamp > since:
                since = record.timestamp  # it may have waited, and been tried before
            yield await self._look_up(message, went_out, since)

    async def _look_up(self, message: UnknownMessage, went_out: ChannelMessage | None, since: int) -> Looked:
        doubt = Doubt(message.message_id, since, went_out and went_out["address"], went_out and went_out["text"])
        result: SendResult = CANNOT_ASK
        for name in self.candidates(message):
            result = await self._ask(self._senders[name], doubt)
            if isinstance(result, Sent | Rejected):
                return Looked(
                    message,
                    name,
                    "found" if isinstance(result, Sent) else "refused",
                    result,
                    self._records(message, name, result, went_out),
                )
        return Looked(message, message.provider, _outcome(result), result)

    async def _ask(self, sender: Sender, doubt: Doubt) -> SendResult:
        """The answer; a look-up that fails is made TRIES times."""
        for left in reversed(range(TRIES)):
            await self._pace.wait()
            result = await self._once(sender, doubt)
            if not isinstance(result, Retry) or not left:
                return result
            await asyncio.sleep(min(MAX_WAIT_S, max(1.0, asked_s(result.retry_after_s or 0.0))))
        raise AssertionError("the last try returns")

    async def _once(self, sender: Sender, doubt: Doubt) -> SendResult:
        try:
            return await sender.look_up(doubt)
        except Exception as exc:  # one message's must not end the others'
            log.exception("look-up failed", provider=sender.name, message_id=doubt.message_id)
            return Retry(ErrorClass.TRANSIENT, f"look-up: {type(exc).__name__}")

    def _records(
        self, message: UnknownMessage, provider: str, result: Sent | Rejected, went_out: ChannelMessage | None
    ) -> list[ProducerRecord]:
        now = self._clock()
        theirs = result.provider_message_id if isinstance(result, Sent) else result.code
        state, reason = _state(message.channel, result)
        status = fact(
            ids.event_id(message.message_id, state, message.attempt, f"look-up:{theirs or ''}"),
            message.notification_id,
            message.tenant,
            message.lane,
            state,
            now,
            {
                "message_id": message.message_id,
                "channel": message.channel,
                "reason": reason,
                "detail": FOUND if isinstance(result, Sent) else result.code,
                "code": None if isinstance(result, Sent) else result.code,
                "provider": provider,
                "provider_message_id": theirs if isinstance(result, Sent) else None,
                "recipient": message.recipient,
                "opted_out": isinstance(result, Rejected) and result.opted_out,
            },
            attempt=message.attempt,
        )
        records = [status_record(status)]
        if isinstance(result, Sent) and result.reference is not None and went_out is not None:
            records.insert(0, reference_record(went_out, provider, result.reference, message.recipient, now))
        return records


def _accepted_at(notification_id: str) -> int:
    """0 for an id of another publisher that has no time."""
    try:
        return ids.accepted_at(notification_id)
    except ValueError:
        return 0


def _dispatched(message: UnknownMessage, record: ConsumerRecord | None) -> ChannelMessage | None:
    """What went out; None where the record is gone, or is not this message's: other publishers may write any."""
    if record is None:
        return None
    try:
        went_out = cast(ChannelMessage, codec("ChannelMessage").decode(record.value))
    except DecodeError:
        return None
    return went_out if went_out["message_id"] == message.message_id else None


def _state(channel: str, result: Sent | Rejected) -> tuple[str, str | None]:
    if isinstance(result, Sent):
        return "sent", None
    if result.error is ErrorClass.PERMANENT_RECIPIENT:
        return "bounced", ROWS[channel].bounce_reason
    return "rejected", "provider_rejected"


def _outcome(result: SendResult) -> str:
    if isinstance(result, Retry):
        return "failed"
    return "not_shown" if isinstance(result, InDoubt) and result.code != CANNOT_ASK.code else "cannot_ask"


async def reconcile(
    pages: Iterable[Sequence[UnknownMessage]],
    asking: Reconciliation,
    publish: Callable[[Sequence[ProducerRecord]], None] | None,
) -> AsyncIterator[Looked]:
    """What came of each message, once what it says is acknowledged; `publish` None publishes nothing. Raises UnavailableError, PublishError."""
    for page in pages:
        async for looked in asking.look_up(page):
            if looked.records and publish is not None:
                await asyncio.to_thread(publish, looked.records)
            yield looked

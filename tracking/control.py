"""Cancel a notification that exists, or send it again.

    | call   | it is settled                     | it is in flight        | unknown, or another's |
    |--------|-----------------------------------|------------------------|-----------------------|
    | cancel | refused, nothing when `cancelled` | stored, a Cancellation | refused               |
    | resend | published, the next generation    | refused                | refused               |

A cancel is confirmed when the response says `"status": "cancelled"`: the timers stage, the router or a sender decided it, and
nothing was or will be sent. Another status says that the cancellation is stored and not decided yet.
May import producers and tracking.status. Never: HTTP, a decision of the router or a sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from producers.notification import HTTP_SOURCE, request_record
from producers.reference.resends import is_resendable
from runtime.clock import Clock, system_clock
from runtime.errors import PublishError, Refusal, RefusedError, UnavailableError
from runtime.logs import get_logger
from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.events import LANES, Cancellation, states
from schemas.topics import CANCELLATIONS
from tracking.original import Original
from tracking.status import Found, Statuses, accepted_at_of, links, rollup

log = get_logger("control")
MAX_LOOKUPS = 2
"""Topics read at once; more callers wait for their turn."""
PAUSES_S = (0.2, 0.2, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
"""Between checks of the cancellation's outcome. Four seconds: a schedule that is about to fire is decided after it fired."""
MAX_UNDECIDED = 64
"""Callers that wait for a decision at once; further ones are answered right away that the cancellation is stored."""


class Broker(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    async def send(self, records: Sequence[ProducerRecord]) -> None: ...


class Generations(Protocol):
    """The part of Resends that is used."""

    async def reserve(self, tenant: str, notification_id: str, above: int) -> int: ...
    async def confirm(self, tenant: str, notification_id: str, generation: int) -> None: ...


def _cancel_body(notification_id: str, current: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": notification_id, "status": current["status"], "links": links(notification_id)}


def _refuse_settled(current: Mapping[str, Any], so: str) -> None:
    status = current["status"]
    if status in states().settled:
        raise RefusedError(
            Refusal.CONFLICT, "already_settled", f"it is {status}: {so}", extra={"notification_status": status}
        )


def _request_gone() -> RefusedError:
    return RefusedError(
        Refusal.UNKNOWN, "request_gone", "the request itself is not kept any more: send a new notification"
    )


FindRequest = Callable[[str, str, str], Original | None]
"""(tenant, id, lane) → the request as it was published; blocks."""


def cancellation_record(tenant: str, notification_id: str, now: int) -> ProducerRecord:
    """Cancellations as routers and senders read them."""
    value: Cancellation = {"notification_id": notification_id, "tenant": tenant, "requested_at": now}
    return ProducerRecord(CANCELLATIONS, notification_id.encode(), codec("Cancellation").encode(value))


class Control:
    """Cancels and sends again."""

    def __init__(
        self,
        statuses: Statuses,
        broker: Broker,
        generations: Generations,
        find_request: FindRequest,
        clock: Clock = system_clock,
    ) -> None:
        self._statuses, self._broker, self._generations, self._find = statuses, broker, generations, find_request
        self._clock = clock
        self._turns = asyncio.Semaphore(MAX_LOOKUPS)
        self._undecided = asyncio.Semaphore(MAX_UNDECIDED)

    async def _current_status(self, tenant: str, text: str) -> tuple[str, Found, dict[str, Any]]:
        found_id, found = await self._statuses.find(tenant, text)
        return str(found_id), found, rollup(str(found_id), accepted_at_of(found_id), found.events)

    async def cancel(self, tenant: str, text: str) -> tuple[bool, dict[str, Any]]:
        """(whether a cancellation was stored now, the current status). Raises RefusedError, UnavailableError.

        Only the cancellation is written here. Ending the notification here would sometimes be wrong: a sender may be sending
        it. The stage that holds it (timers, router, or a sender at its claim) decides, and publishes a status event; this
        waits a while for that event and returns it, also when the notification settled before the cancellation.
        """
        notification_id, _, current = await self._current_status(tenant, text)
        if current["status"] == "cancelled":
            return False, _cancel_body(notification_id, current)
        _refuse_settled(current, "there is nothing left to cancel")
        await self._publish(cancellation_record(tenant, notification_id, self._clock()), notification_id)
        current = await self._decided(tenant, text, current)
        if current["status"] != "cancelled":
            _refuse_settled(current, "the cancellation came too late")
        return True, _cancel_body(notification_id, current)

    async def _decided(self, tenant: str, text: str, current: dict[str, Any]) -> dict[str, Any]:
        """The status once it is settled, or after the wait."""
        if self._undecided.locked():
            return current
        async with self._undecided:
            for pause in PAUSES_S:
                await asyncio.sleep(pause)
                try:
                    _, _, current = await self._current_status(tenant, text)
                except (RefusedError, UnavailableError) as exc:
                    log.info("a cancellation is stored, its outcome cannot be read", error=str(exc))
                    break
                if current["status"] in states().settled:
                    break
        return current

    async def resend(self, tenant: str, text: str, correlation_id: str, traceparent: str | None) -> tuple[str, int]:
        """(id, generation) once the request is published again. Raises RefusedError, UnavailableError."""
        notification_id, found, current = await self._current_status(tenant, text)
        status = current["status"]
        if status not in states().settled:
            raise RefusedError(
                Refusal.CONFLICT,
                "not_settled",
                f"it is {status}: a resend now could arrive beside it",
                extra={"notification_status": status},
            )
        # Both would only end the same way again.
        if status == "cancelled":
            raise RefusedError(
                Refusal.CONFLICT, "cancelled", "it was cancelled, and that stays: send a new notification"
            )
        if not is_resendable(notification_id, self._clock()):
            raise _request_gone()
        original = await self._original(tenant, notification_id, found)
        request = original.request
        expires_at = request.get("expires_at")
        if expires_at is not None and expires_at <= self._clock():
            raise RefusedError(Refusal.CONFLICT, "expired", "its expires_at has passed: send a new notification")
        generation = await self._generations.reserve(tenant, notification_id, request.get("generation", 0))
        request = {
            **request,
            "generation": generation,
            "lane": original.lane,
            "correlation_id": correlation_id,
            "source": HTTP_SOURCE,
        }
        try:
            record = request_record(request, traceparent)
        except ValueError as exc:  # another publisher wrote it, at the topic's limit: a resend does not fit
            raise RefusedError(
                Refusal.CONFLICT, "not_publishable", f"the request cannot be published again: {exc}"
            ) from exc
        await self._publish(record, notification_id)
        try:
            await self._generations.confirm(tenant, notification_id, generation)
        except UnavailableError as exc:
            # It is sent. The next resend repeats this generation and so does nothing; the one after it works.
            log.warning("resend not confirmed", notification_id=notification_id, error=str(exc))
        log.info("resent", notification_id=notification_id, generation=generation, correlation_id=correlation_id)
        return notification_id, generation

    async def _original(self, tenant: str, notification_id: str, found: Found) -> Original:
        # Other publishers may write any lane: only known lanes have a topic.
        lanes = sorted({event["lane"] for event in found.events}.intersection(LANES)) or ["normal"]
        for lane in lanes:
            async with self._turns:
                original = await asyncio.to_thread(self._find, tenant, notification_id, lane)
            if original is not None:
                return original
        raise _request_gone()

    async def _publish(self, record: ProducerRecord, notification_id: str) -> None:
        try:
            await self._broker.send([record])
        except PublishError as exc:
            log.warning("publish not acknowledged", notification_id=notification_id, error=str(exc))
            raise RefusedError(Refusal.BUSY, "kafka_unavailable", "Kafka did not confirm it: try again") from exc

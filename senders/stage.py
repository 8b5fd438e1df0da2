"""The event-loop side of a sender: sends what is claimed and hands back what came of it.

Before each request: the last look at what the recipient allows, the lease, the request guard. One claim is at most one
provider request: a message's, or a look-up of one that is in doubt (repeats.py), which needs nobody's consent as it sends nothing.
May import runtime and the protocol. Never: Kafka, a claim, a decision to try again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from runtime.clock import Clock, Monotonic
from runtime.logs import get_logger
from runtime.metrics import LOOK_UPS, PROVIDER_SECONDS, REQUEST_GUARD, SENDS, STAGE_DELAY_SECONDS
from runtime.process import Context, crash_point
from schemas.events import ChannelMessage
from senders.accounts import Accounts
from senders.admission import QueuedMessage
from senders.outcomes import MAX_ATTEMPTS, costs_nothing
from senders.recheck import SenderViews, recheck
from vendors.sender import NOT_FOUND, Doubt, ErrorClass, InDoubt, Retry, Sender, SendResult, Sent

log = get_logger("sender")

FOUND = "its answer was lost; the provider has it"
"""What is recorded of a message that a look-up found."""
LEASE_S = 5.0
"""A claim must be sent at once: after half a session without running, another process may own the message."""


@dataclass(slots=True)
class SendCompletion:
    """The end of a queued message: a provider's result, or the refusal (state, reason) that forbade the request."""

    queued: QueuedMessage
    at: int
    result: SendResult | None = None
    refusal: tuple[str, str, str | None] | None = None
    latency_ms: int | None = None
    began: float = 0.0
    """When the request began, by the monotonic clock."""


_Key = tuple[str, str | None]


def _key(message: ChannelMessage) -> _Key:
    return message["message_id"], message["replay"]


class RequestGuard:
    """Below all retry logic: whatever goes wrong above, one message costs a bounded number of provider requests.

    Requests that cost no retry (outcomes.costs_nothing) are not counted here; MAX_ATTEMPTS bounds them. A replay is a
    deliberate decision to try again, and starts a new count. Counts of the last REMEMBERED finished messages are kept.
    """

    REMEMBERED = 100_000

    def __init__(self, max_retries: int) -> None:
        self._allowed = 1 + max_retries
        self._requests: OrderedDict[_Key, int] = OrderedDict()
        self._in_flight: dict[_Key, int] = {}

    def allows(self, message: ChannelMessage) -> bool:
        """Count a request that is about to be made; False when it may not be.

        Only what was counted here raises the alarm: the attempts and retries in a record may be another publisher's invention.
        """
        attempts = message["attempt"] <= MAX_ATTEMPTS or message["replay"] is not None
        if message["retries"] >= self._allowed or not attempts:
            return False
        key = _key(message)
        count = self._in_flight.get(key, self._requests.get(key, 0)) + 1
        if count > self._allowed:
            REQUEST_GUARD.labels(message["channel"]).inc()
            log.critical("request guard", message_id=message["message_id"], requests=count, attempt=message["attempt"])
            return False
        self._in_flight[key] = count
        return True

    def was_throttled(self, message: ChannelMessage) -> None:
        """The request just counted was refused unseen, or asked after its account alone: it does not count."""
        if (count := self._in_flight.get(_key(message))) is not None:
            self._in_flight[_key(message)] = count - 1

    def ended(self, message: ChannelMessage) -> None:
        """The message is no longer in flight, whether or not `allows` permitted it."""
        key = _key(message)
        if (count := self._in_flight.pop(key, 0)) > 0:
            self._requests[key] = count
            self._requests.move_to_end(key)
            if len(self._requests) > self.REMEMBERED:
                self._requests.popitem(last=False)


class SendStage:
    """`submit` and `done` belong to the Kafka thread, everything else to the event loop."""

    def __init__(
        self, context: Context, accounts: Accounts, views: SenderViews, clock: Clock, monotonic: Monotonic
    ) -> None:
        self.done: deque[SendCompletion] = deque()
        self._ended = threading.Event()
        self._settings = context.settings.sender
        self._crash_at = context.settings.crash_at
        self._exit_now = context.exit_now
        self._accounts = accounts
        self._views = views
        self._clock = clock
        self._monotonic = monotonic
        self._guard = RequestGuard(self._settings.max_retries)
        self._loop = asyncio.get_running_loop()
        self._claimed: deque[tuple[QueuedMessage, float]] = deque()
        self._workers: list[asyncio.Task[None]] = []
        """As many as there were ever requests at once: a task for each message costs more than its request's bookkeeping."""
        self._idle: list[asyncio.Future[None]] = []
        self._delay = cache(partial(STAGE_DELAY_SECONDS.labels, "sender"))
        self._seconds = cache(PROVIDER_SECONDS.labels)
        self._sends = cache(SENDS.labels)

    def submit(self, messages: Sequence[QueuedMessage]) -> None:
        """Send; called after the claim was committed."""
        self._loop.call_soon_threadsafe(self._start, messages, self._monotonic())

    def _start(self, messages: Sequence[QueuedMessage], claimed_at: float) -> None:
        for queued in messages:
            self._claimed.append((queued, claimed_at))
            # One worker for each: a message never waits for another one's request.
            if self._idle:
                self._idle.pop().set_result(None)
            else:
                self._workers.append(self._loop.create_task(self._work()))

    async def _work(self) -> None:
        while True:
            while self._claimed:
                await self._run(*self._claimed.popleft())
            idle = self._loop.create_future()
            self._idle.append(idle)
            await idle

    async def _run(self, queued: QueuedMessage, claimed_at: float) -> None:
        try:
            ended = await self._send(queued, claimed_at)
        except Exception as exc:
            # Before the provider was called: what happens after that is a result.
            log.exception("message cannot be sent", notification_id=queued.message["notification_id"])
            refusal = ("rejected", "provider_rejected", f"the message cannot be sent ({type(exc).__name__})")
            ended = SendCompletion(queued, self._clock(), refusal=refusal)
        finally:
            self._guard.ended(queued.message)
        self.done.append(ended)
        if not self._ended.is_set():
            self._ended.set()

    def wait(self, timeout_s: float) -> None:
        """Block the Kafka thread until a message has ended, `timeout_s` at most."""
        self._ended.wait(timeout_s)
        self._ended.clear()

    async def _send(self, queued: QueuedMessage, claimed_at: float) -> SendCompletion:
        message = queued.message
        sender = self._accounts[queued.account].sender
        now = self._clock()
        looks_up = asks_after(queued, sender)
        if not looks_up and (refusal := recheck(message, self._views, now, repeats=queued.repeats)):
            return SendCompletion(queued, now, refusal=(*refusal, None))
        if self._monotonic() - claimed_at > LEASE_S:
            self._exit_now("this process did not run for too long to be sure that it still owns its messages")
        if not self._guard.allows(message):
            return SendCompletion(queued, now, refusal=("failed", "retries_exhausted", "request guard"))
        if looks_up:
            began = self._monotonic()
            result = await look_up(sender, queued, self._settings.max_retries)
            LOOK_UPS.labels(message["channel"], sender.name, look_up_label(result)).inc()
            return SendCompletion(queued, self._clock(), result=result, began=began)
        crash_point("before_send", self._crash_at)
        self._delay(message["lane"]).observe(max(0, now - message["accepted_at"]) / 1000)
        began = self._monotonic()
        result = await _result(sender, message)
        elapsed = self._monotonic() - began
        crash_point("after_provider_accept", self._crash_at)
        if costs_nothing(result, probe=queued.probe):
            self._guard.was_throttled(message)
        self._seconds(message["channel"], sender.name).observe(elapsed)
        self._sends(message["channel"], sender.name, _outcome_label(result)).inc()
        return SendCompletion(queued, self._clock(), result=result, latency_ms=int(elapsed * 1000), began=began)


async def _result(sender: Sender, message: ChannelMessage) -> SendResult:
    """The result of a send. A sender that raises may have called its provider: the message is in doubt."""
    try:
        return await sender.send(message)
    except Exception as exc:
        log.exception("send failed", provider=sender.name, notification_id=message["notification_id"])
        return InDoubt(f"an error the sender does not know ({type(exc).__name__})")


def asks_after(queued: QueuedMessage, sender: Sender) -> bool:
    """Whether the request of a message asks its provider after it, and sends nothing."""
    return queued.repeats and not sender.repeatable_s


async def look_up(sender: Sender, queued: QueuedMessage, max_retries: int) -> SendResult:
    """The result of asking after a message in doubt."""
    message = queued.message
    doubt = Doubt(message["message_id"], queued.doubt_since or 0, message["address"], message["text"])
    try:
        result = await sender.look_up(doubt)
    except Exception as exc:
        log.exception("look-up failed", provider=sender.name, notification_id=message["notification_id"])
        result = Retry(ErrorClass.TRANSIENT, f"look-up: {type(exc).__name__}", account_wide=False)
    return looked_up(result, message, max_retries)


def looked_up(result: SendResult, message: ChannelMessage, max_retries: int) -> SendResult:
    """What a look-up says of a message. One that fails leaves a retry for the request that sends it again."""
    if isinstance(result, Retry) and message["retries"] + 2 > max_retries:
        return InDoubt(result.code, account_wide=False, looked_up=True)
    return replace(result, detail=FOUND) if isinstance(result, Sent) else result


def look_up_label(result: SendResult) -> str:
    """What a look-up came to, as a metric's label."""
    if isinstance(result, InDoubt | Retry):
        return "not_found" if result is NOT_FOUND else "failed"
    return "found"


def _outcome_label(result: SendResult) -> str:
    return "in_doubt" if isinstance(result, InDoubt) else type(result).__name__.lower()

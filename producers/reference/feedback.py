"""Stops sending to recipients that a provider reported as invalid: removes devices, suppresses bounced addresses.

    | status                                       | becomes                                                     |
    |----------------------------------------------|-------------------------------------------------------------|
    | bounced / invalid_token of a user's push     | the device leaves the profile                               |
    | bounced / gone of a user's webhook           | the same                                                    |
    | bounced / hard_bounce of an e-mail           | suppression `hard_bounce`                                   |
    | bounced / invalid_number of an SMS           | suppression `invalid_number`: each further try costs money  |
    | the same, the recipient having said STOP     | suppression `unsubscribe`                                   |
    | any other                                    | nothing                                                     |
    | receipt of an opt-out (it has tenants)       | suppression of its recipient for each of them: `complaint`  |
    |                                              | of a complaint, else `unsubscribe`                          |

A status has no address. It names the user (`recipient`) or the fingerprint, and the message, whose id is a function of the
fingerprint: the device, address or number that gives that id is the one. A device that registered after its provider reported
it as invalid is kept; an address that an operator removed from the list after it bounced is not suppressed again.
The brake (suppression_brake.py) stops this for an account of which too many messages are reported invalid at once. It counts
opt-outs, as a vendor that reports too many of them may be wrong about bounces too, and never delays one: it is the recipient's
own decision. A STOP in a status is counted with its receipt.
Any client of the broker can write a status. One with malformed ids is ignored, an account that is not configured has no
window and no label of its own, and one that cannot be processed is counted and skipped. Processing again changes nothing.
May import runtime and the store. Never: a provider, an address or a token in a log.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast
from uuid import UUID

from producers.addresses import has_control
from producers.reference.database import InputRefused
from producers.reference.store import Bounced, ReferenceStore
from producers.reference.suppression_brake import SuppressionBrake
from runtime import ids
from runtime.errors import UnavailableError
from runtime.logs import get_logger
from runtime.metrics import BOUNCED_ADDRESSES, DEAD_DEVICES, DROP_BRAKE, FEEDBACK_SKIPPED
from schemas.channels import ROWS
from schemas.codec import DecodeError, codec
from schemas.events import DeliveryStatus, states
from schemas.identity import check_tenant

log = get_logger("feedback")
MAX_SOURCE = 255
UNSUBSCRIBE = "unsubscribe"
COMPLAINT = "complaint"
_MAX_TENANTS = 1_000
_SUPPRESSIBLE = frozenset(row.name for row in ROWS.values() if row.suppressible)
_SUPPRESSED = frozenset((row.name, row.bounce_reason) for row in ROWS.values() if row.suppressible)
_DEVICES = frozenset((row.name, row.bounce_reason) for row in ROWS.values() if not row.one_address)
_INVALID = frozenset(row.bounce_reason for row in ROWS.values())
OTHER = "other"
"""The window and label of every account that is not configured: any publisher can invent such names."""
_ADDRESS = re.compile(r"addr:[0-9a-f]{32}")
_MAX_RECIPIENT = 255
_MAX_TIME_MS = 1 << 48
_head = codec("DeliveryStatus").head_decoder(11)  # up to provider


class OptOut(NamedTuple):
    """A recipient who reported spam, unsubscribed or sent STOP at a vendor."""

    tenants: Sequence[str]
    channel: str
    recipient: str
    reason: str
    provider: str
    occurred_at: int


class DeadDevice(NamedTuple):
    """A device of a user that a provider calls dead."""

    channel: str
    tenant: str
    user_id: str
    notification_id: str
    message_id: str
    provider: str
    dead_since: int

    def is_device(self, address: str, registered_at: int | None) -> bool:
        """Whether the device of this address is the one, and was registered before the provider called it dead."""
        if registered_at is not None and registered_at >= self.dead_since:
            return False
        fingerprint = ids.address_hash(self.channel, address)
        return ids.is_message_of(self.message_id, self.notification_id, self.channel, fingerprint)


class BouncedAddress(NamedTuple):
    """An address or number that a provider reported as invalid, or whose owner sent STOP."""

    status: DeliveryStatus
    message_id: str
    recipient: str
    reason: str

    def is_address(self, fingerprint: str) -> bool:
        """Whether it is the one with this fingerprint."""
        channel = self.status["channel"] or ""
        return ids.is_message_of(self.message_id, self.status["notification_id"], channel, fingerprint)


def is_plausible(status: DeliveryStatus) -> bool:
    """Whether the ids of a status are well-formed: other publishers may write any text. The ids may still match nothing."""
    try:
        check_tenant(status["tenant"])
        ids.accepted_at(status["notification_id"])
        UUID(status["message_id"] or status["notification_id"])
    except ValueError:
        return False
    recipient = status["recipient"] or ""
    if recipient.startswith("addr:") and not _ADDRESS.fullmatch(recipient):
        return False
    return (
        0 < len(recipient) <= _MAX_RECIPIENT
        and not has_control(recipient)
        and 0 <= status["occurred_at"] < _MAX_TIME_MS
    )


def decoded(values: Iterable[bytes | None], ended: Counter[str]) -> list[DeliveryStatus]:
    """The statuses that call a recipient invalid; those that say another end of a message are counted in `ended`, by account.

    Almost all are neither, and only their first fields are read. What does not decode is the sink's to report.
    """
    found: list[DeliveryStatus] = []
    settled = states().settled
    for value in values:
        try:
            head = _head(value)
            if head["state"] not in settled or not head["channel"] or not (provider := head["provider"]):
                continue
            if head["reason"] in _INVALID:
                found.append(cast(DeliveryStatus, codec("DeliveryStatus").decode(value)))
            else:
                ended[provider] += 1
        except DecodeError:
            continue
    return found


def dead_device(status: DeliveryStatus) -> DeadDevice | None:
    """The device a status calls dead; None when it calls none dead, or not one of a user."""
    channel = status["channel"] or ""
    if (channel, status["reason"]) not in _DEVICES or not status["recipient"] or not status["message_id"]:
        return None
    invalid_at = status["invalid_since"]
    return DeadDevice(
        channel,
        status["tenant"],
        status["recipient"],
        status["notification_id"],
        status["message_id"],
        status["provider"] or "",
        status["occurred_at"] if invalid_at is None else min(invalid_at, status["occurred_at"]),
    )


def bounced_address(status: DeliveryStatus) -> BouncedAddress | None:
    """The address a status calls invalid; None when it calls none so."""
    if status["state"] != "bounced" or not status["recipient"] or not status["message_id"]:
        return None
    reason = status["reason"] or ""
    if (status["channel"], reason) not in _SUPPRESSED:
        return None
    return BouncedAddress(status, status["message_id"], status["recipient"], UNSUBSCRIBE if is_stop(status) else reason)


def opt_out(value: bytes | None) -> OptOut | None:
    """The opt-out of a receipt, None of any other. Raises ValueError for one that cannot be: other publishers may write any text."""
    try:
        receipt = codec("ProviderReceipt").decode(value)
    except DecodeError:
        return None  # the sink's to report
    tenants, channel, recipient = receipt["tenants"], receipt["channel"], receipt["recipient"]
    if not tenants or not recipient:
        return None
    if len(tenants) > _MAX_TENANTS or channel not in _SUPPRESSIBLE or not _ADDRESS.fullmatch(recipient):
        raise ValueError("an opt-out of a recipient that cannot be")
    if not 0 <= receipt["occurred_at"] < _MAX_TIME_MS:
        raise ValueError("an opt-out at a time that cannot be")
    reason = COMPLAINT if receipt["state"] == "complained" else UNSUBSCRIBE
    owners = [check_tenant(tenant) for tenant in tenants]
    return OptOut(owners, channel, recipient, reason, receipt["provider"], receipt["occurred_at"])


def is_stop(status: DeliveryStatus) -> bool:
    """Whether the recipient sent STOP to the provider."""
    return status["reason"] == "invalid_number" and status["opted_out"]


def printable(text: str) -> str:
    """Text of a provider with spaces for what a log or a store may not hold."""
    return "".join(" " if has_control(char) else char for char in text)


class Feedback:
    """Judges batches of statuses; `accounts` are the configured ones, by name."""

    def __init__(self, store: ReferenceStore, accounts: Iterable[str] = ()) -> None:
        self._store = store
        self._brake = SuppressionBrake()
        self._accounts = frozenset(accounts)
        self._braked: set[str] = set()

    def _account(self, provider: str | None) -> str:
        return provider if provider in self._accounts else OTHER

    async def process(self, values: Sequence[bytes | None], now_s: float) -> None:
        """Drop and suppress what a batch calls invalid. Raises UnavailableError alone; then the batch may be processed again."""
        statuses = []
        ended = Counter[str]()
        for status in decoded(values, ended):
            if not is_plausible(status):
                FEEDBACK_SKIPPED.labels("implausible").inc()
                continue
            statuses.append(status)
            if not is_stop(status):
                self._brake.saw(self._account(status["provider"]), now_s, invalid=1)
        for provider, messages in ended.items():
            self._brake.saw(self._account(provider), now_s, messages=messages)
        self._report(now_s)
        for status in statuses:
            try:
                await self._process_one(status)
            except UnavailableError:
                raise
            except InputRefused as exc:
                self._skip(status, "refused", exc)
            except Exception as exc:  # noqa: BLE001 one bad status must not stop the feedback of all others
                self._skip(status, "error", exc)

    async def process_receipts(self, values: Sequence[bytes | None], now_s: float) -> None:
        """Suppress who opted out. Raises UnavailableError alone; then the batch may be processed again."""
        for value in values:
            try:
                if (found := opt_out(value)) is not None:
                    self._brake.saw(self._account(found.provider), now_s, messages=0, invalid=1)
                    await self._opt_out(found)
            except UnavailableError:
                raise
            except (ValueError, InputRefused) as exc:
                FEEDBACK_SKIPPED.labels("implausible" if isinstance(exc, ValueError) else "refused").inc()
                log.error("receipt skipped", error=str(exc))
            except Exception:
                FEEDBACK_SKIPPED.labels("error").inc()
                log.exception("receipt skipped")

    async def _opt_out(self, found: OptOut) -> None:
        said = printable(f"{found.provider}: {found.reason}")[:MAX_SOURCE]
        for tenant in found.tenants:
            bounced = Bounced(
                tenant, found.channel, found.recipient, lambda _: True, found.reason, said, found.occurred_at
            )
            outcome = await self._store.suppress_bounced(bounced)
            BOUNCED_ADDRESSES.labels(found.channel, outcome).inc()
            if outcome == "suppressed":
                log.info("address suppressed", provider=found.provider, reason=found.reason)

    def _skip(self, status: DeliveryStatus, cause: str, exc: Exception) -> None:
        FEEDBACK_SKIPPED.labels(cause).inc()
        log.error("status skipped", notification_id=status["notification_id"][:64], error=str(exc), exc_info=exc)

    async def _process_one(self, status: DeliveryStatus) -> None:
        if (dead := dead_device(status)) is not None:
            await self._process_device(dead)
        elif (bounced := bounced_address(status)) is not None:
            await self._process_address(bounced)

    async def _process_device(self, dead: DeadDevice) -> None:
        if self._account(dead.provider) in self._braked:
            DEAD_DEVICES.labels("braked").inc()
            return
        dropped = await self._store.drop_devices(dead.tenant, dead.user_id, dead.is_device)
        DEAD_DEVICES.labels("dropped" if dropped else "unknown").inc()
        if dropped:
            log.info("device dropped", notification_id=dead.notification_id, provider=dead.provider)

    async def _process_address(self, bounced: BouncedAddress) -> None:
        channel = bounced.status["channel"] or ""
        provider = bounced.status["provider"] or ""
        if self._account(provider) in self._braked and bounced.reason != UNSUBSCRIBE:
            BOUNCED_ADDRESSES.labels(channel, "braked").inc()
            return
        outcome = await self._suppress(bounced, channel, provider)
        BOUNCED_ADDRESSES.labels(channel, outcome).inc()
        if outcome == "suppressed":
            log.info(
                "address suppressed",
                notification_id=bounced.status["notification_id"],
                provider=provider,
                reason=bounced.reason,
            )

    async def _suppress(self, bounced: BouncedAddress, channel: str, provider: str) -> str:
        status = bounced.status
        said = f"{provider}: {status['detail'] or status['reason']}"[:MAX_SOURCE]
        return await self._store.suppress_bounced(
            Bounced(
                status["tenant"],
                channel,
                bounced.recipient,
                bounced.is_address,
                bounced.reason,
                printable(said),
                status["occurred_at"],
            )
        )

    def _report(self, now_s: float) -> None:
        for provider in self._brake.providers:
            holds = self._brake.holds(provider, now_s)
            DROP_BRAKE.labels(provider).set(holds)
            if holds and provider not in self._braked:
                self._braked.add(provider)
                log.error(
                    "too many recipients are called invalid, none is dropped or suppressed: is the account's setup right?",
                    provider=provider,
                )
            elif not holds and provider in self._braked:
                self._braked.discard(provider)
                log.info("invalid recipients are dropped and suppressed again", provider=provider)

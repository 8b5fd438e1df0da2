"""Provider accounts: limits, breaker and throttling of each, and which of them a message goes to.

Order is failover order: a message goes to the first account that is available, and waits for it when it has no capacity. One
that is being probed is skipped during its probes if another is available. After a definite not-sent the next account is tried
at once; a message in doubt stays with the account that may have sent it.
Every method is called on the Kafka thread. May import runtime and the protocol. Never: Kafka, a claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.clock import Monotonic, system_monotonic
from runtime.metrics import ACCOUNT_DOWN_SECONDS, ACCOUNT_STATE
from runtime.retry import asked_s
from runtime.settings import BreakerSettings
from schemas.events import ChannelMessage
from senders.breaker import PROBES, Breaker
from senders.lane_share import LANE_SHARE
from senders.limits import TokenBucket
from senders.repeats import may_be_looked_up, still_repeats
from vendors.sender import ErrorClass, InDoubt, Retry, Sender, SendResult

THROTTLES_IN_A_ROW = 3
"""One throttled answer may be about its recipient (greylisting, a device's own quota); several are about the account."""
MAX_PAUSE_S = 60.0
_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Account:
    """What is known of one account: requests in flight, its rate, whether it works."""

    def __init__(self, sender: Sender, breaker: BreakerSettings, monotonic: Monotonic = system_monotonic) -> None:
        self.sender = sender
        self.in_flight = 0
        self._give_up_s = breaker.give_up_s
        self._limit = sender.max_in_flight
        self._bucket = TokenBucket(sender.rate_per_second, monotonic) if sender.rate_per_second else None
        self._breaker, self._monotonic = Breaker(breaker, monotonic), monotonic
        self._throttled, self._throttled_at = 0, 0.0
        self._paused_until = 0.0
        self._last_code = ""
        # Set at every result: looked up once.
        self._state_gauge = ACCOUNT_STATE.labels(sender.channel, sender.name)
        self._down_gauge = ACCOUNT_DOWN_SECONDS.labels(sender.channel, sender.name)

    @property
    def trouble(self) -> AccountTrouble | None:
        """What is wrong with it, None while its breaker is closed."""
        failing_for_s, next_probe_in_s = self._breaker.failing_for_s, self._breaker.next_probe_in_s
        if failing_for_s is None or next_probe_in_s is None:
            return None
        return AccountTrouble(self.sender.name, self._last_code, failing_for_s, next_probe_in_s)

    def take_share(self, share: float, slots: int | None = None) -> None:
        """The part of the account's limits that this process may use: `share` of its rate, and `slots` requests at once.

        Without `slots` they are what is whole in `share` of all: the parts of several processes never exceed the limit.
        """
        self._limit = int(self.sender.max_in_flight * share) if slots is None else slots
        if self._bucket and self.sender.rate_per_second:
            self._bucket.set_rate(self.sender.rate_per_second * share)

    @property
    def has_slots(self) -> bool:
        """Whether this process's part of the account is a request at all."""
        return self._limit > 0

    @property
    def is_available(self) -> bool:
        """Whether a request makes sense: the breaker is not open and the account did not ask for a pause."""
        return self._breaker.state != "open" and self._monotonic() >= self._paused_until

    @property
    def is_preferred(self) -> bool:
        """Whether a message may just as well wait here: it works, and not all of its probes are under way."""
        return self.is_available and (self._breaker.state == "closed" or self.in_flight < min(PROBES, self._limit))

    def given_up(self, waited_s: float = math.inf, *, probed: bool = False) -> bool:
        """Whether a message that has waited for `waited_s` stops waiting: the account has been failing all that time.

        `probed`: whether the message's own request has just failed.
        """
        return waited_s >= self._give_up_s and self._breaker.given_up(probed=probed)

    def has_capacity(self, lane: str) -> bool:
        """Whether a message of the lane may go now."""
        if not self.is_available:
            return False
        capacity = math.ceil(self._limit * LANE_SHARE[lane])
        if self._breaker.state == "half_open":
            capacity = min(PROBES, self._limit)
        elif self._throttled >= THROTTLES_IN_A_ROW:
            capacity = 1
        return self.in_flight < capacity and (self._bucket is None or self._bucket.ready())

    def acquire(self) -> bool:
        """Take capacity for one request; whether it is a probe, made to see whether the account is back."""
        self.in_flight += 1
        if self._bucket:
            self._bucket.take()
        return self._breaker.state == "half_open"

    def release(self) -> None:
        """What was acquired has ended."""
        self.in_flight -= 1

    def observe(self, result: SendResult | None, began: float) -> None:
        """Record the result of a request that began at `began` by the clock; None if no request was made after all."""
        if result is None:
            return
        if isinstance(result, Retry | InDoubt) and not result.account_wide:
            return  # about this recipient: it says nothing of the account, good or bad
        if isinstance(result, Retry) and result.error is ErrorClass.THROTTLED:
            if began < self._throttled_at:
                return  # one of those that were under way together: a burst is throttled once
            self._throttled += 1
            self._throttled_at = self._monotonic()
            if (row := self._throttled - THROTTLES_IN_A_ROW) >= 0:
                asked = MAX_PAUSE_S if result.retry_after_s is None else asked_s(result.retry_after_s)
                self._paused_until = self._monotonic() + min(MAX_PAUSE_S, asked, 2.0 ** min(row, 6))
        else:
            self._throttled = 0
            if isinstance(result, Retry | InDoubt):
                self._last_code = result.code
            self._breaker.record(not isinstance(result, Retry | InDoubt), began)
        self.report()

    def report(self) -> None:
        """Keep the gauges true: a breaker also changes by the clock."""
        self._state_gauge.set(_STATES[self._breaker.state])
        self._down_gauge.set(self._breaker.failing_for_s or 0.0)


@dataclass(frozen=True, slots=True)
class AccountTrouble:
    """An account that does not work: its last code, and how long it has failed and its breaker stays open, in seconds."""

    name: str
    code: str
    failing_for_s: float
    next_probe_in_s: float

    @property
    def words(self) -> str:
        """For people: `sms-1: 401 20003, for 20 s`."""
        return f"{self.name}: {self.code}, for {self.failing_for_s:.0f} s"


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """`account` to use or to wait for; `given_up` when all have been failing for so long that waiting is pointless."""

    account: int
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Clearing:
    """How a doubt is cleared up: by the account of that name, not before `after_s` from now."""

    account: str
    after_s: float = 0.0
    looks_up: bool = False
    """Whether it is asked after the message, which leaves that still to be sent where it does not show it."""


class Accounts:
    """A channel's accounts in failover order."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        senders = [account.sender for account in accounts]
        self._of_first = [i for i, sender in enumerate(senders) if sender.platforms == senders[0].platforms]
        self._of_any = [i for i, sender in enumerate(senders) if sender.platforms is None]
        self._of_platform = {
            platform: [
                i for i, sender in enumerate(senders) if sender.platforms is None or platform in sender.platforms
            ]
            for platform in frozenset().union(*(sender.platforms or () for sender in senders))
        }
        self._accounts = list(accounts)

    def __getitem__(self, index: int) -> Account:
        return self._accounts[index]

    def __len__(self) -> int:
        return len(self._accounts)

    def take_share(self, share: float, slots: Callable[[int], int]) -> None:
        """This process's share of every account's limits; `slots` gives its whole part of a limit of requests at once."""
        for account in self._accounts:
            account.take_share(share, slots(account.sender.max_in_flight))

    def without_slots(self) -> list[str]:
        """Names of the accounts that this process has no part of."""
        return [account.sender.name for account in self._accounts if not account.has_slots]

    def any_capacity(self, lane: str) -> bool:
        """Whether any account could take a message of the lane now."""
        return any(account.has_capacity(lane) for account in self._accounts)

    def accounts_for(self, message: ChannelMessage) -> list[int]:
        """Indices of the accounts that reach the message's address, in failover order; [] when none does.

        An address without a platform (a direct publisher may leave it out) is one of the first account's kind.
        """
        platform = message["platform"]
        return self._of_first if platform is None else self._of_platform.get(platform, self._of_any)

    def cleared_by(self, message: ChannelMessage, provider: str | None, since: int, now: int) -> Clearing | None:
        """The account that may have the message, if it clears up a doubt of `since` (ms); None where there is none.

        `provider`: the one that may have it; None where that is unknown: it is the only one that reaches the address, then.
        """
        candidates = self.accounts_for(message)
        if provider is not None:
            candidates = [i for i in candidates if self._accounts[i].sender.name == provider]
        if len(candidates) != 1:
            return None
        sender = self._accounts[candidates[0]].sender
        if still_repeats(since, sender.repeatable_s, now):
            return Clearing(sender.name)
        if sender.reconcile_after_s is None or not may_be_looked_up(message):
            return None
        return Clearing(sender.name, max(0.0, sender.reconcile_after_s - (now - since) / 1000), looks_up=True)

    def select_account(
        self, message: ChannelMessage, waited_s: float = math.inf, *, repeats: bool = False
    ) -> AccountChoice | None:
        """The account for a message that has waited for `waited_s`, None when no account reaches it.

        `repeats`: a doubt is repeated, which the account that the message names does alone.
        """
        indices = self._in_order(message, repeats)
        if not indices:
            return None
        for i in indices:
            if self._accounts[i].is_preferred:
                return AccountChoice(i)
        working = [i for i in indices if self._accounts[i].is_available]
        given_up = all(self._accounts[i].given_up(waited_s) for i in indices)
        return AccountChoice((working or indices)[0], given_up)

    def troubles(self, message: ChannelMessage) -> list[AccountTrouble]:
        """What is wrong with each account that could send the message."""
        found = (self._accounts[i].trouble for i in self.accounts_for(message))
        return [trouble for trouble in found if trouble is not None]

    def probed_in_vain(self, message: ChannelMessage, waited_s: float, *, repeats: bool = False) -> bool:
        """Whether a message whose probe has just failed stops waiting, `waited_s` after it was routed: no account of it works."""
        return all(self._accounts[i].given_up(waited_s, probed=True) for i in self._in_order(message, repeats))

    def _in_order(self, message: ChannelMessage, repeats: bool) -> list[int]:
        """`accounts_for`, with the account that the message names first, or alone if that one may have sent it."""
        indices = self.accounts_for(message)
        if (provider := message["provider"]) is None:
            return indices
        return self._first(provider, indices, alone=repeats or message["possible_duplicate"])

    def _first(self, provider: str, indices: list[int], *, alone: bool) -> list[int]:
        """The indices with that account, where it is among them, at their head or alone."""
        named = [i for i in indices if self._accounts[i].sender.name == provider]
        if not named or alone:
            return named or indices
        first = indices.index(named[0])
        return indices[first:] + indices[:first]

    def next_after(self, message: ChannelMessage, index: int) -> str | None:
        """The account that takes over after a definite not-sent by `index`; None when the round is over."""
        if message["possible_duplicate"]:
            return None
        later = [i for i in self.accounts_for(message) if i > index and self._accounts[i].is_available]
        return self._accounts[later[0]].sender.name if later else None

    def report(self) -> None:
        for account in self._accounts:
            account.report()

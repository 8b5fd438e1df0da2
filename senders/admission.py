"""Who may be sent now: the window, the lanes' shares of it, the accounts' limits, and a bound per recipient; pure.

A message that may not be sent yet is parked: nothing is claimed for it, so it is never in doubt, and the messages behind it
on its partition continue. One slow or throttled account or recipient therefore delays only its own messages.
Every method is called on the Kafka thread. May import accounts. Never: Kafka, a claim, a provider request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from runtime.kafka.client import Partition
from runtime.records import ConsumerRecord
from schemas.events import LANES, ChannelMessage
from senders.accounts import Accounts
from senders.lane_share import LANE_SHARE

PER_RECIPIENT = 8
"""In flight per address: an address that hangs keeps this many slots of an account and no more."""
LOOKAHEAD = 2_000
"""Parked by a lane while no account has any capacity: enough to settle messages that expire while they wait."""
MAX_PARKED = 20_000
"""Parked by a lane while another account has room; what they hold is bounded by senders/read_ahead.py."""

WaitKey = tuple[str, int | str, str]
"""(account | recipient, which one, lane)"""


@dataclass(slots=True, eq=False)
class QueuedMessage:
    """A dispatch record that this process may send once."""

    partition: Partition
    record: ConsumerRecord
    message: ChannelMessage
    waits_since: int = 0
    """When it arrived on its topic, or in this process if the topic's time is not plausible; milliseconds since 1970."""
    doubt_since: int | None = None
    """Since when it is in a doubt that this attempt repeats (senders/repeats.py); milliseconds since 1970."""
    account: int = -1
    probe: bool = False
    """Whether the account was half-open when this was let through."""
    answered: bool = False
    """Whether its request has ended, and its account and recipient are free."""
    wait_key: WaitKey | None = None
    """What it waits for while it is parked."""

    @property
    def parked(self) -> bool:
        return self.wait_key is not None

    @property
    def repeats(self) -> bool:
        """Whether it goes to the account that may have it, and to no other."""
        return self.doubt_since is not None


class Admission:
    """Admits entries one by one; `answer` each when its request has ended, `release` it when that is recorded."""

    def __init__(self, accounts: Accounts, window: int) -> None:
        self.accounts = accounts
        self._window = window
        self.in_flight: dict[str, QueuedMessage] = {}
        self._by_lane = dict.fromkeys(LANES, 0)
        self._by_recipient: dict[str, int] = {}
        self._queues: dict[WaitKey, OrderedDict[str, QueuedMessage]] = {}
        self._parked: dict[str, QueuedMessage] = {}
        self._parked_by_lane = dict.fromkeys(LANES, 0)
        # One account may not fill the window while others could use it.
        self._account_window = window if len(accounts) < 2 else window * 3 // 4

    def knows(self, message_id: str) -> bool:
        """Whether a copy of the message is in flight or parked."""
        return message_id in self.in_flight or message_id in self._parked

    @property
    def parked(self) -> Collection[QueuedMessage]:
        """What waits."""
        return self._parked.values()

    def has_capacity(self, lane: str) -> bool:
        """Whether the window has room for one more of the lane."""
        return len(self.in_flight) < self._window and self._by_lane[lane] < self._window * LANE_SHARE[lane]

    def may_look_ahead(self, lane: str) -> bool:
        """Whether reading on in a lane makes sense, whatever the others have parked."""
        limit = MAX_PARKED if self.accounts.any_capacity(lane) else LOOKAHEAD
        return self._parked_by_lane[lane] < limit * LANE_SHARE[lane]

    def try_admit(self, queued: QueuedMessage) -> bool:
        """True when the entry may be sent, now in flight; else it is parked. Ask `accounts.select_account` first that one reaches it."""
        wait_key = self._admit(queued)
        if wait_key is None:
            return True
        self._park(queued, wait_key)
        return False

    def admit_parked(self, lane: str) -> Iterator[QueuedMessage]:
        """Parked entries of a lane that may go now, each in flight when it is given."""
        for wait_key in [wait_key for wait_key in self._queues if wait_key[2] == lane]:
            while (queue := self._queues.get(wait_key)) and self.has_capacity(lane):
                queued = next(iter(queue.values()))
                wanted = self._admit(queued)
                if wanted == wait_key:
                    break
                self.remove(queued)
                if wanted is None:
                    yield queued
                else:
                    self._park(queued, wanted)

    def _admit(self, queued: QueuedMessage) -> WaitKey | None:
        """Take the entry in flight, or say what it has to wait for."""
        lane = queued.message["lane"]
        address = queued.message["address"]
        choice = self.accounts.select_account(queued.message, repeats=queued.repeats)
        if choice is None:
            raise ValueError("no account reaches the address")
        if self._by_recipient.get(address, 0) >= PER_RECIPIENT:
            return "recipient", address, lane
        account = self.accounts[choice.account]
        if not account.has_capacity(lane) or account.in_flight >= self._account_window:
            return "account", choice.account, lane
        queued.probe = account.acquire()
        queued.account = choice.account
        self._by_recipient[address] = self._by_recipient.get(address, 0) + 1
        self._by_lane[lane] += 1
        self.in_flight[queued.message["message_id"]] = queued
        return None

    def _park(self, queued: QueuedMessage, wait_key: WaitKey) -> None:
        queued.wait_key = wait_key
        message_id = queued.message["message_id"]
        self._parked[message_id] = queued
        self._parked_by_lane[queued.message["lane"]] += 1
        self._queues.setdefault(wait_key, OrderedDict())[message_id] = queued

    def remove(self, queued: QueuedMessage) -> None:
        """Forget that an entry is parked: it goes, or was settled without a request."""
        wait_key = queued.wait_key
        message_id = queued.message["message_id"]
        if wait_key is None:
            raise ValueError("the entry is not parked")
        queued.wait_key = None
        del self._parked[message_id]
        self._parked_by_lane[queued.message["lane"]] -= 1
        queue = self._queues[wait_key]
        del queue[message_id]
        if not queue:
            del self._queues[wait_key]

    def answer(self, queued: QueuedMessage) -> None:
        """Its request has ended: the account and the recipient can take another, the window when this one is recorded."""
        if queued.answered:
            return
        queued.answered = True
        address = queued.message["address"]
        left = self._by_recipient[address] - 1
        if left:
            self._by_recipient[address] = left
        else:
            del self._by_recipient[address]
        self.accounts[queued.account].release()

    def release(self, queued: QueuedMessage) -> None:
        """An entry in flight has ended and is recorded."""
        self.answer(queued)
        message = queued.message
        del self.in_flight[message["message_id"]]
        self._by_lane[message["lane"]] -= 1

    def clear_parked(self) -> None:
        """The partitions belong to another owner now, and so do their parked messages."""
        for queued in self._parked.values():
            queued.wait_key = None
        self._parked.clear()
        self._parked_by_lane = dict.fromkeys(LANES, 0)
        self._queues.clear()

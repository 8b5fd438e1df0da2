"""The order that keeps a sender's promises: claim, send, facts, ledger, release; and what each break of it leaves behind.

killed before | the provider has it | what the next owner does
claim         | no                  | sends it
send          | no                  | in doubt: sends it flagged, or ends it `unknown`
facts         | yes                 | the same
ledger        | yes                 | the same; the fact that it was sent stays true
release       | yes                 | drops it: the ledger knows it
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast, get_args
from uuid import uuid4

import aiohttp
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kafka.consumer import FencedError
from runtime.settings import BreakerSettings, SenderSettings
from schemas.events import ChannelMessage
from schemas.topics import dispatch_topic, ledger_topic
from senders.consumers import sender_group
from senders.worker import COMMIT_TIMEOUT_S
from tests.faults.mutants import MUTANTS
from tests.support.made import message as plain_message
from tests.support.promises import broken_promises
from tests.support.workers import Exited, Killed, Step, World
from vendors.http import HttpTransport, ResponseLostError
from vendors.sender import NOT_FOUND, ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

STEPS: tuple[Step, ...] = get_args(Step)
HANG = None
"""A provider's answer: none yet."""


def made(**fields: Any) -> ChannelMessage:
    ids = {"message_id": str(uuid4()), "notification_id": str(uuid4())}
    return plain_message(**{**ids, "address": f"{ids['message_id']}@example.org", **fields})


class Provider:
    """Answers as it is told, and remembers what it took."""

    def __init__(self, answer: Callable[[ChannelMessage], SendResult | None] = lambda _: Sent("1")) -> None:
        self.answer = answer
        self.accepted: list[str] = []

    def __call__(self, message: ChannelMessage) -> SendResult | None:
        result = self.answer(message)
        if isinstance(result, Sent | InDoubt):
            self.accepted.append(message["message_id"])
        return result


def hang(_: ChannelMessage) -> None:
    return HANG


def killed(world: World, step: Step) -> None:
    """Let the process come to a step and no further, and another take over."""
    world.kill_before(step)
    with pytest.raises(Killed, match=step):
        world.settle()
    world.take_over()


def finish(world: World) -> None:
    """Let everything that was retried come to its end."""
    world.settle()
    while world.timers:
        world.next_timer()
    world.settle(5)  # what the last of them brought back is released as well


def reported(world: World, message: ChannelMessage) -> list[tuple[str, bool]]:
    """(state, whether flagged) of a message's statuses, in their order."""
    own = [status for status in world.statuses() if status["message_id"] == message["message_id"]]
    return [(status["state"], status["possible_duplicate"]) for status in own]


# -- the order --------------------------------------------------------------------------------------------------------


def test_message_is_claimed_sent_told_remembered_and_released_in_this_order() -> None:
    world = World(Provider())
    world.send(made())
    world.settle()
    assert world.steps == list(STEPS)


def test_messages_of_one_turn_share_each_step() -> None:
    world = World(Provider())
    for n in range(8):
        world.send(made(), partition=n % 4)
    world.settle()
    assert world.steps == list(STEPS)


def test_release_waits_for_the_ledger_of_every_message_below_it() -> None:
    provider = Provider(hang)
    world = World(provider)
    world.send(made(address="first"))
    world.settle(2)
    provider.answer = lambda message: HANG if message["address"] == "first" else Sent("1")
    world.send(made())
    world.settle()
    assert world.committed() == (0, "2:2"), "the first is claimed, the second finished above it"
    provider.answer = lambda _: Sent("1")
    world.settle()
    assert world.committed() == (2, "2:0")


@pytest.mark.parametrize("result", [Retry(ErrorClass.TRANSIENT, "451"), InDoubt("timeout")], ids=["retry", "in doubt"])
def test_retry_is_in_kafka_before_the_ledger_knows_of_its_attempt(result: SendResult) -> None:
    world = World(Provider(lambda _: result))
    world.send(made())
    world.kill_before("ledger")
    with pytest.raises(Killed):
        world.settle()
    assert world.timers, "the timer that brings it back"
    assert world.states() == {"retrying": 1}
    assert not world.broker.records(ledger_topic("email", "normal"))


def test_what_ends_without_a_request_is_told_and_remembered_before_it_is_released() -> None:
    world = World(Provider())
    world.send(made(attempt=0))
    world.settle()
    assert world.steps == ["facts", "ledger", "claim"], "the commit that claims it releases it as well"
    assert world.committed() == (1, "1:0")
    assert world.states() == {"rejected": 1}


# -- takeover ---------------------------------------------------------------------------------------------------------

AGAIN = [("retrying", True), ("sent", True)]
ROWS: dict[tuple[Step, str], tuple[int, list[tuple[str, bool]]]] = {
    ("claim", "at_least_once"): (1, [("sent", False)]),
    ("claim", "at_most_once"): (1, [("sent", False)]),
    ("send", "at_least_once"): (1, AGAIN),
    ("send", "at_most_once"): (0, [("unknown", False)]),
    ("facts", "at_least_once"): (2, AGAIN),
    ("facts", "at_most_once"): (1, [("unknown", False)]),
    ("ledger", "at_least_once"): (2, [("sent", False), *AGAIN]),
    ("ledger", "at_most_once"): (1, [("sent", False), ("unknown", False)]),
    ("release", "at_least_once"): (1, [("sent", False)]),
    ("release", "at_most_once"): (1, [("sent", False)]),
}


@pytest.mark.parametrize(("step", "delivery"), ROWS)
def test_owner_killed_before_a_step_leaves_what_the_table_says(step: Step, delivery: str) -> None:
    provider = Provider()
    world, message = World(provider), made(delivery=delivery)
    world.send(message)
    killed(world, step)
    finish(world)
    assert (len(provider.accepted), reported(world, message)) == ROWS[step, delivery]
    assert world.undone() == 0


def test_finished_message_above_one_in_doubt_is_passed_by_the_claim_alone() -> None:
    provider = Provider(lambda message: HANG if message["address"] == "first" else Sent("1"))
    world = World(provider)
    first, second = made(address="first"), made()
    world.send(first)
    world.send(second)
    world.settle()
    assert world.committed() == (0, "2:2")
    ledger = (ledger_topic("email", "normal"), 0)
    world.broker.drop(ledger, range(world.broker.log(ledger).end))  # past its seven days, say
    provider.answer = lambda _: Sent("1")
    world.take_over()
    finish(world)
    assert reported(world, second) == [("sent", False)]
    assert reported(world, first) == AGAIN
    assert provider.accepted.count(second["message_id"]) == 1


def test_waiting_message_is_never_in_doubt() -> None:
    provider = Provider(lambda message: HANG if message["platform"] == "fcm" else Sent("1"))
    accounts = (("fcm", frozenset({"fcm"})), ("apns", frozenset({"apns"})))
    world = World(provider, channel="push", accounts=accounts, limit=1)
    sending, waiting, done = (made(channel="push", platform=platform) for platform in ("fcm", "fcm", "apns"))
    for message in (sending, waiting, done):
        world.send(message)
    world.settle()
    assert world.committed() == (0, "3:4:2"), "three looked at, the last finished, the one before it waiting"
    provider.answer = lambda _: Sent("1")
    world.take_over()
    finish(world)
    assert reported(world, sending) == AGAIN
    assert reported(world, waiting) == [("sent", False)]
    assert reported(world, done) == [("sent", False)]


def test_message_in_doubt_stays_so_through_a_second_takeover() -> None:
    provider = Provider()
    world, message = World(provider), made()
    world.send(message)
    killed(world, "facts")
    killed(world, "facts")
    finish(world)
    assert reported(world, message) == AGAIN
    assert provider.accepted == [message["message_id"]] * 2


def test_takeover_without_a_commit_begins_at_the_beginning() -> None:
    provider = Provider()
    world = World(provider)
    world.send(made())
    killed(world, "claim")
    assert world.committed() == (-1, "")
    world.settle()
    assert (len(provider.accepted), world.committed()) == (1, (1, "1:0"))


# -- doubts that are looked up -----------------------------------------------------------------------------------------

SHOWN_S = 5.0
FOUND, UNSHOWN = Sent("theirs"), NOT_FOUND
UNANSWERED = Retry(ErrorClass.TRANSIENT, "look-up: 503", account_wide=False)


def doubtful(*, shown: SendResult | None, **more: Any) -> World:
    """Senders whose provider takes each message, loses its first answer, and says `shown` to each look-up."""
    answers: dict[bool, SendResult] = {True: InDoubt("EOF"), False: Sent("1")}
    asked: set[str] = set()

    def answer(message: ChannelMessage) -> SendResult | None:
        first = message["message_id"] not in asked
        asked.add(message["message_id"])
        return answers[first]

    return World(answer, reconcile_after_s=SHOWN_S, shown=lambda _: shown, **more)


def test_doubt_that_its_provider_shows_is_sent_once_and_unflagged() -> None:
    world, message = doubtful(shown=FOUND), made()
    world.send(message)
    finish(world)
    assert reported(world, message) == [("retrying", False), ("sent", False)]
    assert (len(world.requests), len(world.look_ups)) == (1, 1)
    assert world.look_ups[0][0] >= world.requests[0][0] + SHOWN_S, "it was given the time to show it"
    assert world.statuses("sent")[0]["provider_message_id"] == "theirs"


def test_doubt_that_its_provider_does_not_show_is_sent_again_flagged() -> None:
    world, message = doubtful(shown=UNSHOWN), made()
    world.send(message)
    finish(world)
    assert reported(world, message) == [("retrying", False), ("retrying", True), ("sent", True)]
    assert (len(world.requests), len(world.look_ups)) == (2, 1)


def test_look_up_that_fails_is_tried_again_and_leaves_a_retry_for_the_message() -> None:
    world, message = doubtful(shown=UNANSWERED), made()
    world.send(message)
    finish(world)
    retries = world.settings.sender.max_retries
    assert (len(world.requests), len(world.look_ups)) == (2, retries - 1)
    assert reported(world, message)[-2:] == [("retrying", True), ("sent", True)]


@pytest.mark.parametrize(("max_retries", "look_ups"), [(1, 0), (2, 1)])
def test_look_up_is_made_only_where_a_retry_is_left_to_send_the_message_again(max_retries: int, look_ups: int) -> None:
    world, message = doubtful(shown=UNSHOWN, sender=SenderSettings(max_retries=max_retries)), made()
    world.send(message)
    finish(world)
    assert (len(world.requests), len(world.look_ups)) == (2, look_ups)
    assert reported(world, message)[-1] == ("sent", True)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [({"lane": "critical"}, AGAIN), ({"delivery": "at_most_once"}, [("unknown", False)])],
    ids=["a login code does not wait", "what is never sent again is settled"],
)
def test_doubt_of_a_message_that_may_not_wait_is_not_looked_up(
    fields: dict[str, Any], ends: list[tuple[str, bool]]
) -> None:
    world, message = doubtful(shown=FOUND), made(**fields)
    world.send(message)
    finish(world)
    assert (reported(world, message), world.look_ups) == (ends, [])


def test_message_of_a_killed_owner_is_looked_up_where_one_account_reaches_it() -> None:
    world, message = World(Provider(), reconcile_after_s=SHOWN_S, shown=lambda _: FOUND), made()
    world.send(message)
    killed(world, "facts")
    finish(world)
    assert reported(world, message) == [("retrying", False), ("sent", False)]
    assert (len(world.requests), len(world.look_ups)) == (1, 1)


def test_look_up_of_a_killed_owner_is_made_again_unflagged() -> None:
    world, message = doubtful(shown=FOUND), made()
    world.send(message)
    world.settle(5)
    world.kill_before("facts")
    with pytest.raises(Killed):
        world.next_timer()
    world.take_over()
    finish(world)
    assert reported(world, message) == [("retrying", False), ("retrying", False), ("sent", False)]
    assert (len(world.requests), len(world.look_ups)) == (1, 2)


def test_provider_that_refused_what_it_has_ends_the_message_without_another_request() -> None:
    world, message = doubtful(shown=Rejected(ErrorClass.PERMANENT_RECIPIENT, "BLOCKED", opted_out=True)), made()
    world.send(message)
    finish(world)
    assert (reported(world, message)[-1], len(world.requests)) == (("bounced", False), 1)


def test_look_ups_open_no_breaker() -> None:
    world = doubtful(shown=UNANSWERED, breaker=BreakerSettings(failures=2))
    for _ in range(4):
        world.send(made())
        finish(world)
    assert world.process.accounts[0].trouble is None


# -- doubts that are repeated ------------------------------------------------------------------------------------------

DAY_S = 86_400.0


class Keyed(Provider):
    """A vendor that knows a message's id, and makes nothing of one that comes again."""

    def __call__(self, message: ChannelMessage) -> SendResult | None:
        result = self.answer(message)
        if isinstance(result, Sent | InDoubt) and message["message_id"] not in self.accepted:
            self.accepted.append(message["message_id"])
        return result


REPEATED = [("retrying", False), ("sent", False)]


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
@pytest.mark.parametrize("step", ["send", "facts"])
def test_message_of_a_killed_owner_is_repeated_unflagged_by_the_only_account_that_reaches_it(
    step: Step, delivery: str
) -> None:
    provider = Keyed()
    world, message = World(provider, repeatable_s=30 * DAY_S), made(delivery=delivery)
    world.send(message)
    killed(world, step)
    finish(world)
    assert (provider.accepted, reported(world, message)) == ([message["message_id"]], REPEATED)
    assert len(world.requests) == (1 if step == "send" else 2)


@pytest.mark.parametrize(("delivery", "ends"), [("at_least_once", AGAIN), ("at_most_once", [("unknown", False)])])
def test_message_of_a_killed_owner_is_a_plain_doubt_where_several_accounts_reach_it(
    delivery: str, ends: list[tuple[str, bool]]
) -> None:
    accounts = (("one", None), ("two", None))
    world, message = World(Keyed(), repeatable_s=30 * DAY_S, accounts=accounts), made(delivery=delivery)
    world.send(message)
    killed(world, "send")
    finish(world)
    assert reported(world, message) == ends


def test_lost_answer_is_repeated_by_its_account_alone_through_refusals_and_a_takeover() -> None:
    not_sent = Retry(ErrorClass.TRANSIENT, "no connection")
    answers = iter((InDoubt("timeout"), not_sent, InDoubt("timeout"), Sent("1")))
    provider = Keyed(lambda _: next(answers))
    world = World(provider, repeatable_s=30 * DAY_S, accounts=(("one", None), ("two", None)))
    message = made(delivery="at_most_once")
    world.send(message)
    world.settle(5)
    world.next_timer()
    world.kill_before("send")
    with pytest.raises(Killed):
        world.next_timer()
    world.take_over()
    finish(world)
    assert reported(world, message) == [("retrying", False)] * 4 + [("sent", False)]
    assert [asked["provider"] for _, asked in world.requests] == [None, "one", "one", "one"]


@pytest.mark.parametrize(("delivery", "ends"), [("at_least_once", AGAIN), ("at_most_once", [("unknown", False)])])
def test_doubt_older_than_its_vendor_remembers_is_like_any_other(delivery: str, ends: list[tuple[str, bool]]) -> None:
    provider = Keyed(lambda _: InDoubt("timeout"))
    world, message = World(provider, repeatable_s=30 * DAY_S), made(delivery=delivery)
    world.send(message)
    world.settle(5)
    world.now += 30 * DAY_S
    provider.answer = lambda _: Sent("1")
    finish(world)
    assert reported(world, message) == [("retrying", False), *ends]


@pytest.mark.parametrize(
    ("repeatable_s", "expires_in_ms"), [(60, None), (30 * DAY_S, 30_000)], ids=["forgotten", "expired"]
)
def test_repetition_that_waits_for_its_account_too_long_ends_unknown(
    repeatable_s: float, expires_in_ms: int | None
) -> None:
    provider = Keyed(lambda _: InDoubt("timeout"))
    world = World(provider, repeatable_s=repeatable_s, limit=1)
    expires_at = expires_in_ms and world.wall + expires_in_ms
    message, other = made(delivery="at_most_once", expires_at=expires_at), made()
    world.send(message)
    world.settle(5)
    provider.answer = hang
    world.send(other)
    world.settle(3)
    world.next_timer()
    assert reported(world, message) == [("retrying", False)], "it waits for the account's only slot"
    world.now += 60
    world.settle()
    assert reported(world, message) == [("retrying", False), ("unknown", False)]


@pytest.mark.parametrize(
    ("delivery", "ends"), [("at_least_once", ("failed", True)), ("at_most_once", ("unknown", False))]
)
def test_repetition_that_comes_to_nothing_leaves_the_doubt(delivery: str, ends: tuple[str, bool]) -> None:
    answers = iter([InDoubt("timeout")])
    provider = Keyed(lambda _: next(answers, Retry(ErrorClass.ACCOUNT, "401", account_wide=False)))
    world, message = World(provider, repeatable_s=30 * DAY_S), made(delivery=delivery)
    world.send(message)
    finish(world)
    assert reported(world, message)[-1] == ends
    assert world.states()["retrying"] == 5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["at_least_once", "at_most_once"]), min_size=1, max_size=6),
    st.lists(st.sampled_from(STEPS) | st.none(), max_size=4),
    st.integers(0, 1_000),
)
def test_vendor_that_knows_its_messages_has_each_once_and_unflagged(
    deliveries: list[str], kills: list[Step | None], seed: int
) -> None:
    rng = random.Random(seed)
    answers = (Sent("1"), InDoubt("timeout"), Retry(ErrorClass.TRANSIENT, "451"), HANG)
    provider = Keyed(lambda _: rng.choice(answers))
    world = World(provider, repeatable_s=30 * DAY_S)
    messages = [made(delivery=delivery) for delivery in deliveries]
    for n, message in enumerate(messages):
        world.send(message, partition=n % 2)
    for step in kills:
        if step:
            world.kill_before(step)
        try:
            world.settle(rng.randrange(1, 5))
        except Killed:
            world.take_over()
    world.before.clear()
    provider.answer = lambda _: Sent("1")
    finish(world)
    assert sorted(provider.accepted) == sorted(message["message_id"] for message in messages)
    assert {(s["state"], s["possible_duplicate"]) for s in world.statuses()} <= {("retrying", False), ("sent", False)}


# -- fences -----------------------------------------------------------------------------------------------------------


def test_owner_that_was_replaced_before_its_claim_sends_nothing_and_exits() -> None:
    provider = Provider()
    world = World(provider)
    world.send(made())
    old = world.process
    world.before["claim"] = lambda: world.broker.expire(old.consumer)
    with pytest.raises(Exited, match="no longer the owner"):
        old.worker.run()
    assert (provider.accepted, world.committed()) == ([], (-1, ""))
    world.take_over()
    world.settle()
    assert len(provider.accepted) == 1


def test_owner_that_was_replaced_tells_what_it_has_sent_before_it_goes() -> None:
    provider = Provider(hang)
    world, sent, new = World(provider), made(), made()
    world.send(sent)
    world.settle(2)
    world.send(new)

    def replaced() -> None:
        provider.answer = lambda _: Sent("1")
        world.process.answer_what_can_be()
        world.broker.expire(world.process.consumer)

    world.before["claim"] = replaced
    with pytest.raises(FencedError):
        world.settle()
    assert reported(world, sent) == [("sent", False)]
    assert reported(world, new) == []
    assert world.committed() == (0, "1:0"), "and nothing of it is released by who may not"
    world.take_over()
    finish(world)
    assert reported(world, sent) == [("sent", False)], "the ledger has it"
    assert provider.accepted == [sent["message_id"], new["message_id"]]


def test_owner_whose_partitions_went_to_another_while_it_was_sending_exits() -> None:
    world = World(Provider(hang))
    world.send(made())
    world.settle(2)
    old = world.take_over()
    with pytest.raises(Exited, match="while messages were in flight"):
        old.worker.run_once()


def test_owner_that_lost_its_partitions_with_nothing_in_flight_goes_on_as_a_member() -> None:
    provider = Provider()
    world = World(provider)
    world.send(made())
    world.settle()
    world.broker.expire(world.process.consumer, stopped=True)
    world.send(made())
    world.settle()
    assert (len(provider.accepted), world.undone()) == (2, 0)


def unconfirmed(world: World, times: int, *, applied: bool = False) -> list[int]:
    """So many commits go without an answer; the first may have been taken all the same. How many are left, in a list."""
    noted = world.broker.before_commit
    left = [times]

    def before_commit(offsets: Any) -> None:
        if applied and left[0] == times:
            world.broker.group(sender_group("email")).committed.update(offsets)
        if left[0]:
            left[0] -= 1
            raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT))
        noted(offsets)

    world.broker.before_commit = before_commit
    return left


@pytest.mark.parametrize("applied", [False, True])
def test_claim_that_is_not_confirmed_is_committed_again_before_anything_is_sent(applied: bool) -> None:
    provider = Provider()
    world, message = World(provider), made()
    world.send(message)
    left, seen = unconfirmed(world, 3, applied=applied), list[int]()
    world.before["send"] = lambda: seen.extend(left)
    world.settle()
    assert seen == [0]
    assert reported(world, message) == [("sent", False)]


def test_claim_that_is_never_confirmed_ends_the_process_unsent() -> None:
    provider = Provider()
    world = World(provider)
    world.send(made())
    unconfirmed(world, 1_000_000)
    began = world.now
    with pytest.raises(Exited, match="could not be committed"):
        world.settle()
    assert COMMIT_TIMEOUT_S < world.now - began < COMMIT_TIMEOUT_S + 5
    assert provider.accepted == []


# -- the drain --------------------------------------------------------------------------------------------------------


def answers_after(world: World, seconds: float) -> Callable[[ChannelMessage], SendResult | None]:
    at = world.now + seconds
    return lambda _: Sent("1") if world.now >= at else HANG


def test_partitions_are_given_back_when_what_is_in_flight_is_recorded_and_released() -> None:
    provider = Provider(hang)
    world, message = World(provider), made()
    world.send(message, partition=3)
    world.settle(2)
    other = world.broker.consumer(sender_group("email"))
    other.subscribe([dispatch_topic("email", "normal")])
    provider.answer = answers_after(world, 3)
    world.turn()
    assert world.steps[:5] == list(STEPS), "all within the call that gives them back"
    assert other.consume(1, 0) == []
    assert other.position((dispatch_topic("email", "normal"), 3)) == 1
    assert world.committed(3) == (1, "1:0")
    assert reported(world, message) == [("sent", False)]


def test_stop_sends_nothing_more_and_waits_for_what_is_in_flight() -> None:
    provider = Provider()
    world = World(provider, limit=1)
    first, second = made(), made()
    world.send(first)
    world.send(second)
    provider.answer = answers_after(world, 3)
    world.before["send"] = world.process.context.stopping.set
    world.worker.run()
    assert provider.accepted == [first["message_id"]]
    assert world.committed() == (1, "1:0")
    assert world.ledger.positions() != {}, "the next start reads the ledger on from its end"
    world.take_over()
    world.settle()
    assert reported(world, second) == [("sent", False)], "it waited, and was never in doubt"


def test_what_does_not_end_in_time_stays_claimed_and_in_doubt() -> None:
    provider = Provider(hang)
    world = World(provider, sender=SenderSettings(drain_timeout_s=5))
    world.send(message := made())
    world.before["send"] = world.process.context.stopping.set
    began = world.now
    with pytest.raises(Exited, match="1 messages did not end in time"):
        world.worker.run()
    assert 5 <= world.now - began < 7
    assert world.committed() == (0, "1:0")
    provider.answer = lambda _: Sent("1")
    world.take_over()
    finish(world)
    assert reported(world, message) == AGAIN


# -- every promise, wherever it ends ----------------------------------------------------------------------------------


class HttpAnswers:
    """A provider behind the real HTTP client, which takes every message and loses the answer when it is told to."""

    def __init__(self, loses: bool) -> None:
        self.accepted: list[str] = []
        self._loses = loses
        self._transport = HttpTransport(1, 1)
        self._transport.start(cast(aiohttp.ClientSession, self))

    def request(self, method: str, url: str, *, data: Any, **_: Any) -> Any:
        data.begun = True
        self.accepted.append(data.decode())
        if self._loses:
            raise aiohttp.ServerDisconnectedError
        return _Taken()

    def __call__(self, message: ChannelMessage) -> SendResult:
        try:
            asyncio.run(self._transport.post("http://provider", headers={}, body=message["message_id"].encode()))
        except ResponseLostError:
            return InDoubt("answer lost")
        return Sent("1")


class _Taken:
    """An answer of 201 without a body."""

    status, headers = 201, dict[str, str]()

    async def __aenter__(self) -> _Taken:
        self.content = self
        return self

    async def __aexit__(self, *_: object) -> None: ...
    async def read(self, _: int) -> bytes:
        return b""


def check(world: World, accepted: list[str], messages: list[ChannelMessage]) -> set[str]:
    """The promises that do not hold."""
    events: dict[str, list[dict[str, Any]]] = {}
    for status in world.statuses():
        events.setdefault(status["notification_id"], []).append(status)
    ids = {message["notification_id"]: [message["message_id"]] for message in messages}
    return broken_promises(events, accepted, ids)


def violations(step: Step | None, delivery: str, loses: bool) -> set[str]:
    """What a sender breaks that is killed once before a step, or not at all."""
    provider = HttpAnswers(loses)
    world, messages = World(provider), [made(delivery=delivery) for _ in range(3)]
    for message in messages:
        world.send(message)
    if step:
        world.kill_before(step)
    try:
        world.settle(4)
    except Killed:
        world.take_over()
    for _ in range(8):  # what is lost for ever is given up after so many retries
        world.settle(4)
        if world.timers:
            world.next_timer()
    return check(world, provider.accepted, messages)


@pytest.mark.parametrize(
    ("name", "caught"),
    [
        ("unchanged", set()),
        ("commit_before_send", {"lost"}),
        ("commit_past_in_flight", {"lost"}),
        ("missing_outcome", {"never told"}),
        ("ledger_before_facts", {"never told"}),
        ("retry_in_the_client", {"at most once came twice", "twice without a flag"}),
    ],
)
def test_a_broken_promise_is_caught(name: str, caught: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch.setattr)
    found = violations(None, "at_most_once", True)
    for step in (None, *STEPS):
        found |= violations(step, "at_least_once", False)
    assert found >= caught
    assert bool(found) == bool(caught)


def test_every_mutant_is_tried_here() -> None:
    (mark,) = test_a_broken_promise_is_caught.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in mark.args[1]} == set(MUTANTS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["at_least_once", "at_most_once"]), min_size=1, max_size=6),
    st.lists(st.sampled_from(STEPS) | st.none(), max_size=5),
    st.integers(0, 1_000),
)
def test_no_promise_breaks_wherever_processes_are_killed_and_whatever_is_answered(
    deliveries: list[str], kills: list[Step | None], seed: int
) -> None:
    rng = random.Random(seed)
    answers = (Sent("1"), InDoubt("timeout"), Retry(ErrorClass.TRANSIENT, "451"), HANG)
    provider = Provider(lambda _: rng.choice(answers))
    world = World(provider)
    messages = [made(delivery=delivery) for delivery in deliveries]
    for n, message in enumerate(messages):
        world.send(message, partition=n % 2)
    for step in kills:
        if step:
            world.kill_before(step)
        try:
            world.settle(rng.randrange(1, 5))
        except Killed:
            world.take_over()
    world.before.clear()
    provider.answer = lambda _: Sent("1")
    finish(world)
    assert check(world, provider.accepted, messages) == set()
    assert world.undone() == 0

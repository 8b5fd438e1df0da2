"""Router, timers and senders as processes on a real broker; the simulator's log is the oracle, never our own status."""

from __future__ import annotations

import signal
import time
from uuid import uuid4

import pytest

from runtime.ids import notification_id
from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.topics import DEAD_LETTERS, RECEIPTS, STATUS, catalogue, dispatch_topic
from tests.integration.conftest import until
from tests.integration.pipeline import World, profiles, requests, world
from tests.support.made import NOW
from tests.support.made import message as message_of

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("engine", ["faust", "loop"])
def test_three_channels_are_delivered_once_each(world: World, engine: str) -> None:
    world.publish(profiles(engine, 50))
    for arguments in (
        ("router", "--lane", "normal"),
        ("sender", "--channel", "email"),
        ("sender", "--channel", "sms"),
        ("sender", "--channel", "push"),
        ("timers",),
    ):
        world.run(*arguments, HELIOGRAPH_ROUTER__ENGINE=engine)
    records, made = requests(engine, 50, channels=["email", "sms", "push"])
    world.publish(records + records)  # everything twice: the ledger drops the second
    until(lambda: len(world.sent_messages(made)) == 150, what="150 messages sent")
    world.broker.stop_roles()
    assert world.accepted("smtp", engine) == {f"{engine}{n}@example.org": 1 for n in range(50)}
    assert world.accepted("fcm", engine) == {f"{engine}{n}": 1 for n in range(50)}
    assert {e["message_id"] for e in world.get("/accepted?kind=twilio&limit=100000")} >= {
        s["message_id"]
        for events in world.statuses(made).values()
        for s in events
        if s["state"] == "sent" and s["channel"] == "sms"
    }


@pytest.mark.parametrize("engine", ["faust", "loop"])
def test_router_without_a_lane_routes_all_three(world: World, engine: str) -> None:
    world.publish(profiles(f"all-{engine}", 3))
    world.run("router", HELIOGRAPH_ROUTER__ENGINE=engine)
    world.run("sender", "--channel", "email")
    made = set()
    for n, lane in enumerate(("critical", "normal", "bulk")):
        records, ids_made = requests(f"all-{engine}", 3, lane)
        world.publish([records[n]])
        made |= {nid for nid in ids_made if nid.encode() in (records[n].value or b"")}
    until(lambda: [*world.settled(made).values()] == [{"sent"}] * 3, what="sent on every lane")
    world.broker.stop_roles()
    assert {s["lane"] for events in world.statuses(made).values() for s in events} == {"critical", "normal", "bulk"}


def test_transient_error_is_retried_by_a_timer_and_a_rejected_recipient_bounces(world: World) -> None:
    world.publish(profiles("retry", 3))
    world.fault(kind="smtp", mode="500", match="retry0@", times=2)
    world.fault(kind="smtp", mode="reject", match="retry1@")
    for arguments in (("router", "--lane", "normal"), ("sender", "--channel", "email"), ("timers",)):
        world.run(*arguments)
    records, made = requests("retry", 3)
    world.publish(records)
    until(lambda: sum(bool(states) for states in world.settled(made).values()) == 3, what="settled")
    world.broker.stop_roles()
    world.clear_faults()
    reported = sorted(
        [s["state"] for s in sorted(events, key=lambda s: s["occurred_at"])] for events in world.statuses(made).values()
    )
    assert reported == [["routed", "bounced"], ["routed", "retrying", "retrying", "sent"], ["routed", "sent"]]
    assert world.accepted("smtp", "retry") == {"retry0@example.org": 1, "retry2@example.org": 1}


def test_scheduled_request_is_sent_when_its_time_has_come_and_not_before(world: World) -> None:
    world.publish(profiles("later", 1))
    for arguments in (("router", "--lane", "normal"), ("sender", "--channel", "email"), ("timers",)):
        world.run(*arguments)
    send_at = int(time.time() * 1000) + 15_000  # the router must have started before
    records, made = requests("later", 1, send_at=send_at)
    world.publish(records)
    until(lambda: world.settled(made).get(next(iter(made))) == {"sent"}, what="sent")
    world.broker.stop_roles()
    events = next(iter(world.statuses(made).values()))
    assert [s["state"] for s in events] == ["scheduled", "routed", "sent"]
    assert min(s["occurred_at"] for s in events if s["state"] == "routed") >= send_at


@pytest.mark.parametrize("victim", ["router", "sender", "timers"])
def test_role_killed_under_load_loses_nothing_and_flags_what_it_repeats(world: World, victim: str) -> None:
    count = 400
    world.publish(profiles(f"kill-{victim}-", count))
    world.fault(kind="smtp", mode="slow", latency_ms=20)
    arguments = {
        "router": ("router", "--lane", "normal"),
        "sender": ("sender", "--channel", "email"),
        "timers": ("timers",),
    }
    roles = {name: world.run(*command) for name, command in arguments.items()}
    records, made = requests(f"kill-{victim}-", count)
    world.publish(records[: count // 2])
    until(lambda: len(world.accepted("smtp", f"kill-{victim}-")) > 20, what="first mails")
    roles[victim].send_signal(signal.SIGKILL)
    world.publish(records[count // 2 :])
    roles[victim].wait()
    world.run(*arguments[victim])
    until(lambda: sum("sent" in s for s in world.settled(made).values()) == count, 90, what="every mail sent")
    world.broker.stop_roles()
    world.clear_faults()
    accepted = world.accepted("smtp", f"kill-{victim}-")
    assert set(accepted) == {f"kill-{victim}-{n}@example.org" for n in range(count)}
    twice = {to for to, times in accepted.items() if times > 1}
    flagged = {nid for nid, events in world.statuses(made).items() if any(s["possible_duplicate"] for s in events)}
    assert len(twice) <= len(flagged)
    if victim != "sender":
        assert not twice


def test_sigterm_of_any_role_under_load_loses_and_repeats_nothing(world: World) -> None:
    count = 300
    world.publish(profiles("term-", count))
    commands = [("router", "--lane", "normal"), ("sender", "--channel", "email"), ("timers",)]
    roles = [world.run(*command) for command in commands]
    records, made = requests("term-", count)
    world.publish(records[:100])
    until(lambda: len(world.accepted("smtp", "term-")) > 10, what="first mails")
    world.publish(records[100:])
    for role, command in zip(roles, commands, strict=True):
        role.send_signal(signal.SIGTERM)
        assert role.wait(20) == 0
        world.run(*command)
    until(lambda: sum("sent" in s for s in world.settled(made).values()) == count, 90, what="every mail sent")
    world.broker.stop_roles()
    assert world.accepted("smtp", "term-") == {f"term-{n}@example.org": 1 for n in range(count)}
    assert not any(s["possible_duplicate"] for events in world.statuses(made).values() for s in events)


def test_crash_after_the_provider_accepted_is_sent_again_flagged(world: World) -> None:
    world.publish(profiles("crash-", 1))
    world.run("router", "--lane", "normal")
    world.run("timers")
    records, made = requests("crash-", 1)
    for _ in range(2):  # the second owner finds the message in doubt, sends it again, and dies as well
        crashing = world.run("sender", "--channel", "email", HELIOGRAPH_CRASH_AT="after_provider_accept")
        world.publish(records)
        crashing.wait(60)
    world.run("sender", "--channel", "email")
    (nid,) = made
    until(lambda: world.settled(made).get(nid) == {"sent"}, what="sent at last")
    world.broker.stop_roles()
    assert world.accepted("smtp", "crash-0@") == {"crash-0@example.org": 3}
    reported = world.statuses(made)[nid]
    assert all(s["possible_duplicate"] for s in reported if s["state"] == "sent")
    assert "in doubt: claimed by a sender that ended" in {s["detail"] for s in reported}


def test_crash_after_the_provider_accepted_at_most_once_ends_unknown(world: World) -> None:
    world.publish(profiles("once-", 1))
    world.run("router", "--lane", "normal")
    records, made = requests("once-", 1, delivery="at_most_once")
    crashing = world.run("sender", "--channel", "email", HELIOGRAPH_CRASH_AT="after_provider_accept")
    world.publish(records)
    crashing.wait(60)
    world.run("sender", "--channel", "email")
    (nid,) = made
    until(lambda: world.settled(made).get(nid) == {"unknown"}, what="unknown")
    world.broker.stop_roles()
    assert world.accepted("smtp", "once-0@") == {"once-0@example.org": 1}


def test_poison_on_every_topic_is_dead_lettered_and_the_rest_is_processed(world: World) -> None:
    skipped = {DEAD_LETTERS, STATUS, RECEIPTS}
    readers = {
        name: set(topic.consumers) - {"sink", "callbacks", "hooks", "api"} for name, topic in catalogue().items()
    }  # these do not run here
    # No account here sends webhooks, so that nobody reads their topics.
    read = [t for t in catalogue() if readers[t] and t not in skipped and ".webhook." not in t]
    topics = [t for t in read if "normal" in t or t.count(".") == 2]
    world.publish([ProducerRecord(topic, b"poison-key", b"\xff poison", partition=0) for topic in topics])
    world.publish(profiles("poison", 1))
    for arguments in (
        ("router", "--lane", "normal"),
        ("sender", "--channel", "email"),
        ("sender", "--channel", "sms"),
        ("sender", "--channel", "push"),
        ("timers",),
    ):
        world.run(*arguments)
    records, made = requests("poison", 1, channels=["email", "sms", "push"])
    world.publish(records)
    until(lambda: world.settled(made).get(next(iter(made))) == {"sent"}, what="sent")

    def dead_lettered() -> set[str]:
        dead_letters = [codec("DeadLetter").decode(record.value) for record in world.read_all(DEAD_LETTERS)]
        return {dead_letter["topic"] for dead_letter in dead_letters if dead_letter["value"] == b"\xff poison"}

    until(lambda: dead_lettered() == set(topics), what=f"dead letters of {topics}")
    world.broker.stop_roles()


def test_broker_killed_under_load_loses_nothing(world: World) -> None:
    count = 300
    world.publish(profiles("broker-", count))
    world.fault(kind="smtp", mode="slow", latency_ms=20)
    commands = [("router", "--lane", "normal"), ("sender", "--channel", "email"), ("timers",)]
    running = {command: world.run(*command) for command in commands}
    records, made = requests("broker-", count)
    world.publish(records[:150])
    until(lambda: len(world.accepted("smtp", "broker-")) > 20, what="first mails")
    world.broker.process.kill()
    world.broker.process.wait()
    world.broker.start()
    world.publish(records[150:])

    def all_sent() -> bool:
        for command, process in running.items():  # what the supervisor does
            if process.poll() is not None:
                running[command] = world.run(*command)
        return sum("sent" in s for s in world.settled(made).values()) == count

    until(all_sent, 120, what="every mail sent")
    world.broker.stop_roles()
    world.clear_faults()
    accepted = world.accepted("smtp", "broker-")
    assert set(accepted) == {f"broker-{n}@example.org" for n in range(count)}
    flagged = sum(any(s["possible_duplicate"] for s in e) for e in world.statuses(made).values())
    assert sum(times - 1 for times in accepted.values()) <= flagged


def test_dispatch_record_of_a_wrong_lane_is_rejected_and_not_sent(world: World) -> None:
    message = message_of(
        address="wrong-lane@example.org",
        message_id=str(uuid4()),
        notification_id=notification_id(NOW, "t", "wrong-lane"),
    )
    world.run("sender", "--channel", "email")
    record = ProducerRecord(dispatch_topic("email", "bulk"), b"k", codec("ChannelMessage").encode(message))
    world.publish([record])
    made = {message["notification_id"]}
    until(lambda: world.settled(made) == {message["notification_id"]: {"rejected"}}, what="refused")
    world.broker.stop_roles()
    (status,) = world.statuses(made)[message["notification_id"]]
    assert (status["lane"], status["detail"]) == ("bulk", "channel or lane is not the topic's")
    assert world.accepted("smtp", "wrong-lane") == {}

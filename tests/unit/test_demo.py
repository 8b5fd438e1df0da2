"""What the demo concludes from two sides that agree, and from every way in which they may not."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest

from local.demo import EXAMPLES, GONE, publications
from local.verification import Message, Verification, compare
from producers.publisher import Publisher
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings


def verification(**changes: Any) -> Verification:
    """Two notifications: a mail that was sent, and a text message nobody wanted."""
    sound: dict[str, Any] = {
        "published": {"n1", "n2"},
        "requests": ["n1", "n2"],
        "messages": [Message("m1", "n1", "email", "sent", False), Message("m2", "n2", "sms", "skipped", False)],
        "accepts": [("smtp", "m1")],
        "mails": ["m1"],
    }
    return Verification(**{**sound, **changes})


def test_two_sides_that_agree_have_no_findings() -> None:
    assert compare(verification()) == []


@pytest.mark.parametrize(
    ("changes", "text", "ids"),
    [
        ({"published": {"n1", "n2", "n3"}}, "published notifications are not in ClickHouse", ("n3",)),
        ({"requests": ["n1", "n2", "n9"]}, "notifications in ClickHouse were not published by this run", ("n9",)),
        ({"requests": ["n1", "n2", "n2"]}, "notifications were counted more than once", ("n2",)),
        ({"accepts": [], "mails": []}, "messages are recorded as sent, but no vendor accepted them", ("m1",)),
        (
            {"accepts": [("smtp", "m1"), ("smtp", "m1")], "mails": ["m1", "m1"]},
            "messages were accepted twice without a recorded reason",
            ("m1",),
        ),
        (
            {"accepts": [("smtp", "m1"), ("twilio", "m2")]},
            "messages were accepted by a vendor, but are recorded as not sent",
            ("m2",),
        ),
        ({"accepts": [("smtp", "m1"), ("fcm", "m7")]}, "accepts at a vendor belong to no message", ("m7",)),
        ({"accepts": [("smtp", "m1"), ("fcm", "m1")]}, "accepts at a vendor belong to no message", ("m1",)),
        ({"mails": []}, "mails were accepted, but are not in the mailbox once per accept", ("m1",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_difference_is_named_with_its_ids(changes: dict[str, Any], text: str, ids: tuple[str, ...]) -> None:
    assert [(finding.text, finding.ids) for finding in compare(verification(**changes))] == [(text, ids)]


def test_a_second_accept_with_a_recorded_reason_is_no_finding() -> None:
    flagged = [Message("m1", "n1", "email", "sent", True), Message("m2", "n2", "sms", "unknown", False)]
    accepts = [("smtp", "m1"), ("smtp", "m1"), ("twilio", "m2")]
    assert compare(verification(messages=flagged, accepts=accepts, mails=["m1", "m1"])) == []


@pytest.mark.parametrize(("state", "accepts"), [("delivered", 1), ("undelivered", 1), ("bounced", 1), ("bounced", 0)])
def test_what_a_vendor_took_and_reported_on_is_no_finding(state: str, accepts: int) -> None:
    messages = [Message("m1", "n1", "email", "sent", False), Message("m2", "n2", "sms", state, False)]
    assert compare(verification(messages=messages, accepts=[("smtp", "m1"), *[("twilio", "m2")] * accepts])) == []


@pytest.mark.parametrize(
    ("state", "accepts", "text"),
    [
        ("undelivered", 0, "messages are recorded as sent, but no vendor accepted them"),
        ("delivered", 2, "messages were accepted twice without a recorded reason"),
        ("bounced", 2, "messages were accepted twice without a recorded reason"),
    ],
)
def test_a_report_excuses_nothing(state: str, accepts: int, text: str) -> None:
    messages = [Message("m1", "n1", "email", "sent", False), Message("m2", "n2", "sms", state, False)]
    (finding,) = compare(verification(messages=messages, accepts=[("smtp", "m1"), *[("twilio", "m2")] * accepts]))
    assert (finding.text, finding.ids) == (text, ("m2",))


def test_mail_that_another_vendor_took_is_in_no_mailbox_of_ours() -> None:
    assert compare(verification(accepts=[("sendgrid", "m1")], mails=[])) == []
    (finding,) = compare(verification(accepts=[("sendgrid", "m1"), ("smtp", "m1")], mails=["m1"]))
    assert finding.text == "messages were accepted twice without a recorded reason"


def test_a_late_retry_of_an_earlier_run_is_no_finding() -> None:
    assert compare(verification(accepts=[("smtp", "m1"), ("fcm", "old")], others={"old"})) == []


def test_a_finding_with_many_ids_shows_a_few() -> None:
    (finding,) = compare(verification(published={"n1", "n2", *(f"x{n}" for n in range(9))}))
    assert str(finding).startswith("9 published notifications are not in ClickHouse: x0, x1, ")
    assert str(finding).endswith(" and 4 more")


class _Recorder(Producer):
    def __init__(self) -> None:
        self.records: list[ProducerRecord] = []

    def publish(self, records: Any, *_: Any, **__: Any) -> None:
        self.records += records


def _publish(run: str) -> list[str]:
    bodies = [json.loads(line) for line in (EXAMPLES / "requests.jsonl").read_text("utf-8").splitlines()]
    publisher = Publisher(KafkaSettings(), tenant="default", source=run, producer=_Recorder())
    return publisher.publish_many(publications(bodies, run, 1_800_000_000_000))


def test_copies_collapse_within_a_run_and_not_across_runs() -> None:
    constants = runpy.run_path(str(EXAMPLES / "make_requests.py"))
    first, second = _publish("demo-1"), _publish("demo-2")
    assert len(first) == constants["REQUESTS"]
    assert len(set(first)) == constants["REQUESTS"] - constants["COPIES"]
    assert not set(first) & set(second)


def test_the_mailbox_that_is_refused_is_the_one_in_the_requests() -> None:
    assert runpy.run_path(str(EXAMPLES / "make_requests.py"))["GONE"] == GONE

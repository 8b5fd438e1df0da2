"""The API in front of the whole stack: what was asked for over HTTP is what providers got and statuses say."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]
__all__ = ["running"]


def mail(to: str, **more: Any) -> dict[str, Any]:
    content = {"subject": "S", "text": "hello"}
    return {"to": {"email": f"{to}@example.org"}, "content": content, "channels": ["email"], **more}


def name() -> str:
    return f"w-{uuid.uuid4().hex[:8]}"


def at(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def status_of(running: Stack, nid: str) -> dict[str, Any]:
    code, body, _ = running.call("GET", f"/v1/notifications/{nid}")
    assert code == 200, body
    return dict(body)


def ends(running: Stack, nid: str, state: str, timeout_s: float = 60) -> dict[str, Any]:
    until(lambda: status_of(running, nid)["status"] == state, timeout_s, f"{nid} {state}")
    return status_of(running, nid)


def mails(running: Stack, to: str) -> int:
    return int(running.get("mailbox", f"/api/messages?to={to}@example.org")["total"])


def send(running: Stack, body: dict[str, Any]) -> str:
    code, answer, _ = running.call("POST", "/v1/notifications", body)
    assert code == 202, answer
    return str(answer["id"])


def test_at_most_once_is_sent_once(running: Stack) -> None:
    to = name()
    ends(running, send(running, mail(to, delivery="at_most_once")), "sent")
    assert mails(running, to) == 1


def test_dry_run_sends_nothing(running: Stack) -> None:
    to = name()
    final = ends(running, send(running, mail(to, dry_run=True)), "simulated")
    assert (final["reason"], mails(running, to)) == ("dry_run", 0)


def test_expiry_before_the_scheduled_time_ends_expired(running: Stack) -> None:
    to = name()
    final = ends(running, send(running, mail(to, send_at=at(4), expires_at=at(2))), "expired")
    assert (final["reason"], mails(running, to)) == ("past_expiry", 0)


def test_cancelled_while_scheduled_is_never_sent_and_stays_cancelled(running: Stack) -> None:
    to = name()
    nid = send(running, mail(to, send_at=at(6)))
    ends(running, nid, "scheduled")
    path = f"/v1/notifications/{nid}/cancel"
    code, body, _ = running.call("POST", path)
    assert (code, body["id"]) == (202, nid)
    final = ends(running, nid, "cancelled")
    assert (final["reason"], mails(running, to)) == ("by_caller", 0)
    assert running.call("POST", path)[0] == 200
    assert running.call("POST", f"/v1/notifications/{nid}/resend")[1]["code"] == "cancelled"


def test_resend_of_what_was_sent_is_another_message_of_the_same_notification(running: Stack) -> None:
    to = name()
    nid = send(running, mail(to))
    ends(running, nid, "sent")
    assert running.call("POST", f"/v1/notifications/{nid}/cancel")[1]["code"] == "already_settled"
    code, body, headers = running.call("POST", f"/v1/notifications/{nid}/resend", None, {"X-Correlation-ID": "again"})
    assert (code, body["id"], body["generation"], headers["x-correlation-id"]) == (202, nid, 1, "again")
    until(lambda: mails(running, to) == 2, 60, "the second mail")
    until(lambda: len(status_of(running, nid)["messages"]) == 2, 60, "the second message")
    ends(running, nid, "sent")


def test_bulk_is_delivered_and_listed(running: Stack) -> None:
    to, tag = name(), name()
    items = [mail(f"{to}-{n}", tags=[tag], request_id=f"{tag}-{n}") for n in range(20)]
    for _ in range(2):
        code, body, _ = running.call("POST", "/v1/notifications/bulk", {"notifications": [*items, {}]})
        assert (code, [r["status"] for r in body["results"]]) == (202, ["accepted"] * 20 + ["refused"])
    accepted = [r["id"] for r in body["results"][:-1]]

    def sent() -> bool:
        listed = running.call("GET", f"/v1/notifications?status=sent&tag={tag}")[1]["entries"]
        return sorted(entry["id"] for entry in listed) == sorted(accepted)

    until(sent, 60, "all of the bulk listed as sent")
    assert [mails(running, f"{to}-{n}") for n in range(20)] == [1] * 20

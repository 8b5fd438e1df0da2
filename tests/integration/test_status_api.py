"""GET /v1/notifications/{id} on the real engine, through the application's own error handlers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI, Request

from api.app import handlers
from api.notifications.status import status_router
from runtime import ids
from runtime.settings import ClickHouseSettings
from runtime.status import rfc3339
from tests.integration.test_clickhouse_schema import Store, many, notification, request, status
from tests.support.clickhouse import Server, free_port
from tests.unit.test_status_rollup import ask
from tracking.status import Statuses, StatusStore

pytestmark = pytest.mark.clickhouse


class Caller:
    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


def app(settings: ClickHouseSettings, recent: dict[str, Any] | None = None, tenant: str = "t") -> FastAPI:
    def authenticate(request: Request) -> Caller:
        return Caller(tenant)

    made = FastAPI(exception_handlers=handlers())
    made.include_router(status_router(Statuses(StatusStore(settings), (recent or {}).get), authenticate))
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    running = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield Store(running)
    running.stop()


def get(asgi: Any, path: str) -> tuple[int, Any]:
    code, body, _ = asyncio.run(ask(asgi, f"/v1/notifications/{path}"))
    return code, body


def test_journey_of_a_notification_is_in_its_story(store: Store) -> None:
    nid = notification(3_600_000)
    steps = [
        request(nid),
        status(nid, "email", "routed", after=100),
        status(nid, "email", "retrying", attempt=1, after=200, provider="mail-1", detail="451"),
        status(
            nid, "email", "sent", attempt=2, after=2_300, provider="mail-2", provider_message_id="m-7", latency_ms=9
        ),
        status(nid, "push", "skipped", after=100, reason="no_address"),
    ]
    store.insert(steps)
    code, body = get(app(store.settings), nid)
    at = ids.accepted_at(nid)
    assert code == 200
    assert (body["id"], body["status"], body["reason"]) == (nid, "sent", None)
    email, push = body["messages"]
    assert email == {
        "id": ids.message_id(nid, "email", "x"),
        "channel": "email",
        "status": "sent",
        "reason": None,
        "provider": "mail-2",
        "provider_message_id": "m-7",
        "possible_duplicate": False,
        "attempts": [
            {"attempt": 1, "provider": "mail-1", "state": "retrying", "reason": None, "occurred_at": rfc3339(at + 200)},
            {"attempt": 2, "provider": "mail-2", "state": "sent", "reason": None, "occurred_at": rfc3339(at + 2_300)},
        ],
    }
    assert (push["status"], push["reason"], push["attempts"]) == ("skipped", "no_address", [])
    assert body["links"]["self"] == f"/v1/notifications/{nid}"
    code, events = get(app(store.settings), f"{nid}/events")
    assert [entry["state"] for entry in events["entries"]] == ["routed", "skipped", "retrying", "sent"]
    assert events["entries"][3]["latency_ms"] == 9
    assert events["entries"][2]["detail"] == "451"


def test_another_tenant_sees_nothing(store: Store) -> None:
    nid = notification(3_600_000)
    store.insert([request(nid), status(nid, "sms", "sent", attempt=1)])
    assert get(app(store.settings, tenant="other"), nid)[0] == 404
    assert get(app(store.settings, tenant="other"), f"{nid}/events")[0] == 404


def test_malformed_id_is_400_and_unknown_one_404(store: Store) -> None:
    assert get(app(store.settings), "nope")[0] == 400
    assert get(app(store.settings), str(uuid4()))[0] == 404
    assert get(app(store.settings), notification(3_600_000))[0] == 404


def test_young_id_waits_for_the_sink(store: Store) -> None:
    async def scenario() -> tuple[int, Any]:
        nid = ids.notification_id(time.time_ns() // 1_000_000, "t")
        asked = asyncio.create_task(ask(app(store.settings), f"/v1/notifications/{nid}"))
        await asyncio.sleep(0.5)
        assert not asked.done()
        await asyncio.to_thread(store.insert, [request(nid)])
        code, body, _ = await asked
        return code, body

    code, body = asyncio.run(scenario())
    assert (code, body["status"], body["messages"]) == (200, "accepted", [])


def test_unavailable_store_is_503_until_it_answers_again(store: Store) -> None:
    away = app(ClickHouseSettings(url=f"http://127.0.0.1:{free_port()}"))
    code, body, headers = asyncio.run(ask(away, f"/v1/notifications/{notification(3_600_000)}"))
    assert (code, body["code"], headers["content-type"]) == (503, "store_unavailable", "application/problem+json")
    assert int(headers["retry-after"]) >= 1


def test_one_notification_among_many_is_found_in_milliseconds(store: Store) -> None:
    store.insert(many(8_000, seed=9))
    nid = notification(3_600_000)
    store.insert([request(nid), status(nid, "sms", "sent", attempt=1)])
    asgi = app(store.settings)

    async def times() -> list[float]:
        taken = []
        for _ in range(40):
            started = time.perf_counter()
            code, _, _ = await ask(asgi, f"/v1/notifications/{nid}")
            assert code == 200
            taken.append(time.perf_counter() - started)
        return sorted(taken)

    assert asyncio.run(times())[20] < 0.25  # 10 ms on a quiet machine

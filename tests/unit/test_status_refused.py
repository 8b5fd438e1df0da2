"""ClickHouse refuses, or does not answer: every route that reads it says 503, and whoever asks may try again."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import handlers
from api.notifications.explain import explain_router
from api.notifications.listing import listing_router
from api.notifications.status import status_router
from producers.reference.keys import Caller
from runtime import ids
from runtime.errors import UnavailableError
from runtime.settings import Settings
from sinks import clickhouse
from tracking.listing import Listing
from tracking.status import Statuses, StatusStore

NID = ids.notification_id(int(time.time() * 1000) - 3_600_000, "mine")


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def query(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error", [clickhouse.StoreError("refused: secret of ours"), UnavailableError("away: secret of ours")]
)
@pytest.mark.parametrize("path", ["", "/{id}", "/{id}/events", "/{id}/explain"])
async def test_analytics_that_fail_are_unavailable_and_tell_no_secret(
    monkeypatch: pytest.MonkeyPatch, path: str, error: Exception
) -> None:
    monkeypatch.setattr(clickhouse, "connect", lambda *_, **__: Failing(error))
    store = StatusStore(Settings().clickhouse)
    statuses = Statuses(store, lambda _: None)

    def authenticate() -> Caller:
        return Caller("mine", "id")

    app = FastAPI(exception_handlers=handlers())
    for router in (
        listing_router(Listing(store), authenticate),
        status_router(statuses, authenticate),
        explain_router(store, statuses, authenticate),
    ):
        app.include_router(router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        answer = await client.get(f"/v1/notifications{path}".format(id=NID))
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "secret" not in answer.text

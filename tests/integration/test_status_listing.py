"""The list of notifications on the real engine: pages, filters, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from runtime import ids
from runtime.records import ConsumerRecord
from tests.integration.test_clickhouse_schema import HOUR, NOW, Store, request, status
from tests.support.clickhouse import Server
from tracking.listing import Filters, Listing, Page
from tracking.status import StatusStore

pytestmark = pytest.mark.clickhouse

AGES = (0, 1_000, 2_000, HOUR, 5 * HOUR, 30 * HOUR, 400 * HOUR, 4_000 * HOUR)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    running = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield Store(running)
    assert running.stop() == 0


@pytest.fixture(scope="module")
def newest_first(store: Store) -> list[str]:
    """Notifications of tenant t over half a year, and as many of another tenant."""
    facts: list[ConsumerRecord] = []
    mine = []
    for number, age in enumerate(AGES):
        nid = ids.notification_id(NOW - age, "t")
        mine.append(nid)
        facts.append(request(nid, user_id=f"u{number % 2}", tags=["odd" if number % 2 else "even", "all"]))
        facts.append(status(nid, "email", "routed"))
        if number % 3 == 0:
            facts.append(status(nid, "email", "sent", attempt=1))
        theirs = ids.notification_id(NOW - age, "other")
        facts.append(request(theirs, "other", user_id="u0", tags=["all"]))
    store.insert([*facts, *facts])
    return mine


def page(store: Store, *, tenant: str = "t", before: UUID | None = None, limit: int = 50, **filters: Any) -> Page:
    listing = Listing(StatusStore(store.settings), lambda: NOW)
    return asyncio.run(listing.page(tenant, Filters(**filters), before, limit))


def found(store: Store, **asked: Any) -> list[str]:
    return [entry["id"] for entry in page(store, **asked).entries]


def test_newest_come_first_each_once(store: Store, newest_first: list[str]) -> None:
    assert found(store) == newest_first


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_pages_follow_each_other_without_a_gap(store: Store, newest_first: list[str], limit: int) -> None:
    seen: list[str] = []
    before: UUID | None = None
    while True:
        got = page(store, before=before, limit=limit)
        seen += [entry["id"] for entry in got.entries]
        before = got.next_id
        if before is None:
            break
    assert seen == newest_first


def test_filters_hold_together(store: Store, newest_first: list[str]) -> None:
    assert found(store, user_id="u1") == newest_first[1::2]
    assert found(store, tag="even") == newest_first[::2]
    assert found(store, state="sent") == newest_first[::3]
    assert found(store, state="sent", user_id="u1") == [newest_first[3]]
    assert found(store, state="delivered") == found(store, user_id="u9") == found(store, tag="od") == []


def test_entry_shows_the_request_and_its_status(store: Store, newest_first: list[str]) -> None:
    (entry,) = page(store, limit=1).entries
    assert entry["id"] == newest_first[0]
    assert (entry["status"], entry["reason"], entry["user_id"], entry["tags"]) == ("sent", None, "u0", ["even", "all"])
    assert entry["links"]["self"] == f"/v1/notifications/{newest_first[0]}"


def test_tenant_sees_its_own_only(store: Store, newest_first: list[str]) -> None:
    theirs = found(store, tenant="other")
    assert len(theirs) == len(AGES)
    assert not set(theirs) & set(newest_first)
    assert found(store, tenant="nobody") == []


@pytest.mark.parametrize("text", ["'", "\\", "\0", "\t\n", "{x}", "%s", "' OR 1=1 --", "ü\u2028", "x" * 255])
def test_any_text_is_only_a_value(store: Store, newest_first: list[str], text: str) -> None:
    assert found(store, user_id=text, tag=text) == found(store, tag=text) == []


def test_request_without_a_fact_yet_is_accepted(store: Store) -> None:
    nid = ids.notification_id(NOW, "fresh")
    store.insert([request(nid, "fresh")])
    assert [e["status"] for e in page(store, tenant="fresh").entries] == ["accepted"]
    assert found(store, tenant="fresh", state="accepted") == [nid]


HOSTILE = [
    "a\0b",
    "a\tb",
    "a\nb",
    "a\\b",
    "a'b",
    "\\N",
    "a\rb",
    "é🙂",
    "{x}",
    "%s",
    "a\x1bb",
    "\\",
    "'; DROP TABLE requests_raw --",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_as_user_or_tag_is_found(store: Store, text: str) -> None:
    nid = ids.notification_id(NOW - 7 * HOUR, f"h{HOSTILE.index(text)}")
    store.insert([request(nid, "hostile", user_id=text, tags=[text]), status(nid, "email", "sent", tenant="hostile")])
    assert nid in found(store, tenant="hostile", user_id=text)
    assert nid in found(store, tenant="hostile", tag=text)

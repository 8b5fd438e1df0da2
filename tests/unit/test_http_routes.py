"""Every route of reference data with any id: what can be created can be read, changed, opted out and deleted; nothing is 500."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.http_world import HttpWorld, quoted

_ANY = st.text(max_size=30) | st.text("/.%#?\0\n ;&=:+\\~é🙂\u202e", max_size=8)
_IDS = [
    "...",
    "/",
    "//",
    "a//b",
    "org/42",
    "https://x.example/u?1#2",
    "%2F",
    "%00",
    "a b",
    "a+b",
    "x/preferences",
    "🙂",
    "x" * 255,
]
_PLACES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def world() -> Iterator[HttpWorld]:
    made = HttpWorld()
    yield made
    made.close()


async def lives(world: HttpWorld, user_id: str) -> None:
    world.store.users.clear()
    created = await world.call("POST", "/v1/users", {"id": user_id, "name": "N"})
    if created.status_code != 201:
        assert created.status_code == 400, "an id that is not taken says so"
        assert created.json()["errors"][0]["pointer"] == "/id"
        return
    where = created.headers["Location"]
    assert where == f"/v1/users/{quoted(user_id)}"
    assert (await world.call("GET", where)).json()["id"] == user_id
    assert (await world.call("PUT", where, {"id": user_id, "name": "M"})).json()["name"] == "M"
    assert (await world.call("PATCH", where, {"name": "P"})).json()["name"] == "P"
    optout = {"channels": {"email": False}, "categories": {}}
    assert (await world.call("PUT", f"{where}/preferences", optout)).status_code == 200
    assert world.store.preferences[user_id]["channels"] == {"email": False}
    assert (await world.call("GET", f"{where}/preferences")).json() == optout
    assert (await world.call("DELETE", where)).status_code == 204
    assert (await world.call("GET", where)).status_code == 404


@given(_ANY)
@_PLACES
def test_every_user_id_that_creation_takes_can_be_read_changed_opted_out_and_deleted(
    world: HttpWorld, user_id: str
) -> None:
    asyncio.run(lives(world, user_id.encode("utf-8", "replace").decode()))


@pytest.mark.parametrize("user_id", _IDS)
def test_ids_that_are_paths_urls_or_dots_live_too(world: HttpWorld, user_id: str) -> None:
    asyncio.run(lives(world, user_id))


@pytest.mark.parametrize("user_id", [".", ".."])
def test_id_that_clients_take_for_a_step_in_a_path_is_refused(world: HttpWorld, user_id: str) -> None:
    answer = asyncio.run(world.call("POST", "/v1/users", {"id": user_id}))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/id")
    assert "step in a path" in answer.json()["detail"]


def test_slash_that_was_sent_as_one_is_no_part_of_an_id(world: HttpWorld) -> None:
    async def asked() -> list[int]:
        await world.call("POST", "/v1/users", {"id": "org/42"})
        return [
            (await world.call("GET", path)).status_code
            for path in ("/v1/users/org/42", "/v1/users/org%2f42", "/v1/users/org%2F42")
        ]

    assert asyncio.run(asked()) == [404, 200, 200]


def paths(world: HttpWorld) -> list[tuple[str, str]]:
    document = asyncio.run(world.call("GET", "/openapi.json")).json()
    return [
        (method, path)
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/v1/") and path != "/v1/notifications"
    ]


def test_no_id_or_parameter_of_any_route_is_a_fault_of_ours(world: HttpWorld) -> None:
    """With NUL, controls, slashes and rubbish in every place of every route of the application."""
    known = paths(world)
    assert len(known) > 20
    hostile = ["%00", "a%00b", "%0A", "%2F", "%2f%2F", "%FF%FE", "%ED%A0%80", "%E2%80%AE", "a" * 3_000, "..", "%25"]

    async def ask() -> list[tuple[str, str, int, str]]:
        found = []
        for method, path in known:
            for text in hostile:
                where = re.sub(r"\{\w+\}", text.replace("\\", ""), path)
                query = "&".join(
                    f"{name}={text}" for name in ("cursor", "reason", "address", "channel", "limit", "version")
                )
                for url in (where, f"{where}?cursor={text}", f"{where}?{query}"):
                    answer = await world.call(method.upper(), url, {} if method in ("post", "put", "patch") else None)
                    found.append((method, url[:100], answer.status_code, answer.text[:200]))
        return found

    wrong = [each for each in asyncio.run(ask()) if each[2] >= 500]
    assert wrong == []


def test_start_page_leads_to_the_documentation(world: HttpWorld) -> None:
    answer = asyncio.run(world.call("GET", "/"))
    assert (answer.status_code, answer.headers["Location"]) == (307, "/docs")
    assert asyncio.run(world.call("GET", "/docs")).status_code == 200

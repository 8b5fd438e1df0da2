"""A template that exceeds any limit is a 400 that names its size and the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.templates.check import MAX_SOURCES, MAX_SOURCES_BYTES
from runtime.templates.language import MAX_SOURCE_BYTES
from schemas.topics import MAX_VALUE_BYTES
from tests.support.http_world import NOW, HttpWorld


@pytest.fixture
def world() -> Iterator[HttpWorld]:
    made = HttpWorld()
    yield made
    made.close()


def stored(world: HttpWorld, name: str, channels: dict[str, Any], locales: dict[str, Any] | None = None) -> None:
    """A published template, also one that grew past what is taken."""
    world.store.templates[name] = [
        {
            "tenant": "shop",
            "template_id": name,
            "version": 1,
            "published": True,
            "category": "c",
            "channels": channels,
            "locales": locales or {},
            "variables": [],
            "written": None,
            "created_at": NOW,
            "updated_at": NOW,
        }
    ]


def refused(world: HttpWorld, body: dict[str, Any], *wanted: str) -> None:
    """As a new template and as a version, with nothing stored."""
    stored(world, "there", {"sms": {"text": "x"}})
    for path, sent in (("/v1/templates", {"id": "new", **body}), ("/v1/templates/there/versions", body)):
        answer = asyncio.run(world.call("POST", path, sent))
        assert (answer.status_code, answer.json()["code"]) == (400, "template_invalid"), answer.text[:300]
        for text in wanted:
            assert text in answer.json()["detail"]
    assert "new" not in world.store.templates
    assert len(world.store.templates["there"]) == 1


def test_thousand_sources_are_taken_and_one_more_is_not(world: HttpWorld) -> None:
    def data(count: int) -> dict[str, Any]:
        return {"channels": {"push": {"data": {f"k{n}": "v" for n in range(count)}}}}

    taken = asyncio.run(world.call("POST", "/v1/templates", {"id": "full", **data(MAX_SOURCES)}))
    assert taken.status_code == 201, taken.text[:300]
    refused(world, data(MAX_SOURCES + 1), str(MAX_SOURCES))


@pytest.mark.parametrize("grown", ["layout", "partial"])
def test_layout_or_partial_that_grew_makes_its_dependents_too_large(world: HttpWorld, grown: str) -> None:
    """A page of every locale around a large frame: in all more than a template may have."""
    large = "x" * (MAX_SOURCE_BYTES - 2_000)
    frame = large + '{% include "content" %}' if grown == "layout" else large
    stored(world, "grown", {"email": {"text": frame}})
    source = "hello" if grown == "layout" else '{% include "grown" %}'
    body: dict[str, Any] = {
        "channels": {"email": {"text": source}},
        "locales": {f"de-{n}": {"email": {"text": source}} for n in range(MAX_SOURCES_BYTES // len(frame) + 1)},
    }
    refused(world, body | ({"layout": "grown"} if grown == "layout" else {}), str(MAX_SOURCES_BYTES))


def test_one_part_within_its_layout_has_the_limit_of_a_source(world: HttpWorld) -> None:
    stored(world, "grown", {"email": {"text": "x" * MAX_SOURCE_BYTES + '{% include "content" %}'}})
    refused(world, {"channels": {"email": {"text": "hello"}}, "layout": "grown"}, str(MAX_SOURCE_BYTES))


def test_record_of_a_template_has_room_for_it_or_says_both_sizes(world: HttpWorld) -> None:
    """What is not ASCII counts by its bytes, and a quotation mark as two: fewer characters than sources may have in all."""
    frame = '"' * (MAX_SOURCE_BYTES - 2_000) + '{% include "content" %}'
    stored(world, "grown", {"email": {"text": frame}})
    body = {
        "channels": {"email": {"text": "a"}},
        "layout": "grown",
        "locales": {f"de-{n}": {"email": {"text": "a"}} for n in range(10)},
    }
    refused(world, body, str(MAX_VALUE_BYTES), "locales it has")

"""The schema that is served is the one that is committed, and breaks nobody who was promised the last release's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from graphql import build_schema, find_breaking_changes

from api.graphql.schema import served_sdl
from api.graphql.sdl import committed_sdl

ROOT = Path(__file__).resolve().parents[2]
FILE = "schemas/graphql/schema.graphql"


def test_committed_schema_is_the_served_one() -> None:
    assert committed_sdl() == served_sdl(), f"write api.graphql.schema.served_sdl() to {FILE}"


def test_no_breaking_change_since_the_last_release() -> None:
    described = git("describe", "--tags", "--abbrev=0")
    released = git("show", f"{described.stdout.strip()}:{FILE}") if described.returncode == 0 else described
    if released.returncode != 0:
        pytest.skip("no release has a schema yet")
    assert find_breaking_changes(build_schema(released.stdout), build_schema(committed_sdl())) == []


def test_a_breaking_change_is_found() -> None:
    before = build_schema(committed_sdl())
    after = build_schema(committed_sdl().replace("  latestVersion: Int!\n", ""))
    assert [change.description for change in find_breaking_changes(before, after)] == [
        "Field Template.latestVersion was removed."
    ]


def git(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)

"""The AsyncAPI document is up to date, says what the catalogue says, and is valid to AsyncAPI's own parser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas import asyncapi
from schemas.codec import manifest, read_schema
from schemas.topics import catalogue
from tests.support.toolchains import node_project, tool

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ROOT / "docs" / "asyncapi.yaml"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(WRITTEN.read_text("utf-8"))
    return read


def test_document_is_what_the_command_writes() -> None:
    assert WRITTEN.read_text("utf-8") == asyncapi.text(), "run `heliograph schemas asyncapi > docs/asyncapi.yaml`"


def test_channels_are_the_topics_with_their_bindings(document: dict[str, Any]) -> None:
    assert document["asyncapi"].startswith("3.")
    assert list(document["channels"]) == list(catalogue())
    for name, topic in catalogue().items():
        binding = document["channels"][name]["bindings"]["kafka"]
        assert (binding["topic"], binding["partitions"]) == (name, topic.partitions["default"])
        config = binding["topicConfiguration"]
        assert ",".join(config["cleanup.policy"]) == topic.policy
        assert config.get("retention.ms") == (topic.retention_days and topic.retention_days * 86_400_000)


def test_messages_are_the_schemas_of_their_topics(document: dict[str, Any]) -> None:
    messages = document["components"]["messages"]
    assert set(messages) == set(manifest())
    for name, message in messages.items():
        assert message["payload"]["schema"] == read_schema(name)
        assert message["bindings"]["kafka"]["schemaIdLocation"] == "payload"
        keys = {topic.key for topic in catalogue().values() if topic.record == name}
        assert keys == {message["bindings"]["kafka"]["key"]["description"]}, (
            "one key per record, or a message per topic"
        )


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = set(_references(document))
    assert references
    for reference in references:
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def _parse(path: Path) -> subprocess.CompletedProcess[str]:
    project = node_project(Path(__file__).with_name("asyncapi"))
    return subprocess.run(
        [tool("node"), "validate.mjs", str(path)], cwd=project, capture_output=True, text=True, timeout=120, check=False
    )


def test_asyncapis_own_parser_accepts_it() -> None:
    parsed = _parse(WRITTEN)
    assert parsed.returncode == 0, parsed.stderr
    assert json.loads(parsed.stdout) == {"channels": len(catalogue()), "operations": 2 * len(catalogue())}


@pytest.mark.parametrize(
    ("line", "broken"), [("type: record", "type: recrod"), ("schemaIdLocation: payload", "schemaIdLocation: tail")]
)
def test_asyncapis_own_parser_refuses_a_broken_one(tmp_path: Path, line: str, broken: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(asyncapi.text().replace(line, broken, 1), "utf-8")
    assert _parse(path).returncode == 1

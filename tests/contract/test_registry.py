"""A Schema Registry in line with our schemas: on confluent-kafka's own in-memory client, and on a real one."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka.schema_registry import (
    RegisteredSchema,
    Schema,
    SchemaRegistryClient,
    SchemaRegistryError,
    ServerConfig,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from runtime.errors import RegistryError, SettingsError, UnavailableError
from runtime.registry import connect, diff, register, use_wire_ids, version_ids, wire_ids
from runtime.settings import SchemaRegistrySettings, Settings
from schemas.codec import DecodeError, RecordCodec, iter_examples, manifest, read_schema, read_versions
from schemas.events import RecordName
from schemas.topics import STATUS, catalogue, requests_topic
from tests.support.apicurio import NOT_ASKED_FOR, running_apicurio, wanted

REQUESTS = requests_topic("normal")


class Memory(type(SchemaRegistryClient.new_client({"url": "mock://heliograph"}))):  # type: ignore[misc]
    """The in-memory client as registries are: one id per schema whatever the subject, modes are kept.

    Its ids start at 1001 here, so that none is the manifest's by accident.
    """

    def __init__(self) -> None:
        super().__init__({"url": "mock://heliograph"})
        self.configs: dict[str, ServerConfig] = {}
        for number in range(1_000):
            self.register_schema(
                f"other-{number}", Schema(json.dumps({"type": "fixed", "name": "F", "size": number + 1}), "AVRO")
            )

    def register_schema_full_response(self, subject_name: str, schema: Schema, normalize_schemas: bool = False) -> Any:
        known = next((found for found in self._store.schema_id_index.values() if found.schema == schema), None)
        if known is None:
            return super().register_schema_full_response(subject_name, schema, normalize_schemas)
        registered = RegisteredSchema(
            schema_id=known.schema_id,
            guid=known.guid,
            schema=schema,
            subject=subject_name,
            version=len(self.get_versions(subject_name)) + 1,
        )
        self._store.subject_schemas[subject_name].add(registered)
        return registered

    def get_config(self, subject_name: str) -> ServerConfig:
        if subject_name not in self.configs:
            raise SchemaRegistryError(404, 40408, "no compatibility for this subject")
        return self.configs[subject_name]

    def set_config(self, subject_name: str, config: ServerConfig) -> ServerConfig:
        self.configs[subject_name] = config
        return config


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_apicurio(tmp_path_factory.mktemp("apicurio")) as url:
        yield url


@pytest.fixture(
    scope="module",
    params=[
        "memory",
        pytest.param("apicurio", marks=[pytest.mark.registry, pytest.mark.skipif(not wanted(), reason=NOT_ASKED_FOR)]),
    ],
)
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        yield Memory()
        return
    with connect(SchemaRegistrySettings(url=request.getfixturevalue("apicurio"))) as real:
        yield real


def heliograph(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HELIOGRAPH_SCHEMA_REGISTRY__URL": url}
    return subprocess.run(
        [sys.executable, "-m", "console.cli", "schemas", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_registering_twice_does_nothing_the_second_time(client: Any) -> None:
    before = diff(client)
    assert {(d.what, d.actual) for d in before} == {("schema", "missing"), ("compatibility", "unset")}
    schemas = sum(len(read_versions(topic.record)) for topic in catalogue().values())
    assert len(before) == schemas + len(catalogue())
    with pytest.raises(RegistryError, match="heliograph schemas register"):
        version_ids(client)
    assert register(client) == before
    assert diff(client) == register(client) == []
    assert set(client.get_subjects()) >= {f"{topic}-value" for topic in catalogue()}


def test_compacted_topics_are_full_transitive_and_the_others_backward(client: Any) -> None:
    register(client)
    for topic in catalogue().values():
        wanted_mode = "FULL_TRANSITIVE" if "compact" in topic.policy else "BACKWARD_TRANSITIVE"
        config = client.get_config(f"{topic.name}-value")
        assert (config.compatibility or config.compatibility_level).value == wanted_mode


def test_a_record_has_one_id_on_all_its_topics(client: Any) -> None:
    register(client)
    ids = version_ids(client)
    assert set(ids) == set(manifest())
    every = [one for of_record in ids.values() for one in of_record]
    assert len(set(every)) == len(every) == sum(len(read_versions(name)) for name in manifest())


@pytest.mark.parametrize("name", sorted(manifest()))
def test_confluents_serializers_and_our_codec_read_each_other(client: Any, name: RecordName) -> None:
    register(client)
    topic = next(topic.name for topic in catalogue().values() if topic.record == name)
    ours = RecordCodec(name)
    ours.use_ids(version_ids(client)[name])
    serializer = AvroSerializer(
        client,
        json.dumps(read_schema(name)),
        conf={"auto.register.schemas": False, "use.schema.id": ours.schema_id, "subject.name.strategy.type": "TOPIC"},
    )
    deserializer = AvroDeserializer(client, conf={"subject.name.strategy.type": "TOPIC"})
    context = SerializationContext(topic, MessageField.VALUE)
    for _, _, of, record in iter_examples():
        if of == name:
            full = ours.decode(ours.encode(record))  # with defaults: their writer takes no text for bytes
            theirs = serializer(full, context)
            assert theirs == ours.encode(full)
            assert _plain(deserializer(theirs, context)) == full


def _plain(value: Any) -> Any:
    """Their logical types as ours: text and milliseconds."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case UUID():
            return str(value)
        case datetime():
            return round(value.timestamp() * 1_000)
    return value


def test_another_version_on_top_and_another_mode_are_found() -> None:
    memory = Memory()
    register(memory)
    newer = copy.deepcopy(read_schema("NotificationRequest"))
    newer["fields"].append({"name": "campaign", "type": ["null", "string"], "default": None})
    memory.register_schema(f"{REQUESTS}-value", Schema(json.dumps(newer), "AVRO"))
    memory.configs[f"{STATUS}-value"] = ServerConfig.from_dict({"compatibility": "NONE"})
    assert {(d.subject, d.what, d.actual) for d in diff(memory)} == {
        (f"{REQUESTS}-value", "latest", f"id {1_001 + sum(len(read_versions(name)) for name in manifest())}"),
        (f"{STATUS}-value", "compatibility", "NONE"),
    }


def test_role_writes_the_registrys_ids_and_reads_the_manifests_too(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, own = Memory(), {name: RecordCodec(name) for name in manifest()}
    register(memory)
    examples = {name: record for _, _, name, record in iter_examples()}
    before = {name: own[name].encode(examples[name]) for name in own}
    monkeypatch.setattr("runtime.registry.connect", lambda _: nullcontext(memory))
    monkeypatch.setattr("runtime.registry.codec", own.get)
    settings = Settings(schema_registry=SchemaRegistrySettings(url="mock://heliograph"))
    use_wire_ids(settings)
    assert wire_ids(settings) == {name: own[name].schema_id for name in own}
    for name, each in own.items():
        after = each.encode(examples[name])
        assert int.from_bytes(after[1:5], "big") > 1_000
        assert each.decode(after) == each.decode(before[name])
    with pytest.raises(DecodeError, match="schema id"):
        own["Timer"].decode(own["Template"].encode(examples["Template"]))


def test_without_a_registry_the_ids_are_the_manifests() -> None:
    use_wire_ids(Settings())
    assert wire_ids(Settings()) == {name: entry["id"] for name, entry in manifest().items()}
    with pytest.raises(SettingsError, match="HELIOGRAPH_SCHEMA_REGISTRY__URL"), connect(SchemaRegistrySettings()):
        pass


@pytest.mark.parametrize("url", ["ftp://registry", ""])
def test_wrong_address_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError, match="HELIOGRAPH_SCHEMA_REGISTRY"), connect(SchemaRegistrySettings(url=url)):
        pass


def test_registry_that_is_not_there_is_one_line() -> None:
    settings = Settings(schema_registry=SchemaRegistrySettings(url="http://127.0.0.1:1"))
    with pytest.raises(UnavailableError, match="cannot be reached"):
        use_wire_ids(settings)
    ended = heliograph("http://127.0.0.1:1", "check")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "cannot be reached" in ended.stderr


@pytest.mark.registry
@pytest.mark.skipif(not wanted(), reason=NOT_ASKED_FOR)
def test_commands_against_a_real_registry(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_apicurio(tmp_path_factory.mktemp("apicurio-cli")) as url:
        missing = heliograph(url, "check", "--json")
        assert missing.returncode == 1
        assert len(json.loads(missing.stdout)) == 2 * len(catalogue())
        assert heliograph(url, "register").returncode == 0
        assert json.loads(heliograph(url, "register", "--json").stdout) == []
        assert heliograph(url, "check").returncode == 0
        broken = copy.deepcopy(read_schema("NotificationRequest"))
        broken["fields"].append({"name": "cost", "type": "int"})
        text = json.dumps(broken).replace('"{}"', r'"\u007b\u007d"')
        with connect(SchemaRegistrySettings(url=url)) as client:
            # The mode that was set is the registry's to keep.
            with pytest.raises(SchemaRegistryError) as refused:
                client.register_schema(f"{REQUESTS}-value", Schema(text, "AVRO"))
            assert refused.value.http_status_code == 409

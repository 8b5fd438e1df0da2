"""A Schema Registry (Confluent's API) in line with our schemas, and its ids on the wire.

Subjects are `<topic>-value` (TopicNameStrategy). Schemas are registered by `heliograph schemas register`, never by a
producer; a role looks the ids up once, at its start. Without a registry the ids are those of schemas/manifest.json.

May import confluent_kafka.schema_registry and the HTTP client below it, when a registry is asked. Never: Kafka,
an encoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from runtime.errors import RegistryError, SettingsError, UnavailableError
from runtime.settings import SchemaRegistrySettings, Settings
from schemas.codec import codec, manifest, read_versions
from schemas.events import RecordName
from schemas.topics import Topic, catalogue

_REGISTER = "run `heliograph schemas register`"
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class SchemaDifference:
    """One way in which a subject of the registry is not what our schemas want."""

    subject: str
    what: Literal["schema", "latest", "compatibility"]
    wanted: str
    actual: str


def subject_of(topic: str) -> str:
    """TopicNameStrategy, set by name: what every serializer and console assumes."""
    return f"{topic}-value"


def compatibility_of(topic: Topic) -> str:
    """Values of a compacted topic are kept without limit, so there both directions hold against every version."""
    return "FULL_TRANSITIVE" if "compact" in topic.policy else "BACKWARD_TRANSITIVE"


@contextmanager
def connect(settings: SchemaRegistrySettings) -> Iterator[Any]:
    """A client of the configured registry. Raises SettingsError without one."""
    if settings.url is None:
        raise SettingsError("no Schema Registry is configured: set HELIOGRAPH_SCHEMA_REGISTRY__URL")
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as exc:
        raise SettingsError("a Schema Registry needs `pip install heliograph[registry]`") from exc
    options: dict[str, Any] = {"url": settings.url, "timeout": 10, "max.retries": 2, "retries.wait.ms": 200}
    if settings.username is not None:
        options["basic.auth.user.info"] = f"{settings.username}:{settings.password.get_secret_value()}"
    try:
        client = SchemaRegistryClient.new_client(options)
    except ValueError as exc:
        raise SettingsError(f"HELIOGRAPH_SCHEMA_REGISTRY: {exc}") from exc
    try:
        yield client
    finally:
        client.close()


@cache
def _http_errors() -> tuple[type[Exception], ...]:
    # Which of the two the client is built on depends on what is installed beside it.
    modules = [import_module(name) for name in ("httpx2", "httpx") if find_spec(name)]
    return tuple(error for module in modules for error in (module.HTTPError, module.InvalidURL))


@contextmanager
def _own_errors(subject: str) -> Iterator[None]:
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    try:
        yield
    except SchemaRegistryError as exc:
        raise RegistryError(f"the Schema Registry refuses {subject}: {' '.join(str(exc).split())[:300]}") from exc
    except _http_errors() as exc:
        raise UnavailableError(f"the Schema Registry cannot be reached: {exc or type(exc).__name__}") from exc


def _schema(schema: dict[str, Any]) -> Any:
    from confluent_kafka.schema_registry import Schema

    # Apicurio 3.3 takes no schema with the default "{}" for Avro; with the braces escaped it is the same JSON.
    return Schema(json.dumps(schema).replace('"{}"', r'"\u007b\u007d"'), "AVRO")


def _lookup(client: Any, subject: str, schema: dict[str, Any]) -> Any:
    """The registered version of a schema, None where the subject has none like it."""
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    with _own_errors(subject):
        try:
            return client.lookup_schema(subject, _schema(schema))
        except SchemaRegistryError as exc:
            if exc.http_status_code == _NOT_FOUND:
                return None
            raise


def _compatibility(client: Any, subject: str) -> str:
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    with _own_errors(subject):
        try:
            config = client.get_config(subject)
        except SchemaRegistryError as exc:
            if exc.http_status_code == _NOT_FOUND:
                return "unset"
            raise
    level = config and (config.compatibility or config.compatibility_level)
    return level.value if level else "unset"


def diff(client: Any) -> list[SchemaDifference]:
    """Every difference, [] when the registry is as our schemas want it."""
    found: list[SchemaDifference] = []
    for topic in catalogue().values():
        subject = subject_of(topic.name)
        wanted = compatibility_of(topic)
        actual = _compatibility(client, subject)
        if actual != wanted:
            found.append(SchemaDifference(subject, "compatibility", wanted, actual))
        versions = read_versions(topic.record)
        registered = [_lookup(client, subject, schema) for _, schema in versions]
        for (manifest_id, _), version in zip(versions, registered, strict=True):
            if version is None:
                found.append(
                    SchemaDifference(subject, "schema", f"{topic.record} (manifest id {manifest_id})", "missing")
                )
        if registered[-1] is not None:
            with _own_errors(subject):
                latest = client.get_latest_version(subject)
            if latest.schema_id != registered[-1].schema_id:
                # Another client registered a version that this release does not know.
                found.append(
                    SchemaDifference(subject, "latest", f"id {registered[-1].schema_id}", f"id {latest.schema_id}")
                )
    return found


def register(client: Any) -> list[SchemaDifference]:
    """Set what differs and return it; nothing is done twice. Raises RegistryError when the registry refuses a version."""
    from confluent_kafka.schema_registry import ConfigCompatibilityLevel, ServerConfig

    differences = diff(client)
    records = {subject_of(topic.name): topic.record for topic in catalogue().values()}
    # Versions first: some registries keep the mode of a subject only once it exists.
    for subject in dict.fromkeys(d.subject for d in differences if d.what == "schema"):
        for _, schema in read_versions(records[subject]):
            if _lookup(client, subject, schema) is None:
                with _own_errors(subject):
                    client.register_schema(subject, _schema(schema))
    for difference in differences:
        if difference.what == "compatibility":
            with _own_errors(difference.subject):
                client.set_config(
                    difference.subject, ServerConfig(compatibility=ConfigCompatibilityLevel(difference.wanted))
                )
    return [difference for difference in differences if difference.what != "latest"]


def version_ids(client: Any) -> dict[RecordName, list[int]]:
    """The registry's id of every version of every record, oldest first. Raises RegistryError where one is missing."""
    found: dict[RecordName, list[int]] = {}
    for topic in catalogue().values():
        subject = subject_of(topic.name)
        ids = []
        for _, schema in read_versions(topic.record):
            version = _lookup(client, subject, schema)
            if version is None:
                raise RegistryError(f"{topic.record} is not registered as {subject}; {_REGISTER}")
            ids.append(int(version.schema_id))
        if found.setdefault(topic.record, ids) != ids:
            raise RegistryError(f"{subject} has other ids than the other topics of {topic.record}: {ids}")
    return found


def wire_ids(settings: Settings) -> dict[RecordName, int]:
    """The id that every record is written with: the registry's where one is configured, else the manifest's."""
    if settings.schema_registry.url is None:
        return {name: entry["id"] for name, entry in manifest().items()}
    with connect(settings.schema_registry) as client:
        return {name: ids[-1] for name, ids in version_ids(client).items()}


def use_wire_ids(settings: Settings) -> None:
    """Make this process's codecs write the registry's ids, and read them beside the manifest's; nothing without one."""
    if settings.schema_registry.url is None:
        return
    with connect(settings.schema_registry) as client:
        for name, ids in version_ids(client).items():
            codec(name).use_ids(ids)

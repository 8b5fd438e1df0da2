"""The wire format: Confluent framing (0x00, 4-byte big-endian schema id, Avro body) on fastavro.

Ids come from schemas/manifest.json; a Schema Registry's are added with `use_ids` (runtime/registry.py looks them up). Times
are int milliseconds on both sides: the logical types of the .avsc are for other readers, converting them costs more than the
rest of the decode.
The only module that imports fastavro. Never: a registry client, a Kafka client, meaning of a field.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any, cast

import fastavro

from schemas.events import RECORD_TYPES, RecordName
from schemas.reader import ERRORS, compile_head_reader, compile_reader, compile_record_reader
from schemas.topics import MAX_DEAD_LETTER_BYTES, MAX_VALUE_BYTES
from schemas.writer import ERRORS as WRITE_ERRORS
from schemas.writer import compile_writer

_HEADER = struct.Struct(">BI")
_INT_LIMIT = 1 << 31
# What fastavro raises on bytes that are not the schema's, seen by fuzzing it.
_UNDECODABLE = (
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
    MemoryError,
    StopIteration,
    struct.error,
    fastavro.read.SchemaResolutionError,
)


class RecordTooLarge(ValueError):
    """A record is larger than its topic may hold; the message gives both sizes in bytes."""

    def __init__(self, name: str, size: int, limit: int) -> None:
        super().__init__(f"the {name} has {size:,} bytes, {limit:,} are allowed")
        self.size = size
        self.limit = limit


class DecodeError(ValueError):
    """The bytes are not a record of the expected kind; the message says why, without the bytes."""


def _plain(node: Any) -> Any:
    """The schema without logical types and docs."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {key: _plain(value) for key, value in node.items() if key not in ("logicalType", "doc")}


def _int_paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a record of this schema has Avro ints: the names that lead to each, through records and unions."""
    if isinstance(node, list):
        for branch in node:
            yield from _int_paths(branch, path)
    elif isinstance(node, Mapping) and node["type"] == "record":
        for field in node["fields"]:
            yield from _int_paths(field["type"], (*path, field["name"]))
    elif isinstance(node, Mapping) and node["type"] in ("array", "map"):
        if any(_int_paths(node.get("items", node.get("values")))):
            raise ValueError(f"{'.'.join(path)}: an int inside a list or map is not checked; make it a long")
    elif (node["type"] if isinstance(node, Mapping) else node) == "int":
        yield path


def _with_bytes_defaults(parsed: Any) -> Any:
    """A parsed schema whose bytes defaults are bytes: the parser wants text there, the writer bytes."""
    for field in parsed["fields"]:
        if field["type"] == "bytes" and isinstance(field.get("default"), str):
            field["default"] = field["default"].encode("latin-1")
    return parsed


def read_schema(name: RecordName) -> dict[str, Any]:
    """The .avsc of a record as parsed JSON, logical types and docs included."""
    return _read_file(manifest()[name]["file"])


def plain_schema(name: RecordName) -> dict[str, Any]:
    """The latest schema without logical types and docs: what the bytes are made of."""
    return cast(dict[str, Any], _plain(read_schema(name)))


def read_versions(name: RecordName) -> list[tuple[int, dict[str, Any]]]:
    """(manifest id, schema) of every version of a record, oldest first; the last one is what is written."""
    entry = manifest()[name]
    return [(version["id"], _read_file(version["file"])) for version in (*entry.get("earlier", ()), entry)]


def _read_file(path: str) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(files("schemas").joinpath(path).read_text("utf-8")))


def _parse(schema: Mapping[str, Any]) -> Any:
    # An own namespace of names each time: two versions of a record have the same name.
    return _with_bytes_defaults(fastavro.parse_schema(_plain(schema), named_schemas={}))


@cache
def manifest() -> dict[RecordName, dict[str, Any]]:
    """Record name → {"id", "file"} of schemas/manifest.json, and `earlier`: a list of the same, where there is one."""
    return cast(
        dict[RecordName, dict[str, Any]], json.loads(files("schemas").joinpath("manifest.json").read_text("utf-8"))
    )


class RecordCodec:
    """Encodes one kind of record in its latest version, and decodes every version into the latest."""

    def __init__(self, name: RecordName) -> None:
        self.name = name
        self.max_bytes = MAX_DEAD_LETTER_BYTES if name == "DeadLetter" else MAX_VALUE_BYTES
        versions = [(schema_id, _parse(schema)) for schema_id, schema in read_versions(name)]
        self._schema = versions[-1][1]
        self._ints = tuple(_int_paths(read_schema(name)))
        # (writer's schema, reader's schema); no reader's schema where both are one: resolution costs time.
        self._versions = [(schema, None if schema is self._schema else self._schema) for _, schema in versions]
        self._by_prefix: dict[bytes, tuple[Any, Any]] = {}
        self._read = compile_record_reader(plain_schema(name))
        self._write = compile_writer(plain_schema(name))
        self.use_ids([schema_id for schema_id, _ in versions])

    def use_ids(self, schema_ids: Sequence[int]) -> None:
        """Write the last of these ids from now on, and read them all beside the manifest's.

        One id per version, oldest first. An id that the manifest gives to another version here means what is given.
        """
        for schema_id, schemas in zip(schema_ids, self._versions, strict=True):
            self._by_prefix[_HEADER.pack(0, schema_id)] = schemas
        self.schema_id = schema_ids[-1]
        self._prefix = _HEADER.pack(0, self.schema_id)

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """Framed bytes. Raises RecordTooLarge beyond `max_bytes`; ValueError, TypeError or KeyError when the record does
        not fit its schema."""
        try:
            value = self._prefix + b"".join(self._write(record))
        except WRITE_ERRORS:  # a default, a number of another type, or a mistake: fastavro knows which
            value = self._prefix + self._write_by_fastavro(record)
        if len(value) > self.max_bytes:
            raise RecordTooLarge(self.name, len(value), self.max_bytes)
        return value

    def _write_by_fastavro(self, record: Mapping[str, Any]) -> bytes:
        out = BytesIO()
        fastavro.schemaless_writer(out, self._schema, record)
        return out.getvalue()

    def decode(self, raw: bytes | None) -> dict[str, Any]:
        """The record. Raises DecodeError for anything but exactly one record of this kind."""
        if raw is None:
            raise DecodeError("no value (a tombstone) where a record is expected")
        if len(raw) > self.max_bytes:
            raise DecodeError(f"{len(raw)} bytes are more than the {self.max_bytes} allowed")
        schemas = self._by_prefix.get(raw[:5])
        if schemas is None:
            raise DecodeError(self._wrong_prefix(raw))
        if schemas[1] is None:  # the latest version, as almost always
            try:
                return self._read(raw, 5)
            except ERRORS:  # fastavro says what is wrong with it
                pass
        return self._read_by_fastavro(raw, schemas)

    def _read_by_fastavro(self, raw: bytes, schemas: tuple[Any, Any]) -> dict[str, Any]:
        """The record, an earlier version resolved into the latest. Raises DecodeError."""
        body = BytesIO(raw)
        body.seek(5)
        try:
            record = fastavro.schemaless_reader(body, *schemas)
        except _UNDECODABLE as exc:
            raise DecodeError(f"not a {self.name}: {type(exc).__name__}") from exc
        if body.tell() != len(raw):
            raise DecodeError(f"{len(raw) - body.tell()} bytes follow the {self.name}")
        # fastavro reads an int of any size, but neither our writer nor ClickHouse can store it: refuse it here.
        for path in self._ints:
            value: Any = record
            for name in path:
                value = value and value[name]
            if value is not None and not -_INT_LIMIT <= value < _INT_LIMIT:
                raise DecodeError(f"{'.'.join(path)} of the {self.name} is no 32-bit number")
        return cast(dict[str, Any], record)

    def head_decoder(self, fields: int) -> Callable[[bytes | None], dict[str, Any]]:
        """A decoder of the first fields alone, for who reads a million records and needs two fields of each.

        It checks size, schema id and those fields, and never looks at what follows: whoever acts on a record decodes the
        whole of it then, and is ready for a DecodeError.
        """
        heads: dict[int, Callable[[bytes, int], dict[str, Any]]] = {}
        wanted = plain_schema(self.name)["fields"][:fields]
        for (schema, _), (_, version) in zip(self._versions, read_versions(self.name), strict=True):
            head = _plain(version)["fields"][:fields]
            assert head == wanted, f"the first fields of {self.name} differ between its versions"
            heads[id(schema)] = compile_head_reader({**version, "fields": head})

        def decode(raw: bytes | None) -> dict[str, Any]:
            if raw is None or len(raw) > MAX_VALUE_BYTES or (schemas := self._by_prefix.get(raw[:5])) is None:
                return self.decode(raw)  # which says why not
            try:
                return heads[id(schemas[0])](raw, 5)
            except ERRORS as exc:
                raise DecodeError(f"not a {self.name}: {type(exc).__name__}") from exc

        return decode

    def reader(self, *fields: str) -> Callable[[bytes | None], tuple[Any, ...]]:
        """A decoder of these fields as a tuple, a record among them as a tuple of its own; three times as fast as `decode`.

        It takes and refuses what `decode` does, and raises DecodeError.
        """
        read = compile_reader(plain_schema(self.name), fields)

        def decode(raw: bytes | None) -> tuple[Any, ...]:
            if raw is None or len(raw) > MAX_VALUE_BYTES or (schemas := self._by_prefix.get(raw[:5])) is None:
                raise self._refused(raw)
            if schemas[1] is not None:  # an earlier version
                record = self.decode(raw)
                values = (record[field] for field in fields)
                return tuple(tuple(value.values()) if isinstance(value, dict) else value for value in values)
            try:
                return read(raw, 5)
            except ERRORS as exc:
                raise DecodeError(f"not a {self.name}: {type(exc).__name__}") from exc

        return decode

    def framed(self, values: Sequence[bytes | None]) -> list[bool]:
        """Of each value whether it may be a record of the latest version, by its frame and its size."""
        frames = {frame for frame, (_, reader) in self._by_prefix.items() if reader is None}
        return [v is not None and len(v) <= MAX_VALUE_BYTES and v[:5] in frames for v in values]

    def _refused(self, raw: bytes | None) -> DecodeError:
        """Why these bytes are not even looked at."""
        try:
            self.decode(raw)
        except DecodeError as exc:
            return exc
        return DecodeError("larger than what is read here")

    def _wrong_prefix(self, raw: bytes) -> str:
        if len(raw) < 5 or raw[0] != 0:
            return "not in the Confluent wire format (0x00, 4-byte schema id, Avro body)"
        return f"schema id {_HEADER.unpack(raw[:5])[1]} is not {self.schema_id}, the id of {self.name}"


@cache
def codec(name: RecordName) -> RecordCodec:
    """The codec of a record, made once."""
    return RecordCodec(name)


def resolve(record: Mapping[str, Any], writer: Mapping[str, Any], reader: Mapping[str, Any]) -> dict[str, Any]:
    """The record as a reader with one schema sees what a writer with another wrote.

    Raises DecodeError when it cannot, ValueError, TypeError or KeyError when the record does not fit the writer's schema.
    """
    written = _parse(writer)
    out = BytesIO()
    fastavro.schemaless_writer(out, written, record)
    out.seek(0)
    try:
        return cast(dict[str, Any], fastavro.schemaless_reader(out, written, _parse(reader)))
    except _UNDECODABLE as exc:
        raise DecodeError(f"{type(exc).__name__}: {exc}") from exc


def from_example(name: RecordName, example: Mapping[str, Any]) -> dict[str, Any]:
    """A record from its readable JSON form, in which bytes are written as text."""

    def convert(schema: Any, value: Any) -> Any:
        if isinstance(schema, list):
            branch = [item for item in schema if item != "null"]
            return None if value is None else convert(branch[0], value)
        kind = schema["type"] if isinstance(schema, dict) else schema
        if kind == "bytes":
            return value.encode() if isinstance(value, str) else value
        if kind == "record":
            fields = {field["name"]: field["type"] for field in schema["fields"]}
            return {key: convert(fields[key], item) for key, item in value.items()}
        if kind == "array":
            return [convert(schema["items"], item) for item in value]
        if kind == "map":
            return {key: convert(schema["values"], item) for key, item in value.items()}
        return convert(kind, value) if isinstance(kind, dict | list) else value

    return cast(dict[str, Any], convert(read_schema(name), example))


def iter_examples() -> Iterator[tuple[str, str, RecordName, dict[str, Any]]]:
    """Every packaged example as (topic, case, record name, record)."""
    from schemas.topics import catalogue

    root = files("schemas").joinpath("examples")
    for folder in sorted(root.iterdir(), key=lambda item: item.name):
        name = catalogue()[folder.name].record
        for path in sorted(folder.iterdir(), key=lambda item: item.name):
            yield (
                folder.name,
                path.name.removesuffix(".json"),
                name,
                from_example(name, json.loads(path.read_text("utf-8"))),
            )


assert set(RECORD_TYPES) == set(manifest()), "schemas/manifest.json and schemas/events.py name different records"

"""Decoders built once per schema: of some fields of a record, as a tuple, or of the whole record or its head, as a dictionary.

fastavro reads a field at a time through a file object, 12 µs for a status; this is a function written out for the one schema,
5 µs. Both take and refuse the same bytes (tests/unit/test_reader.py compares them), which matters: a record that one
stage takes and another dead-letters would never be accounted for.

    null, boolean, int, long, string, bytes, records, arrays, maps, and unions of null with one of these

May import the standard library. Never: a logical type; a default, since writer and reader have one schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

Read = Callable[[bytes, int], tuple[Any, ...]]
"""(bytes, where the body begins) → the wanted fields; a record inside is a tuple of all of its own."""

ERRORS = (IndexError, ValueError, OverflowError, MemoryError)
"""What a Read raises for bytes that are not exactly one record."""

_INT_LIMIT = 1 << 31
_LONG_MASK = (1 << 64) - 1


def _long(raw: bytes, i: int, first: int) -> tuple[int, int]:
    """The rest of an unsigned number whose first byte has a successor, and where it ends; 64 bits, as fastavro reads it."""
    value = first & 127
    shift = 7
    while True:
        byte = raw[i]
        i += 1
        value |= (byte & 127) << (shift & 63)  # of a number longer than 10 bytes, as the processor shifts for fastavro
        if byte < 128:
            return value & _LONG_MASK, i
        shift += 7


class _Writer:
    """Lines of the function; records inside become dictionaries where `dicts` says so, else tuples."""

    def __init__(self, *, dicts: bool) -> None:
        self.lines: list[str] = []
        self._dicts = dicts
        self._names = count()

    def name(self) -> str:
        return f"v{next(self._names)}"

    def put(self, depth: int, *lines: str) -> None:
        self.lines += [" " * depth + line for line in lines]

    def number(self, depth: int) -> None:
        """`n` is the next unsigned number."""
        self.put(depth, "n = raw[i]", "i += 1", "if n > 127: n, i = long(raw, i, n)")

    def value(self, schema: Any, depth: int, *, kept: bool) -> str:
        """Read one value; the name that holds it. What is not kept is checked all the same."""
        if isinstance(schema, list):
            return self._union(schema, depth, kept=kept)
        kind = schema["type"] if isinstance(schema, Mapping) else schema
        if isinstance(kind, Mapping | list):
            return self.value(kind, depth, kept=kept)
        name = self.name()
        if kind in ("string", "bytes"):
            self.number(depth)
            # A negative length is odd; all are looked at together, at the end. One that leads too far does so too.
            self.put(depth, "odd |= n", "j = i + (n >> 1)")
            if kind == "string":
                self.put(depth, f"{name} = raw[i:j].decode()")
            elif kept:
                self.put(depth, f"{name} = raw[i:j]")
            self.put(depth, "i = j")
        elif kind in ("int", "long"):
            self.number(depth)
            self.put(depth, f"{name} = (n >> 1) ^ -(n & 1)")
            if kind == "int":
                self.put(
                    depth,
                    f"if not -{_INT_LIMIT} <= {name} < {_INT_LIMIT}: raise ValueError('an int of more than 32 bits')",
                )
        elif kind == "boolean":
            self.put(depth, f"{name} = raw[i] != 0", "i += 1")
        elif kind == "record":
            fields = [(each["name"], self.value(each["type"], depth, kept=kept)) for each in schema["fields"]]
            self.put(depth, f"{name} = {self.record(fields)}" if kept else "pass")
        elif kind in ("array", "map"):
            self._blocks(schema, name, depth, kept=kept)
        else:
            raise ValueError(f"no reader for {kind}")
        return name

    def record(self, fields: Sequence[tuple[str, str]]) -> str:
        """The expression of a record whose fields are in these names."""
        if self._dicts:
            return f"{{{', '.join(f'{field!r}: {name}' for field, name in fields)}}}"
        return f"({', '.join(name for _, name in fields)},)"

    def _union(self, schema: Sequence[Any], depth: int, *, kept: bool) -> str:
        if len(schema) != 2 or schema[0] != "null":
            raise ValueError("a union is of null and one other type here")
        name = self.name()
        self.number(depth)
        # Indexes -1 and -2 count from the end, in fastavro and so in everything that reads the topics.
        self.put(depth, "if n == 2 or n == 1:")
        inner = self.value(schema[1], depth + 1, kept=kept)
        if kept:
            self.put(depth + 1, f"{name} = {inner}")
        self.put(depth, f"elif n == 0 or n == 3: {name} = None", "else: raise ValueError('no such branch')")
        return name

    def _blocks(self, schema: Mapping[str, Any], name: str, depth: int, *, kept: bool) -> None:
        is_map = schema["type"] == "map"
        if kept and is_map and not self._dicts:
            raise ValueError("a map is not kept")
        left = self.name()
        if kept:
            self.put(depth, f"{name} = {'{}' if is_map else '[]'}")
        self.put(depth, "while True:")
        self.number(depth + 1)
        self.put(depth + 1, f"{left} = (n >> 1) ^ -(n & 1)", f"if {left} == 0: break", f"if {left} < 0:")
        self.number(depth + 2)  # the block's size in bytes, for who wants to skip it
        self.put(depth + 2, f"{left} = -{left}")
        self.put(depth + 1, f"while {left}:")
        self.put(depth + 2, f"{left} -= 1")
        key = self.value("string", depth + 2, kept=kept) if is_map else None
        item = self.value(schema.get("items", schema.get("values")), depth + 2, kept=kept)
        if kept:
            self.put(depth + 2, f"{name}[{key}] = {item}" if key else f"{name}.append({item})")


def compile_reader(schema: Mapping[str, Any], wanted: Sequence[str]) -> Read:
    """A reader of these fields of a record, in this order. Raises ValueError for a schema with anything else in it."""
    read: Read = _compile(schema, wanted, dicts=False)
    return read


def compile_record_reader(schema: Mapping[str, Any]) -> Callable[[bytes, int], dict[str, Any]]:
    """A reader of the whole record as a dictionary. Raises ValueError for a schema with anything else in it."""
    read: Callable[[bytes, int], dict[str, Any]] = _compile(
        schema, [field["name"] for field in schema["fields"]], dicts=True
    )
    return read


def compile_head_reader(schema: Mapping[str, Any]) -> Callable[[bytes, int], dict[str, Any]]:
    """A reader of a record that more bytes may follow. Raises ValueError for a schema with anything else in it."""
    names = [field["name"] for field in schema["fields"]]
    read: Callable[[bytes, int], dict[str, Any]] = _compile(schema, names, dicts=True, whole=False)
    return read


def _compile(schema: Mapping[str, Any], wanted: Sequence[str], *, dicts: bool, whole: bool = True) -> Any:
    out = _Writer(dicts=dicts)
    out.put(0, "def read(raw, i):")
    out.put(1, "odd = 0")
    names = {field["name"]: out.value(field["type"], 1, kept=field["name"] in wanted) for field in schema["fields"]}
    ends_wrong = "i != len(raw)" if whole else "i > len(raw)"
    out.put(1, f"if odd & 1 or {ends_wrong}: raise ValueError('not exactly one record')")
    out.put(1, f"return {out.record([(name, names[name]) for name in wanted])}")
    scope: dict[str, Any] = {"long": _long}
    exec("\n".join(out.lines), scope)  # the text is made of the packaged schema alone
    return scope["read"]

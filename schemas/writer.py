"""An encoder made for a schema once: a function written out for it, in a third of the time that fastavro takes.

It writes what fastavro writes, byte for byte (tests/unit/test_writer.py), for records whose values have exactly the types of
schemas/events.py. Anything else makes it raise: the caller asks fastavro then, which takes it or says what is wrong with it.

    null, boolean, int, long, string, bytes, records, arrays, maps, and unions of null with one of these

May import the standard library. Never: a logical type; a default; an error that a caller sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

Write = Callable[[Mapping[str, Any]], list[bytes]]
"""A record → the pieces of its body."""

ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError)
"""What a Write raises for a record that it leaves to fastavro."""

_SHORT = 4_096
_LONG_LIMIT = 1 << 63


def _varint(value: int) -> bytes:
    """A number as Avro writes an int or a long: zigzag, seven bits a byte, the lowest first."""
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_VARINTS = [_varint(value) for value in range(_SHORT)]


class _Recent(dict[int, bytes]):
    """Numbers beyond the table as they were written last: the times of a batch are one."""

    def __missing__(self, value: int) -> bytes:
        if not -_LONG_LIMIT <= value < _LONG_LIMIT:
            raise OverflowError("not a long")
        if len(self) >= _SHORT:
            self.clear()
        self[value] = written = _varint(value)
        return written


class _Lines:
    """Lines of the function. Every piece of the body is appended to `out`, by the name `put`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names = count()

    def name(self) -> str:
        return f"v{next(self._names)}"

    def add(self, depth: int, *lines: str) -> None:
        self.lines += [" " * depth + line for line in lines]

    def value(self, schema: Any, value: str, depth: int) -> None:
        """Write the value that the expression `value` gives."""
        kind = schema["type"] if isinstance(schema, Mapping) else schema
        if isinstance(schema, list) or isinstance(kind, list):
            self._union(kind if isinstance(kind, list) else schema, value, depth)
        elif isinstance(kind, Mapping):
            self.value(kind, value, depth)
        else:
            self._plain(schema, kind, value, depth, "")

    def _union(self, schema: Sequence[Any], value: str, depth: int) -> None:
        if len(schema) != 2 or schema[0] != "null":
            raise ValueError("a union is of null and one other type here")
        name = self.name()
        self.add(depth, f"{name} = {value}", f"if {name} is None: put(NULL)", "else:")
        kind = schema[1]["type"] if isinstance(schema[1], Mapping) else schema[1]
        self._plain(schema[1], kind, name, depth + 1, "put(OTHER); ")

    def _plain(self, schema: Any, kind: Any, value: str, depth: int, before: str) -> None:
        name = self.name()
        if kind in ("string", "bytes"):
            taken = f"{value}.encode()" if kind == "string" else value
            self.add(depth, f"{before}{name} = {taken}", f"if {name}.__class__ is not bytes: raise TypeError")
            self._number(f"len({name})", depth)
            self.add(depth, f"put({name})")
        elif kind in ("int", "long"):
            self.add(depth, f"{before}{name} = {value}", f"if {name}.__class__ is not int: raise TypeError")
            self._number(name, depth)
        elif kind == "boolean":
            self.add(depth, f"{before}{name} = {value}")
            self.add(depth, f"put(TRUE if {name} is True else FALSE if {name} is False else TABLE['not a boolean'])")
        elif kind == "record":
            self.add(depth, f"{before}{name} = {value}", f"if {name}.__class__ is not dict: raise TypeError")
            for field in schema["fields"]:
                self.value(field["type"], _of(name, field), depth)
        elif kind in ("array", "map"):
            self._blocks(schema, kind, name, value, depth, before)
        else:
            raise ValueError(f"no writer for {kind}")

    def _number(self, value: str, depth: int) -> None:
        name = self.name()
        self.add(depth, f"{name} = {value}", f"put(TABLE[{name}] if 0 <= {name} < {_SHORT} else RECENT[{name}])")

    def _blocks(self, schema: Any, kind: str, name: str, value: str, depth: int, before: str) -> None:
        item = self.name()
        each = f"{item}k, {item} in {name}.items()" if kind == "map" else f"{item} in {name}"
        self.add(depth, f"{before}{name} = {value}")
        self.add(depth, f"if {name}.__class__ is not {'dict' if kind == 'map' else 'list'}: raise TypeError")
        self.add(depth, f"if {name}:")
        self._number(f"len({name})", depth + 1)
        self.add(depth + 1, f"for {each}:")
        if kind == "map":
            self.value("string", f"{item}k", depth + 2)
        self.value(schema["items" if kind == "array" else "values"], item, depth + 2)
        self.add(depth, "put(NULL)")


def _of(record: str, field: Mapping[str, Any]) -> str:
    """The expression of a field, which may be left out where its default is null; other defaults are fastavro's to fill in."""
    name = repr(field["name"])
    return f"{record}.get({name})" if field.get("default", ...) is None else f"{record}[{name}]"


def compile_writer(schema: Mapping[str, Any]) -> Write:
    """A writer of a record. Raises ValueError for a schema with anything else in it."""
    lines = _Lines()
    lines.add(0, "def write(record):")
    lines.add(1, "out = []", "put = out.append")
    for field in schema["fields"]:
        lines.value(field["type"], _of("record", field), 1)
    lines.add(1, "return out")
    scope: dict[str, Any] = {
        "NULL": b"\0",
        "OTHER": b"\2",
        "FALSE": b"\0",
        "TRUE": b"\1",
        "TABLE": _VARINTS,
        "RECENT": _Recent(),
    }
    exec("\n".join(lines.lines), scope)  # the text is made of the packaged schema alone
    write: Write = scope["write"]
    return write

"""Render a checked template with minijinja, within bounds of work and output.

The subset of the language (language.py) is the defence: fuel counts instructions, not work.
May import minijinja. Never: Kafka, a channel's meaning.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import minijinja
from jinja2 import nodes

from runtime.templates.language import LONG_TEXT, MAX_DIGITS, TAG, environment, printed_path, size_in_bytes

MAX_VALUE_CHARS = 64 * 1024
MAX_OUTPUT_BYTES = 1 << 20
FUEL = 50_000
MAX_COMPILED_BYTES = 16 << 20
"""Of guarded sources that an engine keeps compiled: compiled they take two to ten times as much."""

_PLAIN = re.compile(r"\s*([a-zA-Z]\w*(?:\.[a-zA-Z]\w*)*)\s*", re.ASCII)
_CONSTANTS = ("true", "false", "none")
_KEYWORD = re.compile(r"\{%[-+]?\s*(for|endfor|if|endif)\b")
_LOOP = re.compile(r"\{%([-+]?)\s*for\s+\w+\s+in\s(.*?)[-+]?%\}", re.DOTALL)
_BEFORE_FILTERS = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^|"'])*""", re.DOTALL)


class MissingVariable(Exception):
    """A path that the template prints is not in the data."""

    def __init__(self, path: str) -> None:
        super().__init__(f"variable {path} is missing")
        self.path = path


class RenderError(Exception):
    """The template does not fit the data: too long, a list printed as text, ..."""


def has_path(data: Any, path: str) -> bool:
    """Whether a dotted path leads to a value, null included."""
    for link in path.split("."):
        if isinstance(data, Mapping) and link in data:
            data = data[link]
        elif isinstance(data, list) and link.isdigit() and int(link) < len(data):
            data = data[int(link)]
        else:
            return False
    return True


def _plain_path(expression: str) -> tuple[str, ...] | None:
    """The path where nothing else is there to be parsed, as in most outputs: the parser takes 30 times as long."""
    found = _PLAIN.fullmatch(expression)
    return tuple(found[1].split(".")) if found and found[1].lower() not in _CONSTANTS else None


def _guard(match: re.Match[str]) -> str:
    """An output that reports a missing path: minijinja prints undefined as nothing and cannot distinguish it from null."""
    expression = match["expr"]
    if expression is None:
        return match[0]
    path = _needed_path(expression)
    if path is None:
        return match[0]
    found = _BEFORE_FILTERS.match(expression)
    base = found[0].strip() if found else expression
    opening, closing = match["open"], match["close"]
    return (
        f"{{%{opening} if {base} is defined %}}{{{{{expression}}}}}"
        f"{{% else %}}{{{{ _missing({'.'.join(path)!r}) }}}}{{% endif {closing}%}}"
    )


def _needed_path(expression: str) -> tuple[str, ...] | None:
    """The path that an output or a loop of this expression needs."""
    path = _plain_path(expression)
    if path is None:
        output = environment().parse("{{" + expression + "}}").body[0]
        path = printed_path(output.nodes[0]) if isinstance(output, nodes.Output) else None
    return path


def _guard_loop(tag: str) -> str:
    """A loop that every rendering reaches, after a check that its list exists: to minijinja a missing list would be empty."""
    loop = _LOOP.fullmatch(tag)
    path = _needed_path(loop[2]) if loop else None
    if loop is None or path is None:
        return tag
    return f"{{%{loop[1]} if {loop[2].strip()} is defined %}}{{% else %}}{{{{ _missing({'.'.join(path)!r}) }}}}{{% endif %}}{tag}"


def _guarded(source: str) -> str:
    """The source with its outputs and loops guarded; long text in a loop reports its length at every iteration."""
    parts: list[str] = []
    loops = depth = end = 0
    close = ""
    for match in TAG.finditer(source):
        parts.append(_count_long_text(source[end : match.start()], close if loops else None))
        end, tag = match.end(), match[0]
        close = tag[-3] if tag[-3] in "-+" else ""
        word = _KEYWORD.match(tag)
        opens = word is not None and not word[1].startswith("end")
        parts.append(_guard_loop(tag) if opens and depth == 0 and word and word[1] == "for" else _guard(match))
        if word is not None:
            depth += 1 if opens else -1
            loops += (1 if opens else -1) if word[1].endswith("for") else 0
    parts.append(source[end:])
    return "".join(parts)


def _count_long_text(text: str, close: str | None) -> str:
    """Text behind a tag that ends with `close` ("", "-" or "+"), written out by our own code; None outside loops."""
    if close is None or len(text) < LONG_TEXT:
        return text
    return f"{{{{ _text({size_in_bytes(text)}) {close}}}}}{text}"


def _missing(path: str) -> str:
    raise MissingVariable(path)


def _date(value: Any, style: str = "%Y-%m-%d") -> str:
    """ISO 8601 text or milliseconds since the epoch by an strftime style, UTC unless the text has an offset."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RenderError("date needs ISO 8601 text or milliseconds")
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value / 1000, UTC)
        return moment.strftime(style[:64])
    except (ValueError, OverflowError, OSError) as exc:
        raise RenderError("date needs ISO 8601 text or milliseconds") from exc


def _number(value: Any, decimals: int = 0) -> str:
    """1234.5 as 1,234.50 (decimals 2); every digit as it is, halves to the even neighbour."""
    text = str(int(value)) if isinstance(value, bool) else str(value).strip()
    if type(value) is float and type(decimals) is int and 0 <= decimals <= _FEW:
        digits = _PLAIN_NUMBER(text)
        if digits and len(digits[1]) <= decimals:
            return f"{value:,.{decimals}f}"  # fewer digits than a float holds, and all are shown: nothing is rounded
    try:
        number = Decimal(text)
        places = min(max(int(decimals), 0), 12)
    except (ArithmeticError, TypeError, ValueError, OverflowError) as exc:
        raise RenderError("number needs a number") from exc
    if not number.is_finite():
        raise RenderError("number needs a number, and not an infinite one")
    if len(text) > MAX_DIGITS or number.adjusted() > MAX_DIGITS:
        raise RenderError(f"number takes at most {MAX_DIGITS} digits")
    return f"{number:,.{places}f}"


_FEW = 5
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,9}\.([0-9]{1,5})").fullmatch
_AS_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_MANY_DIGITS = b"0" * 38
_SMALL = 1 << 127


def exact_numbers(data: dict[str, Any], raw: bytes | None = None) -> dict[str, Any]:
    """The data with whole numbers beyond 128 bits as text: the engine would print others in their place.

    `raw`, the JSON it was read from, says in a moment that there is none.
    """
    if raw is not None and _MANY_DIGITS not in raw.translate(_AS_ZERO):
        return data
    return {name: _exact(value) for name, value in data.items()}


def _exact(value: Any) -> Any:
    if type(value) is int:
        return value if -_SMALL <= value < _SMALL else str(value)
    if isinstance(value, dict):
        return {name: _exact(item) for name, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, list) else value


def _too_long() -> RenderError:
    return RenderError(f"the text is longer than {MAX_OUTPUT_BYTES} bytes")


_HELPERS = ("_missing", "_text")
"""What guarded sources call. No template can name them, and no data may."""
_HELPER_NAMES = frozenset(_HELPERS)


class Engine:
    """Compiled templates of one process, by content; not for use from several threads."""

    def __init__(self, max_compiled_bytes: int = MAX_COMPILED_BYTES) -> None:
        self._max_compiled_bytes = max_compiled_bytes
        self.compiled_bytes = 0
        """Of the guarded sources that are kept compiled."""
        self._compiled = 0
        self._length = 0
        self._names: OrderedDict[tuple[str, bool], tuple[str, int]] = OrderedDict()
        """(source, whether HTML) → the name it is compiled under, and the bytes it counts for; the oldest first. A string keeps
        its hash: no digest of it is made again."""
        self._environment = minijinja.Environment(
            undefined_behavior="chainable",
            keep_trailing_newline=True,
            fuel=FUEL,
            finalizer=self._finalize,
            auto_escape_callback=lambda name: name.endswith(".html"),
            filters={"date": _date, "number": _number},
            globals=dict(zip(_HELPERS, (_missing, self._spend), strict=True)),
        )

    def _finalize(self, value: Any) -> Any:
        # Called for every value that is printed, 19 times a mail: hence nothing is called from it.
        if isinstance(value, str):
            if len(value) > MAX_VALUE_CHARS:
                raise RenderError(f"a value is longer than {MAX_VALUE_CHARS} characters")
            self._length += len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
            if self._length > MAX_OUTPUT_BYTES:
                raise _too_long()
        elif value is None:
            return ""
        elif isinstance(value, dict | list | tuple):
            raise RenderError("a list or an object cannot be printed; loop over it or name one of its fields")
        return value

    def _spend(self, size: int) -> str:
        self._length += size
        if self._length > MAX_OUTPUT_BYTES:
            raise _too_long()
        return ""

    def compile(self, source: str, *, html: bool) -> str:
        """Compile once; returns the name to render under. Raises minijinja.TemplateError."""
        known = self._names.get((source, html))
        if known is not None:
            return known[0]
        guarded = _guarded(source)
        self._compiled += 1
        name = f"{self._compiled}.{'html' if html else 'txt'}"
        self._environment.add_template(name, guarded)
        size = size_in_bytes(guarded)
        self._names[source, html] = name, size
        self.compiled_bytes += size
        while self.compiled_bytes > self._max_compiled_bytes and len(self._names) > 1:
            _, (oldest, freed) = self._names.popitem(last=False)
            self._environment.remove_template(oldest)
            self.compiled_bytes -= freed
        return name

    def render(self, source: str, data: Mapping[str, Any], *, html: bool = False) -> str:
        """The text. Raises MissingVariable or RenderError; nothing a template or its data does ends the process."""
        self._length = 0
        if not _HELPER_NAMES.isdisjoint(data):  # they would take our helpers' place
            data = {name: value for name, value in data.items() if name not in _HELPERS}
        try:
            text: str = self._environment.render_template(self.compile(source, html=html), **data)
        except (MissingVariable, RenderError):
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # a panic in minijinja is a BaseException
            cause = exc.__cause__ or exc.__context__
            if isinstance(cause, MissingVariable | RenderError):
                raise cause from None
            raise RenderError(str(exc).splitlines()[0] if str(exc) else type(exc).__name__) from exc
        if size_in_bytes(text) > MAX_OUTPUT_BYTES:
            raise _too_long()
        return text

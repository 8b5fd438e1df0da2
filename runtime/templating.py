"""Templates: a subset of Jinja, checked when written and rendered by minijinja.

The subset is the defence (fuel counts instructions, not work): text, output of paths with a few filters, if, for,
comparisons, `is defined`, `is none`. Nothing calls, assigns, builds a list or does arithmetic. A source must pass jinja2's
parser and the walk below, and minijinja's compiler.
The only module that imports jinja2 and minijinja. What never enters here: Kafka, a channel's meaning.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import jinja2
import minijinja
from jinja2 import nodes

from runtime.errors import HeliographError

MAX_SOURCE_BYTES = 64 * 1024
MAX_NODES = 2_000
MAX_TOKENS = 8_000
"""What the lexer finds, white space included; more than MAX_NODES need, and counted before the parser's time is spent."""
MAX_FILTERS = 4
MAX_LINKS = 16
MAX_ELIF = 32
MAX_NESTING = 10
MAX_LOOPS = 3
MAX_UNSEEN = 32
MAX_VALUE_CHARS = 64 * 1024
MAX_OUTPUT_BYTES = 1 << 20
MAX_DIGITS = 400
"""Of a number that the filter `number` writes out."""
LONG_TEXT = 256
"""Plain text in a loop from this length on is counted at every turn; the fuel bounds what shorter text can come to."""
MAX_SOURCES = 1_000
"""Of a template: locales × parts × keys of push data."""
MAX_SOURCES_BYTES = 1 << 20
"""Of all of them together, with what they include: a template's record takes no more."""
MAX_VARIABLES = 1_000
MAX_INCLUDES = 200
MAX_INCLUDES_DEEP = 8
FUEL = 50_000

FILTERS = frozenset(
    {
        "default", "upper", "lower", "title", "capitalize", "trim", "length", "round", "int", "float", "first", "last",
        "urlencode", "escape", "date", "number",
    }
)  # fmt: skip
_SHRINKING = frozenset({"length", "first", "last", "trim", "int", "float", "round", "date", "number"})
"""Filters whose output says nothing of the size of their input."""
TESTS = frozenset({"defined", "none"})
PARTS: dict[str, tuple[str, ...]] = {
    "email": ("subject", "text", "html"),
    "sms": ("text",),
    "push": ("title", "body", "data"),
}
"""The parts of a message by channel; push `data` is a map of sources."""

_KNOWN_NODES = (
    nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Const, nodes.If, nodes.For,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test, nodes.Filter, nodes.Keyword,
)  # fmt: skip
# A tag, an output or a comment, strings inside skipped over.
_TAG = re.compile(
    r"""\{\#.*?\#\}|\{%(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?!%\}).)*%\}"""
    r"""|\{\{(?P<open>[-+]?)(?P<expr>(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?![-+]?\}\}).)*)(?P<close>[-+]?)\}\}""",
    re.DOTALL,
)


_PLAIN = re.compile(r"\s*([a-zA-Z]\w*(?:\.[a-zA-Z]\w*)*)\s*", re.ASCII)
_CONSTANTS = ("true", "false", "none")
_KEYWORD = re.compile(r"\{%[-+]?\s*(for|endfor|if|endif)\b")
_LOOP = re.compile(r"\{%([-+]?)\s*for\s+\w+\s+in\s(.*?)[-+]?%\}", re.DOTALL)
_BEFORE_FILTERS = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^|"'])*""", re.DOTALL)


class TemplateRefused(HeliographError):
    """A source that may not be used: `where` (email.html, de.sms.text), `line` (from 1) and `reason`."""

    def __init__(self, reason: str, line: int = 1, where: str = "template") -> None:
        super().__init__(f"{where}, line {line}: {reason}")
        self.reason, self.line, self.where = reason, line, where


class MissingVariable(Exception):
    """A path that the template prints is not in the data."""

    def __init__(self, path: str) -> None:
        super().__init__(f"variable {path} is missing")
        self.path = path


class RenderError(Exception):
    """The template does not fit the data: too long, a list printed as text, ..."""


# -- including --------------------------------------------------------------------------------------------------------

_INCLUDE = re.compile(r"""\{%\s*include\s+(?:"([^"\\]*)"|'([^'\\]*)')\s*%\}""")


@functools.lru_cache(maxsize=128)  # a layout stands around every part in every locale
def _parsed(source: str) -> None:
    """Raises TemplateRefused. What parses has every tag closed, which the search for tags relies on for its speed."""
    try:
        _parse(source)
    except jinja2.TemplateSyntaxError as exc:
        raise TemplateRefused(exc.message or "syntax error", exc.lineno) from exc
    except (RecursionError, ValueError, OverflowError) as exc:
        raise TemplateRefused("nested too deep or not parseable") from exc


@functools.lru_cache(maxsize=128)
def included(source: str) -> tuple[str, ...]:
    """The names that the source includes itself, in order. Raises TemplateRefused."""
    if "include" not in source:
        return ()
    _parsed(source)
    tags = (_INCLUDE.fullmatch(match[0]) for match in _TAG.finditer(source))
    return tuple(tag[1] or tag[2] or "" for tag in tags if tag)


def inline(source: str, lookup: Callable[[str], str | None]) -> str:
    """The source with each `{% include "name" %}` replaced by the source `lookup` has for the name, and so on in that.

    Raises TemplateRefused for a name without a source, one that includes itself, and what grows too large or deep. Any
    other form of include is left for check_source to refuse.
    """
    includes = chars = 0

    def expand(text: str, path: tuple[str, ...]) -> str:
        nonlocal chars
        chars += len(text)
        if chars > MAX_SOURCE_BYTES:
            raise TemplateRefused(f"larger than {MAX_SOURCE_BYTES} bytes with what it includes")
        if "include" not in text and not path:
            return text
        _parsed(text)  # a part is whole in itself: no tag begins in one and ends in another

        def replace(match: re.Match[str]) -> str:
            nonlocal includes
            tag = _INCLUDE.fullmatch(match[0])
            if tag is None:
                return match[0]
            name, line = tag[1] or tag[2] or "", text.count("\n", 0, match.start()) + 1
            includes += 1
            if name in path:
                raise TemplateRefused(f"{name} includes itself: {' → '.join((*path, name))}", line)
            if includes > MAX_INCLUDES or len(path) >= MAX_INCLUDES_DEEP:
                raise TemplateRefused(f"more than {MAX_INCLUDES} includes, or deeper than {MAX_INCLUDES_DEEP}", line)
            found = lookup(name)
            if found is None:
                raise TemplateRefused(f"there is nothing to include as {name!r}", line)
            try:
                return expand(found, (*path, name))
            except TemplateRefused as exc:
                raise TemplateRefused(f"in {name!r}, line {exc.line}: {exc.reason}", line) from exc

        return _TAG.sub(replace, text)

    return expand(source, ())


# -- checking ---------------------------------------------------------------------------------------------------------


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(keep_trailing_newline=True)


def _parse(source: str) -> nodes.Template:
    """Raises TemplateRefused, or what jinja2 raises, in a time that the size of a source bounds."""
    if _bytes(source) > MAX_SOURCE_BYTES:
        raise TemplateRefused(f"larger than {MAX_SOURCE_BYTES} bytes")
    for number, (line, _, _) in enumerate(_environment().lexer.tokeniter(source, None)):
        if number >= MAX_TOKENS:
            raise TemplateRefused(f"more than {MAX_TOKENS} words and signs; make it simpler", line)
    return _environment().parse(source)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _path(node: nodes.Node) -> tuple[str, ...] | None:
    """("order", "id") for order.id, None for anything but a name with constant links."""
    links: list[str] = []
    while True:
        if isinstance(node, nodes.Name):
            return (node.name, *reversed(links))
        if isinstance(node, nodes.Getattr):
            links.append(node.attr)
            node = node.node
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            links.append(str(node.arg.value))
            node = node.node
        else:
            return None


def _printed_path(expression: nodes.Node) -> tuple[str, ...] | None:
    """The path an output needs: its name through all filters, None when `default` stands in or nothing is needed."""
    while isinstance(expression, nodes.Filter):
        if expression.name == "default" or expression.node is None:
            return None
        expression = expression.node
    return _path(expression)


class _Checker:
    """Walks a parsed source once; collects the paths that are printed unconditionally."""

    def __init__(self) -> None:
        self.required: set[str] = set()
        self._count = self._unseen = 0

    def walk(
        self, node: nodes.Node, depth: int = 0, loops: int = 0, local: frozenset[str] = frozenset(), sure: bool = True
    ) -> None:
        self._count += 1
        line = node.lineno or 1
        if self._count > MAX_NODES:
            raise TemplateRefused(f"more than {MAX_NODES} parts; make it simpler", line)
        if not isinstance(node, _KNOWN_NODES):
            raise TemplateRefused(f"{type(node).__name__.lower()} is not part of the template language", line)
        if isinstance(node, nodes.If | nodes.For):
            depth += 1
            if depth > MAX_NESTING:
                raise TemplateRefused(f"nested deeper than {MAX_NESTING}", line)
        if isinstance(node, nodes.For):
            self._walk_loop(node, depth, loops + 1, local, sure)
        elif isinstance(node, nodes.If):
            self._walk_if(node, depth, loops, local)
        elif isinstance(node, nodes.Output):
            for expression in node.nodes:
                self._check_expression(expression)
                self._check_work(expression, loops)
                path = _printed_path(expression)
                if path and sure and path[0] not in local:
                    self.required.add(".".join(path))
                self.walk(expression, depth, loops, local, sure)
        else:
            self._check_leaf(node, line)
            for child in node.iter_child_nodes():
                self.walk(child, depth, loops, local, sure)

    def _walk_loop(self, node: nodes.For, depth: int, loops: int, local: frozenset[str], sure: bool) -> None:
        if loops > MAX_LOOPS:
            raise TemplateRefused(f"more than {MAX_LOOPS} loops inside each other", node.lineno)
        path = _path(node.iter)
        if path is None or not isinstance(node.target, nodes.Name) or node.test or node.recursive:
            raise TemplateRefused("a loop is `for name in path`", node.lineno)
        if sure and path[0] not in local:
            self.required.add(".".join(path))
        self.walk(node.iter, depth, loops, local, sure=False)
        inner = local | {node.target.name, "loop"}
        for child in (*node.body, *node.else_):
            # What a loop prints of the outside is needed only when it turns at least once.
            self.walk(child, depth, loops, inner, sure=False)

    def _walk_if(self, node: nodes.If, depth: int, loops: int, local: frozenset[str]) -> None:
        if len(node.elif_) > MAX_ELIF:
            raise TemplateRefused(f"more than {MAX_ELIF} elif", node.lineno)
        for branch in (node, *node.elif_):
            self._check_expression(branch.test)
            self._check_work(branch.test, loops, printed=False)
            self.walk(branch.test, depth, loops, local, sure=False)
            for child in branch.body:
                self.walk(child, depth, loops, local, sure=False)
        for child in node.else_:
            self.walk(child, depth, loops, local, sure=False)

    def _check_leaf(self, node: nodes.Node, line: int) -> None:
        if isinstance(node, nodes.Name) and (node.name.startswith("_") or node.ctx != "load"):
            raise TemplateRefused(f"the name {node.name} is not allowed", line)
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            raise TemplateRefused(f"the name {node.attr} is not allowed", line)
        if isinstance(node, nodes.Getattr | nodes.Getitem) and _path(node) is None:
            raise TemplateRefused("a path is a name with constant links, like order.id or lines[0]", line)
        if isinstance(node, nodes.Const) and not isinstance(node.value, str | int | float | bool | type(None)):
            raise TemplateRefused("only text, numbers, true, false and none are constants", line)
        if isinstance(node, nodes.Test) and (node.name not in TESTS or node.args or node.kwargs):
            raise TemplateRefused(f"the test {node.name} is not allowed; there are {_listed(TESTS)}", line)
        if isinstance(node, nodes.Filter):
            if node.name not in FILTERS:
                raise TemplateRefused(f"the filter {node.name} is not allowed; there are {_listed(FILTERS)}", line)
            if node.node is None or node.dyn_args or node.dyn_kwargs:
                raise TemplateRefused(f"the filter {node.name} takes constant arguments only", line)
            if any(not isinstance(a, nodes.Const) for a in (*node.args, *(kw.value for kw in node.kwargs))):
                raise TemplateRefused(f"the filter {node.name} takes constant arguments only", line)

    def _check_expression(self, expression: nodes.Node) -> None:
        # Long flat chains overflow the stack of minijinja's parser, so they are counted before it sees them.
        line = expression.lineno or 1
        if sum(1 for _ in _all(expression, nodes.Filter)) > MAX_FILTERS:
            raise TemplateRefused(f"more than {MAX_FILTERS} filters in one expression", line)
        links = (nodes.Getattr, nodes.Getitem, nodes.And, nodes.Or, nodes.Not, nodes.Operand)
        if sum(1 for _ in _all(expression, links)) > MAX_LINKS:
            raise TemplateRefused(f"more than {MAX_LINKS} links in one expression", line)

    def _check_work(self, expression: nodes.Node, loops: int, *, printed: bool = True) -> None:
        """Bound the work that the length of the output does not: a condition's, and what a shrinking filter hides."""
        line = expression.lineno or 1
        compared = sum(1 for compare in _all(expression, nodes.Compare) if _is_large(compare))
        filters = [each.name for each in _all(expression, nodes.Filter) if isinstance(each, nodes.Filter)]
        if printed and isinstance(expression, nodes.Filter | nodes.Name | nodes.Getattr | nodes.Getitem | nodes.Const):
            shrinking = [number for number, name in enumerate(filters) if name in _SHRINKING]  # the outermost first
            hidden = len(filters) - 1 - shrinking[0] if shrinking else 0
        else:
            hidden = sum(name != "default" for name in filters)
        if loops and hidden:
            raise TemplateRefused(
                "in a loop no condition has filters, and length, first, ... follow no other filter", line
            )
        if loops and compared:
            raise TemplateRefused("in a loop a comparison is with a constant, and `in` is not allowed", line)
        self._unseen += hidden + compared + sum(_search_work(compare) for compare in _all(expression, nodes.Compare))
        if self._unseen > MAX_UNSEEN:
            raise TemplateRefused(
                f"more than {MAX_UNSEEN} filters and comparisons in conditions; `in` counts for several", line
            )


def _is_large(compare: nodes.Node) -> bool:
    """Whether a comparison may read two large values, or search one."""
    operands = list(compare.iter_child_nodes())
    sides = [operand.expr if isinstance(operand, nodes.Operand) else operand for operand in operands]
    searches = any(isinstance(operand, nodes.Operand) and operand.op in ("in", "notin") for operand in operands)
    return searches or sum(1 for side in sides if not isinstance(side, nodes.Const)) > 1


def _search_work(compare: nodes.Node) -> int:
    """What `in` takes beyond another comparison: the whole of a list, and more where a list is looked for."""
    searches = sum(isinstance(o, nodes.Operand) and o.op in ("in", "notin") for o in compare.iter_child_nodes())
    wanted = next(iter(compare.iter_child_nodes()))
    return searches * (3 if isinstance(wanted, nodes.Const) else 11)


def _all(node: nodes.Node, kinds: type[nodes.Node] | tuple[type[nodes.Node], ...]) -> Iterator[nodes.Node]:
    if isinstance(node, kinds):
        yield node
    for child in node.iter_child_nodes():
        yield from _all(child, kinds)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def check_source(source: str, *, html: bool = False) -> set[str]:
    """The dotted paths that every rendering prints. Raises TemplateRefused with line and reason."""
    checker = _Checker()
    try:
        if re.search(r"\{%[-+]?\s*raw\b", source):
            raise TemplateRefused("raw is not part of the template language")
        for node in _parse(source).body:
            checker.walk(node)
        Engine().compile(source, html=html)
    except jinja2.TemplateSyntaxError as exc:
        raise TemplateRefused(exc.message or "syntax error", exc.lineno) from exc
    except (RecursionError, ValueError, OverflowError) as exc:
        raise TemplateRefused("nested too deep or not parseable") from exc
    except minijinja.TemplateError as exc:
        raise TemplateRefused(exc.message, exc.line or 1) from exc
    return checker.required


def sources(channels: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """Every source of a template as (where, source, is html). Raises TemplateRefused on unknown channels and parts."""
    for channel, parts in channels.items():
        if channel not in PARTS:
            raise TemplateRefused(
                f"there is no channel {channel}; there are {', '.join(PARTS)}", where=prefix + channel
            )
        if not isinstance(parts, Mapping) or not parts:
            raise TemplateRefused("a channel is an object with at least one part", where=prefix + channel)
        for part, source in parts.items():
            where = f"{prefix}{channel}.{part}"
            if part not in PARTS[channel]:
                raise TemplateRefused(f"{channel} has the parts {', '.join(PARTS[channel])}", where=where)
            if part == "data":
                if not isinstance(source, Mapping) or not all(isinstance(v, str) for v in source.values()):
                    raise TemplateRefused("data is an object of strings", where=where)
                for key, value in source.items():
                    yield f"{where}.{key}", value, False
            elif not isinstance(source, str):
                raise TemplateRefused("a part is a string", where=where)
            else:
                yield where, source, part == "html"


def all_sources(channels: Mapping[str, Any], locales: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Every source of a template and its locales, as `sources` has them. Raises TemplateRefused, also when they are too many
    or too large together."""
    count = size = 0
    for prefix, parts in (("", channels), *((f"{locale}.", localized) for locale, localized in locales.items())):
        for found in sources(parts, prefix):
            count, size = count + 1, size + _bytes(found[1])
            if count > MAX_SOURCES:
                raise TemplateRefused(f"more than {MAX_SOURCES} parts in all locales", where="channels")
            if size > MAX_SOURCES_BYTES:
                raise too_large(size)
            yield found


def too_large(size: int) -> TemplateRefused:
    """What to say of sources of this size so far."""
    return TemplateRefused(
        f"all parts in all locales with their layout come to {size} bytes and more; {MAX_SOURCES_BYTES} are allowed",
        where="channels",
    )


def check_template(channels: Mapping[str, Any], locales: Mapping[str, Any]) -> list[str]:
    """Check every source; returns the sorted dotted paths that must be in the data. Raises TemplateRefused."""
    if not channels:
        raise TemplateRefused("a template needs at least one channel", where="channels")
    checked: dict[tuple[str, bool], set[str]] = {}
    for where, source, html in list(all_sources(channels, locales)):
        if (source, html) in checked:
            continue
        try:
            checked[source, html] = check_source(source, html=html)
        except TemplateRefused as exc:
            raise TemplateRefused(exc.reason, exc.line, where) from exc
    required = set[str]().union(*checked.values())
    if len(required) > MAX_VARIABLES:
        raise TemplateRefused(f"it needs {len(required)} variables; {MAX_VARIABLES} are allowed", where="channels")
    return sorted(required)


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


# -- rendering --------------------------------------------------------------------------------------------------------


def _plain_path(expression: str) -> tuple[str, ...] | None:
    """The path where nothing else is there to be parsed, as in most outputs: the parser takes 30 times as long."""
    found = _PLAIN.fullmatch(expression)
    return tuple(found[1].split(".")) if found and found[1].lower() not in _CONSTANTS else None


def _guard(match: re.Match[str]) -> str:
    """An output that reports a missing path: minijinja prints undefined as nothing and cannot tell it from null."""
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
        output = _environment().parse("{{" + expression + "}}").body[0]
        path = _printed_path(output.nodes[0]) if isinstance(output, nodes.Output) else None
    return path


def _guard_loop(tag: str) -> str:
    """A loop that every rendering comes to, behind a look whether what it loops over is there: to minijinja it would be empty."""
    loop = _LOOP.fullmatch(tag)
    path = _needed_path(loop[2]) if loop else None
    if loop is None or path is None:
        return tag
    return f"{{%{loop[1]} if {loop[2].strip()} is defined %}}{{% else %}}{{{{ _missing({'.'.join(path)!r}) }}}}{{% endif %}}{tag}"


def _guarded(source: str) -> str:
    """The source with its outputs and loops guarded, and with the length of long text in a loop told at every turn."""
    parts: list[str] = []
    loops = depth = end = 0
    close = ""
    for match in _TAG.finditer(source):
        parts.append(_told(source[end : match.start()], close if loops else None))
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


def _told(text: str, close: str | None) -> str:
    """Text behind a tag that ends with `close` ("", "-" or "+"), which our own output hands on; None outside loops."""
    if close is None or len(text) < LONG_TEXT:
        return text
    return f"{{{{ _text({_bytes(text)}) {close}}}}}{text}"


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


_MANY_DIGITS = re.compile(rb"[0-9]{38}")
_SMALL = 1 << 127


def exact_numbers(data: dict[str, Any], raw: bytes | None = None) -> dict[str, Any]:
    """The data with whole numbers beyond 128 bits as text: the engine would print others in their place.

    `raw`, the JSON it was read from, says in a moment that there is none.
    """
    if raw is not None and not _MANY_DIGITS.search(raw):
        return data
    return {name: _exact(value) for name, value in data.items()}


def _exact(value: Any) -> Any:
    if type(value) is int:
        return value if -_SMALL <= value < _SMALL else str(value)
    if isinstance(value, dict):
        return {name: _exact(item) for name, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, list) else value


_HELPERS = ("_missing", "_text")
"""What guarded sources call. No template can name them, and no data may."""


class Engine:
    """Compiled templates of one process, by content; not for use from several threads."""

    _MAX_COMPILED = 10_000

    def __init__(self) -> None:
        self._length = 0
        self._names: set[str] = set()
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
        if value is None:
            return ""
        if isinstance(value, str):
            if len(value) > MAX_VALUE_CHARS:
                raise RenderError(f"a value is longer than {MAX_VALUE_CHARS} characters")
            self._spend(_bytes(value))
        elif isinstance(value, dict | list | tuple):
            raise RenderError("a list or an object cannot be printed; loop over it or name one of its fields")
        return value

    def _spend(self, size: int) -> str:
        self._length += size
        if self._length > MAX_OUTPUT_BYTES:
            raise RenderError(f"the text is longer than {MAX_OUTPUT_BYTES} bytes")
        return ""

    def compile(self, source: str, *, html: bool) -> str:
        """Compile once; returns the name to render under. Raises minijinja.TemplateError."""
        name = hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        name += ".html" if html else ".txt"
        if name not in self._names:
            if len(self._names) >= self._MAX_COMPILED:
                self._environment.clear_templates()
                self._names.clear()
            self._environment.add_template(name, _guarded(source))
            self._names.add(name)
        return name

    def render(self, source: str, data: Mapping[str, Any], *, html: bool = False) -> str:
        """The text. Raises MissingVariable or RenderError; nothing a template or its data does ends the process."""
        self._length = 0
        if any(name in data for name in _HELPERS):  # they would take our helpers' place
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
        if _bytes(text) > MAX_OUTPUT_BYTES:
            raise RenderError(f"the text is longer than {MAX_OUTPUT_BYTES} bytes")
        return text

"""The template language: a subset of Jinja, and the check that a source stays within it.

Text, output of paths with a few filters, if, for, comparisons, `is defined`, `is none`. Nothing calls, assigns, builds a
list or does arithmetic.
May import jinja2. Never: rendering, Kafka, a channel's meaning.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import jinja2
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
MAX_DIGITS = 400
"""Of a number that the filter `number` writes out."""
LONG_TEXT = 256
"""Plain text in a loop from this length on is counted at every iteration; the fuel bounds the total of shorter text."""

FILTERS = frozenset(
    {
        "default",
        "upper",
        "lower",
        "title",
        "capitalize",
        "trim",
        "length",
        "round",
        "int",
        "float",
        "first",
        "last",
        "urlencode",
        "escape",
        "date",
        "number",
    }
)
_SHRINKING = frozenset({"length", "first", "last", "trim", "int", "float", "round", "date", "number"})
"""Filters whose output says nothing of the size of their input."""
TESTS = frozenset({"defined", "none"})

_KNOWN_NODES = (
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Const,
    nodes.If,
    nodes.For,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Test,
    nodes.Filter,
    nodes.Keyword,
)
# A tag, an output or a comment, strings inside skipped over.
TAG = re.compile(
    r"""\{\#.*?\#\}|\{%(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?!%\}).)*%\}"""
    r"""|\{\{(?P<open>[-+]?)(?P<expr>(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?![-+]?\}\}).)*)(?P<close>[-+]?)\}\}""",
    re.DOTALL,
)


class TemplateRefused(HeliographError):
    """A source that may not be used: `where` (email.html, de.sms.text), `line` (from 1) and `reason`."""

    def __init__(self, reason: str, line: int = 1, where: str = "template") -> None:
        super().__init__(f"{where}, line {line}: {reason}")
        self.reason = reason
        self.line = line
        self.where = where


@functools.cache
def environment() -> jinja2.Environment:
    return jinja2.Environment(keep_trailing_newline=True)


def parse(source: str) -> nodes.Template:
    """Raises TemplateRefused, or what jinja2 raises, in a time that the size of a source bounds."""
    if size_in_bytes(source) > MAX_SOURCE_BYTES:
        raise TemplateRefused(f"larger than {MAX_SOURCE_BYTES} bytes")
    for number, (line, _, _) in enumerate(environment().lexer.tokeniter(source, None)):
        if number >= MAX_TOKENS:
            raise TemplateRefused(f"more than {MAX_TOKENS} words and signs; make it simpler", line)
    return environment().parse(source)


def size_in_bytes(text: str) -> int:
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


def printed_path(expression: nodes.Node) -> tuple[str, ...] | None:
    """The path an output needs: its name through all filters, None when `default` provides a value or nothing is needed."""
    while isinstance(expression, nodes.Filter):
        if expression.name == "default" or expression.node is None:
            return None
        expression = expression.node
    return _path(expression)


class Checker:
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
                path = printed_path(expression)
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

"""Includes: `{% include "name" %}` is replaced by the named source; number, depth and size are bounded.

May import runtime.templates.language. Never: where the sources come from.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import jinja2

from runtime.templates.language import MAX_SOURCE_BYTES, TAG, TemplateRefused, parse

MAX_INCLUDES = 200
MAX_INCLUDES_DEEP = 8

_INCLUDE = re.compile(r"""\{%\s*include\s+(?:"([^"\\]*)"|'([^'\\]*)')\s*%\}""")


@functools.lru_cache(maxsize=128)  # a layout surrounds every part in every locale
def _parsed(source: str) -> None:
    """Raises TemplateRefused. What parses has every tag closed, which the search for tags relies on for its speed."""
    try:
        parse(source)
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
    tags = (_INCLUDE.fullmatch(match[0]) for match in TAG.finditer(source))
    return tuple(tag[1] or tag[2] or "" for tag in tags if tag)


def inline(source: str, lookup: Callable[[str], str | None]) -> str:
    """The source with each `{% include "name" %}` replaced by the source `lookup` has for the name, recursively.

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
            name = tag[1] or tag[2] or ""
            line = text.count("\n", 0, match.start()) + 1
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

        return TAG.sub(replace, text)

    return expand(source, ())

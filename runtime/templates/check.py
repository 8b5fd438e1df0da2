"""Check a template before it is stored: every source of every channel and locale, their number and their size.

A source must pass jinja2's parser, the language's walk, and minijinja's compiler.
May import jinja2 and minijinja. Never: what a template is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import minijinja

from runtime.json_texts import texts
from runtime.templates.engine import Engine
from runtime.templates.language import Checker, TemplateRefused, parse, size_in_bytes
from schemas.channels import CHANNELS, OBJECT_PARTS, ROWS

MAX_SOURCES = 1_000
"""Of a template: locales × parts × texts of parts that are objects."""
MAX_SOURCES_BYTES = 1 << 20
"""Of all of them together, with what they include: a template's record takes no more."""
MAX_VARIABLES = 1_000


def check_source(source: str, *, html: bool = False) -> set[str]:
    """The dotted paths that every rendering prints. Raises TemplateRefused with line and reason."""
    checker = Checker()
    try:
        if re.search(r"\{%[-+]?\s*raw\b", source):
            raise TemplateRefused("raw is not part of the template language")
        for node in parse(source).body:
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
        if channel not in ROWS:
            raise TemplateRefused(
                f"there is no channel {channel}; there are {', '.join(CHANNELS)}", where=prefix + channel
            )
        if not isinstance(parts, Mapping) or not parts:
            raise TemplateRefused("a channel is an object with at least one part", where=prefix + channel)
        for part, source in parts.items():
            where = f"{prefix}{channel}.{part}"
            if part not in ROWS[channel].parts:
                raise TemplateRefused(f"{channel} has the parts {', '.join(ROWS[channel].parts)}", where=where)
            if part == "data":
                if not isinstance(source, Mapping) or not all(isinstance(v, str) for v in source.values()):
                    raise TemplateRefused("data is an object of strings", where=where)
                for key, value in source.items():
                    yield f"{where}.{key}", value, False
            elif part in OBJECT_PARTS:
                if not isinstance(source, Mapping) or not source:
                    raise TemplateRefused(f"{part} is an object", where=where)
                try:
                    for path, text in texts(source):
                        yield f"{where}.{'.'.join(path)}", text, False
                except ValueError as exc:
                    raise TemplateRefused(str(exc), where=where) from exc
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
            count = count + 1
            size = size + size_in_bytes(found[1])
            if count > MAX_SOURCES:
                raise TemplateRefused(f"more than {MAX_SOURCES} parts in all locales", where="channels")
            if size > MAX_SOURCES_BYTES:
                raise too_large(size)
            yield found


def too_large(size: int) -> TemplateRefused:
    """What to say of sources of this size so far."""
    return TemplateRefused(
        f"all parts in all locales with their layout have {size} bytes or more; {MAX_SOURCES_BYTES} are allowed",
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

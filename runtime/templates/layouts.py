"""A template with its layout and partials in place: what is stored beside the written form, published and rendered.

`{% include "name" %}` is replaced by the same part (email.html, ...) of the published template of that name, in the same
locale. A layout includes "content", which is replaced by the template that uses it. Both happen when the version is
written, so a version never changes; a new partial shows in versions written after it.
May import runtime.templates.engine. Never: a check of the template language, rendering.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from runtime.json_texts import with_texts
from runtime.templates.check import MAX_SOURCES_BYTES, all_sources, sources, too_large
from runtime.templates.includes import included, inline
from runtime.templates.language import TemplateRefused

CONTENT = "content"
MAX_PARTIALS = 50

Parts = Mapping[str, Mapping[str, Any]]
"""Channel → part → source; a part that is an object has one source per text."""
Fetch = Callable[[str], Awaitable[Mapping[str, Any] | None]]
"""The published version of a name: {"channels", "locales", "layout"?} as written; None when there is none."""


class Written(NamedTuple):
    """A template as its author wrote it."""

    name: str
    channels: Mapping[str, Any]
    locales: Mapping[str, Any]
    layout: str | None


def written_form(row: Mapping[str, Any]) -> dict[str, Any]:
    """Channels, locales and layout of a stored version as its author wrote them."""
    written = row.get("written") or {}
    return {
        "layout": written.get("layout"),
        "channels": written.get("channels", row["channels"]),
        "locales": written.get("locales", row["locales"]),
    }


def _names(channels: Mapping[str, Any], locales: Mapping[str, Any]) -> set[str]:
    """What it includes, CONTENT among it."""
    names: set[str] = set()
    for where, source, _ in all_sources(channels, locales):
        try:
            names.update(included(source))
        except TemplateRefused as exc:
            raise TemplateRefused(exc.reason, exc.line, where) from exc
    return names


def missing_partials(template: Written, partials: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names, sorted, that are to be fetched before it can be put in place. Raises TemplateRefused."""
    needed = _names(template.channels, template.locales)
    for found in partials.values():
        needed |= _names(found["channels"], found["locales"])
    needed.discard(CONTENT)
    needed |= {template.layout} if template.layout is not None else set()
    if len(needed) > MAX_PARTIALS:
        raise TemplateRefused(f"more than {MAX_PARTIALS} partials", where="channels")
    if template.name in needed:
        # Its published version would end the circle for now, and the next one would not.
        where = "layout" if template.name == template.layout else "channels"
        raise TemplateRefused(f"{template.name} includes itself", where=where)
    return sorted(needed - partials.keys())


def place(template: Written, partials: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(channels, locales) without includes; None when there were none. Raises TemplateRefused."""
    layout = template.layout
    if layout is None and not _names(template.channels, template.locales):
        return None
    if layout is not None and partials[layout].get("layout") is not None:
        raise TemplateRefused("a layout has no layout of its own", where="layout")
    written = (("", template.channels), *template.locales.items())
    size = 0
    placed = {}
    for locale, parts in written:
        placed[locale] = _placed(parts, locale, layout, partials)
        size += sum(len(source) for _, source, _ in sources(placed[locale]))
        if size > MAX_SOURCES_BYTES:
            raise too_large(size)
    return placed.pop(""), placed


async def put_in_place(
    name: str, channels: Mapping[str, Any], locales: Mapping[str, Any], layout: str | None, fetch: Fetch
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(channels, locales) of the template `name` without includes; None when there were none. Raises TemplateRefused."""
    template = Written(name, channels, locales, layout)
    partials = dict[str, Mapping[str, Any]]()
    while missing := missing_partials(template, partials):
        partials |= await fetch_all(template, missing, fetch)
    return place(template, partials)


async def fetch_all(template: Written, names: Iterable[str], fetch: Fetch) -> dict[str, Mapping[str, Any]]:
    """The published versions of these names. Raises TemplateRefused when there is none of one."""
    partials = {}
    for partial in names:
        found = await fetch(partial)
        if found is None:
            where = "layout" if partial == template.layout else "channels"
            raise TemplateRefused(f"there is no published template {partial!r} to include", where=where)
        partials[partial] = found
    return partials


def _placed(
    channels: Mapping[str, Any], locale: str, layout: str | None, partials: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    placed: dict[str, Any] = {}
    for channel, parts in channels.items():
        placed[channel] = {}
        for part, source in parts.items():
            where = ".".join(filter(None, (locale, channel, part)))
            if isinstance(source, str):
                placed[channel][part] = _one(source, (channel, part), locale, layout, partials, where)
            else:
                placed[channel][part] = _in_object(source, (channel, part), locale, partials, where)
    return placed


def _in_object(
    value: Any, part: tuple[str, str], locale: str, partials: Mapping[str, Mapping[str, Any]], where: str
) -> Any:
    def one(source: str, path: tuple[str, ...]) -> str:
        return _one(source, (*part, *path), locale, None, partials, f"{where}.{'.'.join(path)}")

    return with_texts(value, one)


def _one(
    source: str,
    path: tuple[str, ...],
    locale: str,
    layout: str | None,
    partials: Mapping[str, Mapping[str, Any]],
    where: str,
) -> str:
    frame = _part(partials[layout], path, locale) if layout is not None else None

    def lookup(name: str) -> str | None:
        if name == CONTENT:
            return source if frame is not None else ""
        return _part(partials[name], path, locale) if name in partials else None

    try:
        return inline(source if frame is None else frame, lookup)
    except TemplateRefused as exc:
        raise TemplateRefused(exc.reason, exc.line, where) from exc


def _part(template: Mapping[str, Any], path: tuple[str, ...], locale: str) -> str | None:
    """The part in the locale, falling back as the router does: de-AT, de, default."""
    tag = locale
    while tag:
        found = _at(template["locales"].get(tag, {}), path)
        if found is not None:
            return found
        tag = tag.rpartition("-")[0]
    return _at(template["channels"], path)


def _at(channels: Any, path: tuple[str, ...]) -> str | None:
    for link in path:
        if isinstance(channels, list):
            channels = {str(i): each for i, each in enumerate(channels)}.get(link)
        else:
            channels = channels.get(link) if isinstance(channels, Mapping) else None
    return channels if isinstance(channels, str) else None

"""A template with its layout and partials in place: what is stored beside the written form, published and rendered.

`{% include "name" %}` stands for the same part (email.html, ...) of the published template of that name, in the same
locale. A layout includes "content", which stands for the template that uses it. Both are put in place when the version is
written, so a version never changes; a new partial shows in versions written after it.
May import runtime.templating. What never enters here: a check of the template language, rendering.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from runtime.templating import TemplateRefused, included, inline, sources

CONTENT = "content"
MAX_PARTIALS = 50

Parts = Mapping[str, Mapping[str, Any]]
"""Channel → part → source; push `data` has one source per key."""
Fetch = Callable[[str], Awaitable[Mapping[str, Any] | None]]
"""The published version of a name: {"channels", "locales", "layout"?} as written; None when there is none."""


def written_form(row: Mapping[str, Any]) -> dict[str, Any]:
    """Channels, locales and layout of a stored version as its author wrote them."""
    written = row.get("written") or {}
    return {
        "layout": written.get("layout"),
        "channels": written.get("channels", row["channels"]),
        "locales": written.get("locales", row["locales"]),
    }


def _all_sources(channels: Mapping[str, Any], locales: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((where, source) for where, source, _ in sources(channels))
    for locale, localized in locales.items():
        yield from ((where, source) for where, source, _ in sources(localized, f"{locale}."))


def _names(channels: Mapping[str, Any], locales: Mapping[str, Any]) -> set[str]:
    names: set[str] = set()
    for where, source in _all_sources(channels, locales):
        try:
            names.update(included(source))
        except TemplateRefused as exc:
            raise TemplateRefused(exc.reason, exc.line, where) from exc
    return names - {CONTENT}


async def put_in_place(
    name: str, channels: Mapping[str, Any], locales: Mapping[str, Any], layout: str | None, fetch: Fetch
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(channels, locales) of the template `name` without includes; None when there were none. Raises TemplateRefused."""
    needed = _names(channels, locales) | ({layout} if layout is not None else set())
    includes_content = any(CONTENT in included(source) for _, source in _all_sources(channels, locales))
    if not needed and not includes_content:
        return None
    partials: dict[str, Mapping[str, Any]] = {}
    while missing := needed - partials.keys():
        if len(needed) > MAX_PARTIALS:
            raise TemplateRefused(f"more than {MAX_PARTIALS} partials", where="channels")
        for partial in sorted(missing):
            where = "layout" if partial == layout else "channels"
            if partial == name:
                # Its published version would end the circle for now, and the next one would not.
                raise TemplateRefused(f"{name} includes itself", where=where)
            found = await fetch(partial)
            if found is None:
                raise TemplateRefused(f"there is no published template {partial!r} to include", where=where)
            partials[partial] = found
            needed |= _names(found["channels"], found["locales"])
    if layout is not None and partials[layout].get("layout") is not None:
        raise TemplateRefused("a layout has no layout of its own", where="layout")
    placed = {locale: _placed(parts, locale, layout, partials) for locale, parts in (("", channels), *locales.items())}
    return placed.pop(""), placed


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
                placed[channel][part] = {
                    key: _one(text, (channel, part, key), locale, None, partials, f"{where}.{key}")
                    for key, text in source.items()
                }
    return placed


def _one(
    source: str, path: tuple[str, ...], locale: str, layout: str | None, partials: Mapping[str, Mapping[str, Any]],
    where: str,
) -> str:  # fmt: skip
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
        channels = channels.get(link) if isinstance(channels, Mapping) else None
    return channels if isinstance(channels, str) else None

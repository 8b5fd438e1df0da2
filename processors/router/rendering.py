"""A template, or literal content, and the data become the parts of one message; pure.

May import runtime.templates.engine. Never: a recipient's address, a decision whether to send.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from runtime.byte_cache import ByteCache
from runtime.json_texts import with_texts
from runtime.templates.check import sources as sources_in
from runtime.templates.engine import Engine, RenderError
from runtime.templates.language import TemplateRefused
from schemas.channels import LINE_PARTS, OBJECT_PARTS, ROWS, Channel
from schemas.codec import DecodeError, codec
from schemas.events import Template

_ENDS_LINE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
MAX_PARSED_BYTES = 32 << 20
"""Of template records that are kept parsed: parsed they take about as much again."""
_MAX_WORDS = 500
"""Longest error text about a template, which may quote text of another publisher."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a message says; which parts are set depends on the channel."""

    subject: str | None = None
    text: str | None = None
    html: str | None = None
    title: str | None = None
    body: str | None = None
    data: bytes | None = None
    json: bytes | None = None
    locale: str | None = None
    """Of the template's text; None for its text without a locale, and for literal content."""


@dataclass(frozen=True, slots=True)
class ParsedTemplate:
    """A template record with its sources as objects."""

    template_id: str
    version: int
    category: str
    channels: Mapping[str, Mapping[str, Any]]
    locales: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def sources(self, channel: str, locale: str | None) -> tuple[Mapping[str, Any] | None, str | None]:
        """The channel's sources in the locale, falling back de-AT → de → default, and the locale they are in.

        No sources when it has none, no locale for the default.
        """
        tag = locale
        while tag:
            found = self.locales.get(tag, {}).get(channel)
            if found:
                return found, tag
            tag = tag.rpartition("-")[0]
        return self.channels.get(channel), None


def _parse_template(raw: bytes) -> ParsedTemplate:
    """A template record's bytes as objects, with parts of the right types. Raises RenderError for invalid bytes."""
    try:
        record: Template = codec("Template").decode(raw)  # type: ignore[assignment]
    except DecodeError as exc:
        raise RenderError("the template cannot be read") from exc
    channels, locales = _object(record["channels"], "channels"), _object(record["locales"], "locales")
    _check_shape(channels, "")
    for locale, parts in locales.items():
        if not isinstance(parts, dict):
            raise RenderError(f"the locale {locale[:32]} of the template is not an object of channels")
        _check_shape(parts, f"{locale}.")
    return ParsedTemplate(record["template_id"], record["version"], record["category"], channels, locales)


parse_template = ByteCache(_parse_template, MAX_PARSED_BYTES)
"""The same, for records that were parsed lately."""


def _object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value = from_json(raw)
    except ValueError as exc:
        raise RenderError(f"{name} of the template are not JSON") from exc
    if not isinstance(value, dict):
        raise RenderError(f"{name} of the template are no JSON object")
    return value


def _check_shape(channels: Mapping[str, Any], prefix: str) -> None:
    # The API checks what it writes; other publishers to the topic may not have.
    try:
        for _ in sources_in(channels, prefix):
            pass
    except TemplateRefused as exc:
        raise RenderError(f"{exc.where}: {exc.reason}"[:_MAX_WORDS]) from exc


def one_line(text: str) -> str:
    """A subject or title: without the newline at its end. Raises RenderError on any other control character."""
    line = text.rstrip("\r\n")
    if _ENDS_LINE.search(line):
        raise RenderError("a subject or title is one line without control characters")
    return line


def render_parts(
    engine: Engine, sources: Mapping[str, Any], data: Mapping[str, Any], locale: str | None = None
) -> Parts:
    """Render every part of one channel, whose sources are in `locale`. Raises MissingVariable or RenderError."""
    rendered: dict[str, Any] = {}
    for part, source in sources.items():
        if part in OBJECT_PARTS:
            rendered[part] = to_json(with_texts(source, lambda text, _: engine.render(text, data)))
        else:
            text = engine.render(source, data, html=part == "html")
            rendered[part] = one_line(text) if part in LINE_PARTS else text
    return Parts(**rendered, locale=locale)


def literal_channels(content: Mapping[str, Any]) -> list[str]:
    """The channels that content of this shape is meant for, by `meant_by` of schemas/channels.py."""
    for row in ROWS.values():
        if row.meant_alone and any(part in content for part in row.meant_by):
            return [row.name]
    shared = [row for row in ROWS.values() if not row.meant_alone]
    return [row.name for row in shared if any(content.get(part) is not None for part in row.meant_by)]


def literal_parts(channel: str, content: Mapping[str, Any]) -> Parts | None:
    """Inline content as it is; None when it has no part for the channel.

    Raises RenderError on a subject of two lines, and on a part that is not a text or, for OBJECT_PARTS, not an object.
    """
    row = ROWS[channel]
    if all(content.get(part) is None for part in row.needs_one_of):
        return None
    literal: dict[str, Any] = {part: _literal(row, content, part) for part in row.parts}
    return Parts(**literal)


def _literal(row: Channel, content: Mapping[str, Any], part: str) -> str | bytes | None:
    if part in OBJECT_PARTS:
        return _literal_object(content, part)
    text = content.get(part)
    if text is None:
        return "" if part in row.blank_parts else None
    if not isinstance(text, str):
        raise RenderError(f"{part} of the content is not a text")
    return one_line(text) if part in LINE_PARTS else text


def _literal_object(content: Mapping[str, Any], part: str) -> bytes | None:
    value = content.get(part)
    if value is not None and not isinstance(value, dict):
        raise RenderError(f"{part} of the content is no JSON object")
    return to_json(value) if value else None

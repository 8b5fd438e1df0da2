"""Includes become one source before anything is checked or rendered."""

from __future__ import annotations

import time

import pytest

from runtime.templates.check import check_source
from runtime.templates.includes import included, inline
from runtime.templates.language import MAX_SOURCE_BYTES, TemplateRefused


def nothing(_: str) -> None:
    return None


def test_source_without_includes_stays_as_it_is() -> None:
    text = "include me {{ not_me }}\n"
    assert inline(text, nothing) == text
    assert included(text) == ()


def test_include_is_replaced_and_so_on() -> None:
    parts = {"head": "<{% include 'logo' %}>", "logo": "{{ brand }}", "foot": "bye\n"}
    source = 'a{% include "head" %}b\n{%include "foot"%}'
    assert inline(source, parts.get) == "a<{{ brand }}>b\nbye\n"
    assert included(source) == ("head", "foot")
    assert check_source(inline(source, parts.get)) == {"brand"}


@pytest.mark.parametrize(
    "text", ['{# {% include "x" %} #}', "{{ '{% include \"x\" %}' }}", "{% if a == '{% include \"x\" %}' %}{% endif %}"]
)
def test_include_in_a_comment_or_a_string_is_text(text: str) -> None:
    assert inline(text, nothing) == text


@pytest.mark.parametrize(
    "text",
    [
        "{% include name %}",
        '{%- include "x" %}',
        '{% include "x" ignore missing %}',
        '{% include ["x"] %}',
        '{% include "x" without context %}',
        '{% include "x" + "y" %}',
    ],
)
def test_any_other_form_of_include_is_refused_by_the_check(text: str) -> None:
    with pytest.raises(TemplateRefused):
        check_source(inline(text, lambda _: "y"))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, "nothing to include"),
        ({"a": '{% include "a" %}'}, "a includes itself"),
        ({"a": '{% include "b" %}', "b": '\n{% include "a" %}'}, "a → b → a"),
        ({"a": "{{"}, "in 'a'"),
        ({"a": "{% include"}, "in 'a'"),
        ({"a": "x" * MAX_SOURCE_BYTES}, "larger than"),
    ],
)
def test_what_cannot_be_included_is_refused_with_the_line_of_the_include(parts: dict[str, str], reason: str) -> None:
    with pytest.raises(TemplateRefused) as caught:
        inline('one\ntwo {% include "a" %}', parts.get)
    assert reason in caught.value.reason
    assert caught.value.line == 2


def test_bomb_of_includes_is_refused_at_once() -> None:
    parts = {f"p{n}": f'{{% include "p{n + 1}" %}}' * 50 for n in range(8)} | {"p8": "x" * 1000}
    began = time.monotonic()
    with pytest.raises(TemplateRefused):
        inline('{% include "p0" %}', parts.get)
    deep = {f"d{n}": f'{{% include "d{n + 1}" %}}' for n in range(1000)}
    with pytest.raises(TemplateRefused):
        inline('{% include "d0" %}', deep.get)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("text", ["include" + "{%" * 30_000, "include" + "{{" * 30_000, "include" + "{#" * 30_000])
def test_unclosed_tags_are_refused_at_once(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateRefused):
        inline(text, nothing)
    assert time.monotonic() - began < 5

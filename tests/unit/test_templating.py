"""The template subset: what is accepted, refused and rendered."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.templates.check import check_source, check_template
from runtime.templates.engine import Engine, MissingVariable, RenderError, exact_numbers, has_path
from runtime.templates.language import TemplateRefused


def test_paths_printed_for_sure_are_required_and_conditional_ones_are_not() -> None:
    source = "{{ a }} {{ b.c|upper }} {{ d|default('x') }} {% if e %}{{ f }}{% endif %}{% for g in h.i %}{{ g.j }}{% endfor %}"
    assert check_source(source) == {"a", "b.c", "h.i"}


@pytest.mark.parametrize(
    "source",
    [
        "{% set x = 1 %}",
        "{{ f() }}",
        "{{ a ~ b }}",
        "{{ a + 1 }}",
        "{{ [1, 2] }}",
        "{{ {'a': 1} }}",
        "{{ a|map('x') }}",
        "{{ a.__class__ }}",
        "{{ _missing('x') }}",
        "{{ a[b] }}",
        "{% include 'x' %}",
        "{% raw %}{{ x }}{% endraw %}",
        "{% for a, b in c %}{% endfor %}",
        "{% for a in [1] %}{% endfor %}",
        "{% for a in b recursive %}{% endfor %}",
        "{{ a|indent(1000000000) }}",
        "{{ -" * 5000 + "a }}",
        "{{ a",
        "{% if %}",
        "{{ a" + "|upper" * 5 + " }}",
        "{{ " + "a and " * 40 + "a }}",
        "{{ 'x'|center(1000000000) }}",
        "{{ a|default(b) }}",
        "{% macro m() %}{% endmacro %}",
        "{% if a %}{% elif b %}" + "{% elif c %}" * 40 + "{% endif %}",
        "{% for a in b %}" * 4 + "{% endfor %}" * 4,
        "{{ " + "(" * 3000 + "a" + ")" * 3000 + " }}",
        "x" * 70_000,
        "{{ a is divisibleby(2) }}",
        "{{ a if b else c }}",
    ],
)
def test_source_outside_the_subset_is_refused(source: str) -> None:
    with pytest.raises(TemplateRefused) as refused:
        check_source(source)
    assert refused.value.reason
    assert refused.value.line >= 1


def test_refusal_names_channel_part_line_and_locale() -> None:
    with pytest.raises(TemplateRefused) as refused:
        check_template({"sms": {"text": "ok"}}, {"de": {"email": {"html": "ok\n{{ a"}}})
    assert (refused.value.where, refused.value.line) == ("de.email.html", 2)


def test_template_with_unknown_channel_or_part_is_refused() -> None:
    cases: tuple[dict[str, Any], ...] = ({"fax": {"text": "x"}}, {"sms": {"subject": "x"}}, {"sms": {}}, {})
    for channels in cases:
        with pytest.raises(TemplateRefused):
            check_template(channels, {})


@pytest.mark.parametrize(
    ("source", "data", "html", "expected"),
    [
        ("Hi {{ name }}!\r\n", {"name": "Ann"}, False, "Hi Ann!\r\n"),
        ("{{ a.b }}", {"a": {"b": "<x>"}}, True, "&lt;x&gt;"),
        ("{{ a.b }}", {"a": {"b": "<x>"}}, False, "<x>"),
        ("[{{ n }}]", {"n": None}, False, "[]"),
        ("{{ a.b.c|default('none') }}", {}, False, "none"),
        ("{% if a %}x{% else %}y{% endif %}", {}, False, "y"),
        ("x {{- a -}} y", {"a": 1}, False, "x1y"),
        ("{% for i in l %}{{ loop.index }}{{ i.v }} {% endfor %}", {"l": [{"v": "a"}, {"v": "b"}]}, False, "1a 2b "),
        ("{{ '}}' }}{{ a }}", {"a": 1}, False, "}}1"),
        ("{{ t|date('%d.%m.%Y') }} {{ n|number(2) }}", {"t": "2026-03-01", "n": 1234.5}, False, "01.03.2026 1,234.50"),
        ("{{ l[0] }}{{ o.items }}", {"l": ["a"], "o": {"items": "b"}}, False, "ab"),
    ],
)
def test_source_renders(source: str, data: dict[str, object], html: bool, expected: str) -> None:
    check_source(source, html=html)
    assert Engine().render(source, data, html=html) == expected


@pytest.mark.parametrize("source", ["{{ a }}", "{{ a.b|upper }}", "{% for i in l %}{{ i.x }}{% endfor %}"])
def test_missing_path_is_reported_by_name(source: str) -> None:
    with pytest.raises(MissingVariable) as missing:
        Engine().render(source, {"l": [{}]})
    assert missing.value.path in source


def test_list_as_text_and_too_long_values_are_render_errors() -> None:
    engine = Engine()
    for source, data in (
        ("{{ l }}", {"l": [1]}),
        ("{{ s }}", {"s": "x" * 70_000}),
        ("{% for i in l %}{{ s }}{% endfor %}", {"l": list(range(100)), "s": "x" * 60_000}),
        (
            "{% for i in l %}{% for j in l %}{% for k in l %}x{% endfor %}{% endfor %}{% endfor %}",
            {"l": list(range(200))},
        ),
        ("{{ t|date }}", {"t": "yesterday"}),
    ):
        with pytest.raises(RenderError):
            engine.render(source, data)
    assert engine.render("{{ a }}", {"a": "still alive"}) == "still alive"


def test_variables_are_never_rendered_again() -> None:
    assert Engine().render("{{ a }}", {"a": "{{ b }}"}) == "{{ b }}"


@given(st.text(max_size=200))
def test_any_text_is_accepted_or_refused_with_a_reason(source: str) -> None:
    try:
        check_source(source)
    except TemplateRefused as exc:
        assert exc.reason


def test_has_path_walks_objects_and_lists() -> None:
    data = {"a": {"b": [{"c": None}]}}
    assert has_path(data, "a.b.0.c")
    assert not has_path(data, "a.b.1.c")
    assert not has_path(data, "a.x")


_EVERY_HELPER = "{% for a in l %}" + "x" * 300 + "{% endfor %}{{ gone }}"


@pytest.mark.parametrize(
    "name", ["_missing", "_text", "loop", "range", "self", "name", "template_name", "ctx", "dict", "debug", "data"]
)
@pytest.mark.parametrize("value", ["x", 1, None, [1], {"a": 1}])
def test_no_name_in_the_data_replaces_a_part_of_the_engine(name: str, value: object) -> None:
    assert Engine().render(_EVERY_HELPER.replace("gone", "l[0]"), {"l": [1, 2], name: value}) == "x" * 600 + "1"
    with pytest.raises(MissingVariable, match="gone"):
        Engine().render(_EVERY_HELPER, {"l": [1, 2], name: value})


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (9007199254740993, 0, "9,007,199,254,740,993"),
        ("12345678901234567890.12", 2, "12,345,678,901,234,567,890.12"),
        (2**130, 0, f"{2**130:,}"),
        (1234.5, 2, "1,234.50"),
        (" 7 ", 1, "7.0"),
        (-0.5, 3, "-0.500"),
        (True, 0, "1"),
        ("1e3", 0, "1,000"),
    ],
)
def test_number_prints_the_digits_it_is_given(value: object, decimals: int, text: str) -> None:
    assert Engine().render(f"{{{{ n|number({decimals}) }}}}", exact_numbers({"n": value})) == text


@given(st.floats(-1e12, 1e12) | st.decimals(-(10**9), 10**9, places=3).map(float), st.integers(0, 12))
def test_number_of_a_float_is_that_of_its_digits(value: float, decimals: int) -> None:
    value = value or 0.0  # the engine knows no negative nought
    expected = f"{Decimal(str(value)):,.{decimals}f}"
    assert Engine().render(f"{{{{ n|number({decimals}) }}}}", {"n": value}) == expected


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-Infinity", "1e400000", "9" * 5_000, "x", "", [1], {"a": 1}, None, float("inf"), "sNaN"]
)
def test_number_of_what_is_none_is_a_template_error(value: object) -> None:
    with pytest.raises(RenderError, match="number"):
        Engine().render("{{ n|number(2) }}", {"n": value})


@given(st.integers(), st.integers(0, 400))
def test_whole_numbers_print_exactly(number: int, bits: int) -> None:
    for value in (number, number << bits, -(1 << bits)):
        data = {"n": value, "l": [value], "o": {"n": value}}
        wanted = " ".join([str(value)] * 3)
        for exact in (exact_numbers(data), exact_numbers(data, json.dumps(data).encode())):
            assert Engine().render("{{ n }} {{ l[0] }} {{ o.n }}", exact) == wanted


@pytest.mark.parametrize(
    "source",
    [
        '{{ a["x|y"] }}',
        "{{ a['x|y']|upper }}",
        '{{ a["x|y"]|default("p|q") }}',
        '{% for i in a["x|y"] %}{{ i }}{% endfor %}',
    ],
)
def test_pipe_inside_a_string_is_no_filter(source: str) -> None:
    check_source(source)
    assert Engine().render(source, {"a": {"x|y": "z"}}) in ("z", "Z")


_LOOPS = [
    "{% for i in l %}{{ i }}{% endfor %}",
    "a {%- for i in o.l -%} {{ i }} {%- endfor %}",
    "{%+ for i in o['l'] %}x{% else %}y{% endfor %}",
]


@pytest.mark.parametrize("source", _LOOPS)
def test_missing_path_under_a_loop_is_missing_in_the_check_and_in_every_rendering(source: str) -> None:
    (path,) = check_source(source)
    with pytest.raises(MissingVariable) as missing:
        Engine().render(source, {"o": {}})
    assert missing.value.path == path
    assert Engine().render(source, {"l": [], "o": {"l": []}}) in ("", "a", "y")


def test_loop_that_not_every_rendering_comes_to_needs_nothing() -> None:
    source = "{% if a %}{% for i in l %}{{ i }}{% endfor %}{% endif %}{% for i in l2 %}{% for j in i.m %}x{% endfor %}{% endfor %}"
    assert check_source(source) == {"l2"}
    assert Engine().render(source, {"a": True, "l2": [{}, {"m": [1]}]}) == "x"

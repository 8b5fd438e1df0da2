"""What is kept of results is bounded by the bytes of its arguments, and never changes a result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.byte_cache import ByteCache
from runtime.templates import engine
from runtime.templates.engine import Engine


def test_argument_that_was_used_last_is_the_last_to_be_forgotten() -> None:
    asked: list[bytes] = []
    cache = ByteCache(asked.append, max_bytes=3)
    for argument in (b"a", b"b", b"c", b"a", b"d", b"a", b"b"):
        cache(argument)
    assert asked == [b"a", b"b", b"c", b"d", b"b"]


def test_argument_above_the_limit_and_one_that_fails_are_not_kept() -> None:
    cache = ByteCache(int, max_bytes=2)
    assert [cache(b"123"), cache(b"123"), cache(b"12")] == [123, 123, 12]
    with pytest.raises(ValueError, match="invalid literal"):
        cache(b"x")
    assert cache.bytes_kept == 2


@given(st.lists(st.binary(max_size=9)), st.integers(0, 20))
def test_every_result_is_the_functions_and_the_limit_holds(arguments: list[bytes], limit: int) -> None:
    cache = ByteCache(len, limit)
    for argument in arguments:
        assert cache(argument) == len(argument)
        assert cache.bytes_kept <= limit


def test_engine_drops_the_templates_it_compiled_first_when_their_bytes_are_too_many() -> None:
    limited = Engine(max_compiled_bytes=10_000)
    sources = [f"{number} {{{{ x }}}} {'y' * 900}" for number in range(50)]
    for _ in range(2):
        for number, source in enumerate(sources):
            assert limited.render(source, {"x": "v"}) == f"{number} v {'y' * 900}"
            assert limited.compiled_bytes <= 10_000
    assert len(limited._names) < 12
    huge = "z" * 20_000
    assert limited.render(huge, {}) == huge  # one that is above the limit alone is kept until the next
    limited.render(sources[0], {"x": "v"})
    assert limited.compiled_bytes <= 10_000


def test_engine_compiles_a_source_once(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded: list[str] = []
    original = engine._guarded

    def counted(source: str) -> str:
        guarded.append(source)
        return original(source)

    monkeypatch.setattr(engine, "_guarded", counted)
    one = Engine()
    assert [one.render("a {{ x }}", {"x": n}) for n in range(3)] == ["a 0", "a 1", "a 2"]
    one.render("a {{ x }}", {"x": 1}, html=True)
    assert guarded == ["a {{ x }}"] * 2

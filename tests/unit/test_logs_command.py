"""`heliograph logs`: files that grow, are cut and hold anything."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from console.commands.logs import parsed, read


def event(at: str, **more: str) -> str:
    return json.dumps({"timestamp": at, "level": "warning", "role": "sink", "event": "slow", **more})


def test_lines_are_read_whole_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "sink.log"
    path.write_text(event("2026-01-01T00:00:01Z") + "\nno JSON\n" + event("2026-01-01T00:00:02Z")[:20])
    first, place = read(path, 0)
    assert [(it.at[11:19], it.level, it.text) for it in first] == [
        ("00:00:01", "warning", "slow"),
        ("00:00:01", "info", "no JSON"),
    ]
    path.write_text(event("2026-01-01T00:00:01Z") + "\nno JSON\n" + event("2026-01-01T00:00:02Z", n="a b") + "\n")
    more, end = read(path, place)
    assert [(it.text, it.raw) for it in more] == [('slow  n="a b"', event("2026-01-01T00:00:02Z", n="a b"))]
    assert read(path, end) == ([], end)
    path.write_text("new\n")
    assert [it.text for it in read(path, end)[0]] == ["new"]


@given(st.text())
def test_no_line_of_a_log_is_an_error(text: str) -> None:
    for line in (text, json.dumps(text), json.dumps({"timestamp": text, "level": text, "event": text, text: text})):
        assert parsed("kafka", line, "").raw == line

"""Tables of commands: an id can be copied, however narrow the terminal is."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import pytest

from console.commands.explain import show_story
from console.commands.output import show

ID = str(UUID(int=(1 << 128) - 2))


@pytest.mark.parametrize("columns", ["20", "80", "200"])
@pytest.mark.parametrize("cell", [ID, f"{ID}\n{ID}"], ids=["one", "several in a cell"])
def test_ids_stand_on_one_line_each(
    columns: str, cell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    row = {"replay_id": cell, "command": "redrive", "filter": "reason = 'undecodable' AND tenant = 'a'", "other": ID}
    show([row, {**row, "replay_id": ID}], False)
    printed = capsys.readouterr().out
    assert printed.count(ID) == 3 + cell.count(ID)
    assert "undecodable" in printed.replace("\n", "").replace(" ", "") or columns == "20"


HOSTILE = "\x1b]0;mine\x07 [/b] [red] \u202e \x9b2J \ud800"


def test_text_of_a_stranger_neither_steers_the_terminal_nor_breaks_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    story = {
        **dict.fromkeys(("id", "status"), "x"),
        "why": HOSTILE,
        "timeline": [{"at": "now", "after_ms": 0, "stage": "report", "channel": None, "what": HOSTILE}],
        "messages": [],
        "resends": [],
        "dead_letters": [],
    }
    for prints in (partial(show, [{"template": HOSTILE, "count": 1}], False), partial(show_story, story)):
        prints()
        out = capsys.readouterr().out
        assert r"\x1b]0;mine\x07 [/b] [red] \u202e \x9b2J \ud800" in out
        assert not any(c in out for c in "\x1b\x07\u202e\x9b")

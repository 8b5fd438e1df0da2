"""Tables of commands: an id can be copied, however narrow the terminal is."""

from __future__ import annotations

from uuid import UUID

import pytest

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

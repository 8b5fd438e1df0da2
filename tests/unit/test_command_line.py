"""The command line as a newcomer meets it: names, words, terminals, proxies."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.commands.audit import moment
from local.cli import hide_password
from runtime.clock import system_clock
from runtime.errors import HeliographError
from runtime.proxies import LOOPBACK_HOSTS, spare_loopback


def heliograph(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'heliograph'; from console.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        timeout=60,
    )


def test_version_is_printed(tmp_path: Path) -> None:
    done = heliograph("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "heliograph 0.1.0\n")


def test_settings_file_that_is_not_there_is_named_without_wrong_advice(tmp_path: Path) -> None:
    done = heliograph("up", "--config", "nothere.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "heliograph: cannot read nothere.toml: No such file or directory; name a readable file\n"


def test_terminal_without_an_arrow_gets_no_traceback(tmp_path: Path) -> None:
    """Help holds characters that ASCII lacks."""
    done = heliograph("topics", "list", cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    encoding = "import sys; from console.cli import main; sys.argv[1:] = ['--help']; import console.cli as c; c.app.info.help = '→'; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", encoding],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert "?" in done.stdout


@pytest.mark.parametrize("text", ["-2h", "-90s", "now"])
def test_audit_takes_how_long_ago(text: str) -> None:
    assert system_clock() // 1_000 - 7_205 <= moment(text) <= system_clock() // 1_000


@pytest.mark.parametrize("text", ["yesterday", "-2 hours", "-2", ""])
def test_invalid_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(HeliographError, match="-2h"):
        moment(text)


def test_password_of_a_database_is_not_shown() -> None:
    assert hide_password("postgresql://u:p%40w@127.0.0.1:5432/db") == "postgresql://u@127.0.0.1:5432/db"
    assert hide_password("postgresql://127.0.0.1/db") == "postgresql://127.0.0.1/db"


@given(
    st.lists(st.sampled_from(["example.org", ".corp", "127.0.0.1", " a ", "*"]), max_size=4),
    st.sampled_from(["NO_PROXY", "no_proxy"]),
)
def test_loopback_is_spared_and_nothing_is_forgotten(hosts: list[str], name: str) -> None:
    environment = {name: ",".join(hosts)}
    spare_loopback(environment)
    listed = environment["no_proxy"].split(",")
    assert environment["NO_PROXY"] == environment["no_proxy"]
    assert {*(host.strip() for host in hosts), *LOOPBACK_HOSTS} == set(listed)
    assert len(listed) == len(set(listed))


def test_urllib_heeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert not urllib.request.proxy_bypass("127.0.0.1:80")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    spare_loopback(os.environ)
    assert urllib.request.proxy_bypass("127.0.0.1:80")
    assert not urllib.request.proxy_bypass("example.org")

"""A template as files, so that it can live in version control.

    welcome/template.json            {"category": "default", "layout": "frame"}
    welcome/email.subject            a part of a channel: text
    welcome/email.html
    welcome/push.data.json           what is not text: JSON
    welcome/locales/de/email.html    the same in a language

May import the standard library. Never: HTTP, the template language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import SettingsError

ABOUT = "template.json"
LOCALES = "locales"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Of a template, a locale, a channel or a part: what comes from a server is no path."""
_Parts = Mapping[str, Mapping[str, Any]]


def files_of(template: Mapping[str, Any]) -> dict[str, str]:
    """Path → text of each file, of a template as the API shows it. Raises SettingsError for a name that is no file's."""
    about = {name: template[name] for name in ("category", "layout") if template.get(name)}
    files = {ABOUT: json.dumps(about, indent=2, ensure_ascii=False) + "\n"}
    for directory, channels in _places(template):
        for channel, parts in channels.items():
            for part, source in parts.items():
                name = f"{directory}{_checked(channel)}.{_checked(part)}"
                if isinstance(source, str):
                    files[name] = source
                else:
                    files[f"{name}.json"] = json.dumps(source, indent=2, ensure_ascii=False) + "\n"
    return files


def _places(template: Mapping[str, Any]) -> Iterator[tuple[str, _Parts]]:
    yield "", template["channels"]
    for locale, channels in template.get("locales", {}).items():
        yield f"{LOCALES}/{_checked(locale)}/", channels


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} cannot be the name of a file")
    return name


def write(directory: Path, template: Mapping[str, Any]) -> Path:
    """Write a template's files below `directory`, and remove those of parts that it no longer has. Raises SettingsError."""
    home = directory / _checked(template["id"])
    files = files_of(template)
    try:
        for there in _part_files(home):
            if there.relative_to(home).as_posix() not in files:
                there.unlink()
        for name, text in files.items():
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8", newline="")
    except OSError as exc:
        raise SettingsError(f"cannot write {home}: {exc}") from exc
    return home


def _part_files(home: Path) -> list[Path]:
    return [path for path in (*home.glob("*.*"), *home.glob(f"{LOCALES}/*/*.*")) if path.is_file()]


def read(home: Path) -> dict[str, Any]:
    """The body of a new version of the template in a directory of its name. Raises SettingsError."""
    try:
        about = json.loads((home / ABOUT).read_text("utf-8"))
        body: dict[str, Any] = {"id": home.name, **about, "channels": {}, "locales": {}}
        for path in sorted(_part_files(home)):
            if path.name != ABOUT:
                _read_part(body, path.relative_to(home), path)
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as exc:
        raise SettingsError(f"{home} does not hold a template: {exc}") from exc
    return body


def _read_part(body: dict[str, Any], name: Path, path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    channel, _, part = name.name.partition(".")
    channels = body["channels"] if len(name.parts) == 1 else body["locales"].setdefault(name.parts[1], {})
    parts = channels.setdefault(channel, {})
    if part.endswith(".json"):
        parts[part.removesuffix(".json")] = json.loads(text)
    else:
        parts[part] = text


def homes(directory: Path, names: list[str]) -> list[Path]:
    """The directories of these templates, or of all below `directory`. Raises SettingsError where there are none."""
    found = [directory / name for name in names] or sorted(path.parent for path in directory.glob(f"*/{ABOUT}"))
    if not found:
        raise SettingsError(f"there is no template in {directory}: each has a directory with {ABOUT}")
    return found

"""Which API a command calls: the one that is named, else that of a profile, else the local stack's, else that of `login`.

    @app.command()
    @with_api
    def show_user(session: Session, user_id: Id) -> None:      the options of an API are added
        session.show_one(session.ask("GET", f"/v1/users/{segment(user_id)}"))

May import runtime.http.client, console.commands.profiles, stack and output. Never: a command.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints
from urllib.parse import quote, urlencode

import typer

from console.commands import output, profiles
from console.commands.profiles import Profile
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, read_endpoints
from runtime.errors import HeliographError, SettingsError
from runtime.http.client import ApiClient

P = ParamSpec("P")
Api = Annotated[str | None, typer.Option("--api", help="URL of the API. The local stack's unless given.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="HELIOGRAPH_API_KEY", help="The local stack's unless given.")
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile", envvar=profiles.VARIABLE, help="An API that `login` keeps, in place of the local stack's."
    ),
]

PAGE = 100
"""Entries asked for at once."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Show at most that many.")]
JsonFile = Annotated[str, typer.Argument(metavar="FILE|-", help="JSON in the shape of the API; - reads stdin.")]


def chosen(api: str | None, api_key: str | None, profile: str | None, state_dir: Path) -> tuple[str, Profile]:
    """(what decided, the API) of what was given: the API named, else the profile named, else the stack in `state_dir`, else the
    profile `default`. Raises SettingsError or LocalStackError."""
    if api and api_key:
        return "--api", Profile(api, api_key)
    if api or (api_key and not profile):
        raise SettingsError("give both --api and --api-key (or HELIOGRAPH_API_KEY), or neither for the local stack")
    if profile:
        return f"profile {profile}", profiles.named(profile)
    try:
        endpoints = read_endpoints(state_dir)
    except HeliographError:
        if (found := profiles.read().get(profiles.DEFAULT)) is None:
            raise
        return f"profile {profiles.DEFAULT}", found
    return f"the local stack in {state_dir}", Profile(endpoints["api"], endpoints["api_key"])


@dataclass(frozen=True, slots=True)
class Session:
    """The API that a command asks, and how it is to show the answer."""

    client: ApiClient
    as_json: bool

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON value of one call's answer. Raises ApiError or UnavailableError."""

        async def once() -> Any:
            async with self.client as api:
                return (await api.call(method, path, body)).body

        return asyncio.run(once())

    def listed(self, path: str, query: Mapping[str, str | None], most: int) -> list[dict[str, Any]]:
        """The first `most` entries of a list, page after page. Raises ApiError or UnavailableError."""

        async def pages() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            cursor: str | None = ""
            async with self.client as api:
                while cursor is not None and len(found) < most:
                    wanted = {**query, "cursor": cursor, "limit": str(min(PAGE, most - len(found)))}
                    given = urlencode({name: value for name, value in wanted.items() if value})
                    page = (await api.call("GET", f"{path}?{given}")).body
                    found += page["entries"]
                    cursor = page["next_cursor"]
            return found

        return asyncio.run(pages())

    def show(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), *, empty: str = "nothing") -> None:
        """Print rows; for people only these columns, where some are named."""
        shown = [{name: row.get(name) for name in columns} for row in rows] if columns and not self.as_json else rows
        output.show(shown, self.as_json, empty=empty)

    def show_one(self, value: Any) -> None:
        """Print an object."""
        output.show_one(value, self.as_json)


def with_api(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """A command with the options of an API in place of its session."""

    @functools.wraps(command)
    def run(
        *args: Any,
        api: str | None,
        api_key: str | None,
        profile: str | None,
        state_dir: Path,
        as_json: bool,
        **given: Any,
    ) -> None:
        _, found = chosen(api, api_key, profile, state_dir)
        command(Session(ApiClient(found.api, found.api_key), as_json), *args, **given)

    hints = get_type_hints(command, include_extras=True)
    _, *own = inspect.signature(command).parameters.values()
    options = {
        "api": (Api, None),
        "api_key": (ApiKey, None),
        "profile": (ProfileName, None),
        "state_dir": (StateDir, DEFAULT_STATE_DIR),
        "as_json": (Json, False),
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *(parameter.replace(annotation=hints[parameter.name], kind=keyword) for parameter in own),
        *(
            inspect.Parameter(name, keyword, default=default, annotation=hint)
            for name, (hint, default) in options.items()
        ),
    ]
    # typer reads both, and would follow __wrapped__ to the names that are not its to resolve.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


def segment(name: str) -> str:
    """A name as one step of a path."""
    return quote(name, safe="")


def read_text(source: str) -> str:
    """The text of a file, or of stdin where it is named `-`. Raises SettingsError."""
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read {source}: {exc}") from exc


def read_json(source: str) -> Any:
    """The value of a JSON file, or of stdin where it is named `-`. Raises SettingsError."""
    text = read_text(source)
    try:
        return json.loads(text)
    except ValueError as exc:
        raise SettingsError(f"{source} is not JSON: {exc}") from exc

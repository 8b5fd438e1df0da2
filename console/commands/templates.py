"""`heliograph templates`: templates and their versions, as files where they are to be kept.

May import console.commands.client and template_files. Never: HTTP, the template language.
"""

from __future__ import annotations

import asyncio
import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from console.commands import template_files
from console.commands.client import Api, ApiKey, Json, JsonFile, Limit, ask, client, listed, read_json, segment
from console.commands.output import plain, show, show_one
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from runtime.http.client import ApiClient, ApiError
from schemas.channels import ChannelName

templates_app = typer.Typer(no_args_is_help=True, help="Templates and their versions.")
_Id = Annotated[str, typer.Argument(metavar="ID", help="Of a template.")]
_Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="[default: all]")]
_Directory = Annotated[Path, typer.Option("--dir", help="Where their files are, a directory each.")]
_DIRECTORY = Path("templates")
_Version = Annotated[int | None, typer.Option("--version", min=1, help="[default: the published one]")]
_MOST = 10_000


def _path(template_id: str, rest: str = "") -> str:
    return f"/v1/templates/{segment(template_id)}{rest}"


@templates_app.command("list")
def list_templates(
    limit: Limit = 100,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """List templates by their ids."""
    show(listed(client(api, api_key, state_dir), "/v1/templates", {}, limit), as_json, empty="there are no templates")


@templates_app.command("show")
def show_template(
    template_id: _Id,
    version: _Version = None,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Show a version with its sources."""
    path = _path(template_id, f"?version={version}" if version else "")
    template = ask(client(api, api_key, state_dir), "GET", path)
    if as_json:
        show_one(template, as_json)
        return
    show_one({name: template[name] for name in ("id", "version", "published", "category", "variables")}, as_json)
    for name, text in template_files.files_of(template).items():
        if name != template_files.ABOUT:
            typer.echo(f"\n--- {name}\n{plain(text)}")


@templates_app.command()
def pull(
    ids: _Ids = None,
    directory: _Directory = _DIRECTORY,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Write the published versions into files; `push` then changes nothing."""
    calls = client(api, api_key, state_dir)
    names = ids or [row["id"] for row in listed(calls, "/v1/templates", {}, _MOST)]
    for template in asyncio.run(_published(calls, names)).values():
        if template is not None:
            typer.echo(f"{template['id']} {template['version']} → {template_files.write(directory, template)}")


@templates_app.command()
def diff(
    ids: _Ids = None,
    directory: _Directory = _DIRECTORY,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """How the files differ from what is published; exit status 1 when they do."""
    differing: list[dict[str, str]] = []
    for body, there in _compared(client(api, api_key, state_dir), directory, ids):
        before, after = template_files.files_of(there) if there else {}, template_files.files_of(body)
        for name in sorted({*before, *after}):
            old, new = before.get(name, ""), after.get(name, "")
            if old != new:
                differing.append({"id": body["id"], "file": name, "published": old, "here": new})
    if as_json:
        show(differing, as_json)
    for it in () if as_json else differing:
        names = (f"published/{it['id']}/{it['file']}", f"{directory}/{it['id']}/{it['file']}")
        for line in difflib.unified_diff(it["published"].splitlines(), it["here"].splitlines(), *names, lineterm=""):
            typer.echo(plain(line))
    raise typer.Exit(1 if differing else 0)


@templates_app.command()
def push(
    ids: _Ids = None,
    directory: _Directory = _DIRECTORY,
    publish_it: Annotated[bool, typer.Option("--publish/--draft", help="Publish what is new.")] = True,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Make a new version of each template whose files differ from what is published; all are read before the first is sent."""
    calls = client(api, api_key, state_dir)
    for body, there in _compared(calls, directory, ids):
        if there is not None and template_files.files_of(there) == template_files.files_of(body):
            typer.echo(f"{body['id']} {there['version']} is as it is published")
            continue
        path = "/v1/templates" if there is None else _path(body["id"], "/versions")
        made = ask(calls, "POST", path, {**body, "publish": publish_it})
        typer.echo(f"{made['id']} {made['version']} {'published' if made['published'] else 'is a draft'}")


@templates_app.command()
def publish(
    template_id: _Id,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The number of one that there is.")],
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Publish a version, also an older one."""
    body = {"version": version}
    show_one(ask(client(api, api_key, state_dir), "POST", _path(template_id, "/publish"), body), as_json)


@templates_app.command()
def versions(
    template_id: _Id,
    limit: Limit = 25,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """List the versions of a template, the newest first."""
    found = listed(client(api, api_key, state_dir), _path(template_id, "/versions"), {}, limit)
    columns = ("version", "published", "category", "created_at")
    show(found if as_json else [{name: row[name] for name in columns} for row in found], as_json)


@templates_app.command()
def preview(
    template_id: _Id,
    source: JsonFile,
    channel: Annotated[ChannelName, typer.Option("--channel", help="Whose parts to render.")],
    locale: Annotated[str | None, typer.Option("--locale", help="In which language.")] = None,
    version: _Version = None,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Render a version with the data of a JSON file. Nothing is sent."""
    body = {"channel": channel, "data": read_json(source), "locale": locale, "version": version}
    given = {name: value for name, value in body.items() if value is not None}
    shown = ask(client(api, api_key, state_dir), "POST", _path(template_id, "/preview"), given)
    if as_json:
        show_one(shown, as_json)
        return
    for part, text in shown.items():
        typer.echo(f"--- {part}\n{plain(text if isinstance(text, str) else str(text))}")


def _compared(
    calls: ApiClient, directory: Path, ids: list[str] | None
) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Each template of the files, beside what is published of it. Raises SettingsError, ApiError or UnavailableError."""
    bodies = [template_files.read(home) for home in template_files.homes(directory, ids or [])]
    there = asyncio.run(_published(calls, [body["id"] for body in bodies]))
    return [(body, there[body["id"]]) for body in bodies]


async def _published(calls: ApiClient, names: list[str]) -> dict[str, dict[str, Any] | None]:
    """Each by its name, None where there is no such template. Raises ApiError or UnavailableError."""

    async def one(api: ApiClient, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = (await api.call("GET", _path(name))).body
        except ApiError as exc:
            if exc.status == 404:
                return None
            raise
        return found

    async with calls as api:
        return {name: await one(api, name) for name in names}

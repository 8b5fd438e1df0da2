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
from console.commands.client import Json, JsonFile, Limit, Session, read_json, segment, with_api
from console.commands.output import plain, show
from runtime.errors import SettingsError
from runtime.http.client import ApiClient, ApiError
from schemas.channels import ChannelName

templates_app = typer.Typer(no_args_is_help=True, help="Templates and their versions.")
Id = Annotated[str, typer.Argument(metavar="ID", help="Of a template.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="All unless given.")]
Directory = Annotated[Path, typer.Option("--dir", help="Where their files are, a directory each.")]
DIRECTORY = Path("templates")
Version = Annotated[int | None, typer.Option("--version", min=1, help="The published one unless given.")]
MOST = 10_000
"""Templates that are pulled."""


def _path(template_id: str, rest: str = "") -> str:
    return f"/v1/templates/{segment(template_id)}{rest}"


@templates_app.command("list")
@with_api
def list_templates(session: Session, limit: Limit = 100) -> None:
    """List templates by their ids."""
    session.show(session.listed("/v1/templates", {}, limit), empty="there are no templates")


@templates_app.command("show")
@with_api
def show_template(session: Session, template_id: Id, version: Version = None) -> None:
    """Show a version with its sources."""
    template = session.ask("GET", _path(template_id, f"?version={version}" if version else ""))
    if session.as_json:
        session.show_one(template)
        return
    session.show_one({name: template[name] for name in ("id", "version", "published", "category", "variables")})
    for name, text in template_files.files_of(template).items():
        if name != template_files.ABOUT:
            typer.echo(f"\n--- {name}\n{plain(text)}")


@templates_app.command()
@with_api
def pull(session: Session, ids: Ids = None, directory: Directory = DIRECTORY) -> None:
    """Write the published versions into files; `push` then changes nothing."""
    names = ids or [row["id"] for row in session.listed("/v1/templates", {}, MOST)]
    found = [template for template in asyncio.run(_published(session.client, names)).values() if template is not None]
    written = [
        {"id": it["id"], "version": it["version"], "directory": str(template_files.write(directory, it))}
        for it in found
    ]
    session.show(written, empty="there are no such templates")


@templates_app.command()
@with_api
def diff(session: Session, ids: Ids = None, directory: Directory = DIRECTORY) -> None:
    """How the files differ from what is published; exit status 1 when they do."""
    differing: list[dict[str, str]] = []
    for body, there in _compared(session.client, directory, ids):
        before, after = template_files.files_of(there) if there else {}, template_files.files_of(body)
        for name in sorted({*before, *after}):
            old, new = before.get(name, ""), after.get(name, "")
            if old != new:
                differing.append({"id": body["id"], "file": name, "published": old, "here": new})
    if session.as_json:
        session.show(differing)
    for it in () if session.as_json else differing:
        names = (f"published/{it['id']}/{it['file']}", f"{directory}/{it['id']}/{it['file']}")
        for line in difflib.unified_diff(it["published"].splitlines(), it["here"].splitlines(), *names, lineterm=""):
            typer.echo(plain(line))
    raise typer.Exit(1 if differing else 0)


@templates_app.command()
@with_api
def push(
    session: Session,
    ids: Ids = None,
    directory: Directory = DIRECTORY,
    publish_it: Annotated[bool, typer.Option("--publish/--draft", help="Publish what is new.")] = True,
) -> None:
    """Make a new version of each template whose files differ from what is published; all are read before the first is sent."""
    rows = []
    for body, there in _compared(session.client, directory, ids):
        if there is not None and template_files.files_of(there) == template_files.files_of(body):
            rows.append({"id": body["id"], "version": there["version"], "what": "as it is published"})
            continue
        path = "/v1/templates" if there is None else _path(body["id"], "/versions")
        made = session.ask("POST", path, {**body, "publish": publish_it})
        what = "published" if made["published"] else "a draft"
        rows.append({"id": made["id"], "version": made["version"], "what": what})
    session.show(rows)


@templates_app.command()
@with_api
def publish(
    session: Session,
    template_id: Id,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The number of one that there is.")],
) -> None:
    """Publish a version, also an older one."""
    session.show_one(session.ask("POST", _path(template_id, "/publish"), {"version": version}))


@templates_app.command()
@with_api
def versions(session: Session, template_id: Id, limit: Limit = 25) -> None:
    """List the versions of a template, the newest first."""
    found = session.listed(_path(template_id, "/versions"), {}, limit)
    session.show(found, ("version", "published", "category", "created_at"))


@templates_app.command()
@with_api
def preview(
    session: Session,
    template_id: Id,
    source: JsonFile,
    channel: Annotated[ChannelName, typer.Option("--channel", help="Whose parts to render.")],
    locale: Annotated[str | None, typer.Option("--locale", help="In which language.")] = None,
    version: Version = None,
) -> None:
    """Render a version with the data of a JSON file. Nothing is sent."""
    body = {"channel": channel, "data": read_json(source), "locale": locale, "version": version}
    given = {name: value for name, value in body.items() if value is not None}
    shown = session.ask("POST", _path(template_id, "/preview"), given)
    if session.as_json:
        session.show_one(shown)
        return
    for part, text in shown.items():
        typer.echo(f"--- {part}\n{plain(text if isinstance(text, str) else str(text))}")


@templates_app.command()
@with_api
def rollback(session: Session, template_id: Id) -> None:
    """Publish the version before the published one."""
    there = session.ask("GET", _path(template_id))["version"]
    before = [
        it["version"] for it in session.listed(_path(template_id, "/versions"), {}, MOST) if it["version"] < there
    ]
    if not before:
        raise SettingsError(f"version {there} of {template_id} is published, and there is none before it")
    session.show_one(session.ask("POST", _path(template_id, "/publish"), {"version": max(before)}))


@templates_app.command()
def check(ids: Ids = None, directory: Directory = DIRECTORY, as_json: Json = False) -> None:
    """Check the files as the API does, without one: syntax, filters, parts. Exit status 1 when one would be refused."""
    rows = [_checked(template_files.read(home)) for home in template_files.homes(directory, ids or [])]
    show(rows, as_json)
    raise typer.Exit(1 if any(row["refused"] for row in rows) else 0)


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    from runtime.templates.check import check_template
    from runtime.templates.language import TemplateRefused

    try:
        needed = check_template(body["channels"], body["locales"])
    except TemplateRefused as exc:
        return {"id": body["id"], "refused": str(exc), "variables": None}
    return {"id": body["id"], "refused": None, "variables": ", ".join(needed)}


def _compared(
    client: ApiClient, directory: Path, ids: list[str] | None
) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Each template of the files, beside what is published of it. Raises SettingsError, ApiError or UnavailableError."""
    bodies = [template_files.read(home) for home in template_files.homes(directory, ids or [])]
    there = asyncio.run(_published(client, [body["id"] for body in bodies]))
    return [(body, there[body["id"]]) for body in bodies]


async def _published(client: ApiClient, names: list[str]) -> dict[str, dict[str, Any] | None]:
    """Each by its name, None where there is no such template. Raises ApiError or UnavailableError."""

    async def one(api: ApiClient, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = (await api.call("GET", _path(name))).body
        except ApiError as exc:
            if exc.status == 404:
                return None
            raise
        return found

    async with client as api:
        return {name: await one(api, name) for name in names}

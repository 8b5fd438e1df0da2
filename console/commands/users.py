"""`heliograph users`: recipients and what they want, from the command line.

May import console.commands.client. Never: HTTP, what a profile may hold.
"""

from __future__ import annotations

from typing import Annotated

import typer

from console.commands.client import Api, ApiKey, Json, JsonFile, Limit, ask, client, listed, read_json, segment
from console.commands.output import show, show_one
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from runtime.http.client import ApiError

users_app = typer.Typer(no_args_is_help=True, help="Recipients and their preferences.")
_Id = Annotated[str, typer.Argument(metavar="ID", help="Of a user.")]


@users_app.command("list")
def list_users(
    limit: Limit = 25,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """List users by their ids."""
    found = listed(client(api, api_key, state_dir), "/v1/users", {}, limit)
    names = [name for name in found[0] if all(not isinstance(row[name], dict | list) for row in found)] if found else []
    rows = found if as_json else [{name: row[name] for name in names} for row in found]
    show(rows, as_json, empty="there are no users")


@users_app.command("show")
def show_user(
    user_id: _Id,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Show a user's profile."""
    show_one(ask(client(api, api_key, state_dir), "GET", f"/v1/users/{segment(user_id)}"), as_json)


@users_app.command("put")
def put_user(
    user_id: _Id,
    source: JsonFile,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Replace a user's profile, or make one."""
    body, calls = read_json(source), client(api, api_key, state_dir)
    try:
        stored = ask(calls, "PUT", f"/v1/users/{segment(user_id)}", body)
    except ApiError as exc:
        if exc.status != 404 or not isinstance(body, dict):
            raise
        stored = ask(calls, "POST", "/v1/users", {"id": user_id, **body})
    show_one(stored, as_json)


@users_app.command("delete")
def delete_user(user_id: _Id, api: Api = None, api_key: ApiKey = None, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Delete a user, preferences included."""
    ask(client(api, api_key, state_dir), "DELETE", f"/v1/users/{segment(user_id)}")
    typer.echo("deleted")


@users_app.command("preferences")
def preferences(
    user_id: _Id,
    replace: Annotated[
        str | None, typer.Option("--replace", metavar="FILE|-", help="Replace them by this JSON; - reads stdin.")
    ] = None,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Show what a user wants, by channel and category; or replace it."""
    body = None if replace is None else read_json(replace)
    method = "GET" if replace is None else "PUT"
    path = f"/v1/users/{segment(user_id)}/preferences"
    show_one(ask(client(api, api_key, state_dir), method, path, body), as_json)

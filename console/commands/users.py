"""`heliograph users`: recipients and what they want, from the command line.

May import console.commands.client. Never: HTTP, what a profile may hold.
"""

from __future__ import annotations

from typing import Annotated

import typer

from console.commands.client import JsonFile, Limit, Session, read_json, segment, with_api
from runtime.http.client import ApiError

users_app = typer.Typer(no_args_is_help=True, help="Recipients and their preferences.")
Id = Annotated[str, typer.Argument(metavar="ID", help="Of a user.")]


@users_app.command("list")
@with_api
def list_users(session: Session, limit: Limit = 25) -> None:
    """List users by their ids."""
    found = session.listed("/v1/users", {}, limit)
    plain = [name for name in found[0] if all(not isinstance(row[name], dict | list) for row in found)] if found else ()
    session.show(found, plain, empty="there are no users")


@users_app.command("show")
@with_api
def show_user(session: Session, user_id: Id) -> None:
    """Show a user's profile."""
    session.show_one(session.ask("GET", f"/v1/users/{segment(user_id)}"))


@users_app.command("put")
@with_api
def put_user(session: Session, user_id: Id, source: JsonFile) -> None:
    """Replace a user's profile, or make one."""
    body = read_json(source)
    try:
        stored = session.ask("PUT", f"/v1/users/{segment(user_id)}", body)
    except ApiError as exc:
        if exc.status != 404 or not isinstance(body, dict):
            raise
        stored = session.ask("POST", "/v1/users", {"id": user_id, **body})
    session.show_one(stored)


@users_app.command("delete")
@with_api
def delete_user(session: Session, user_id: Id) -> None:
    """Delete a user, preferences included."""
    session.ask("DELETE", f"/v1/users/{segment(user_id)}")
    session.show_one({"deleted": user_id})


@users_app.command()
@with_api
def preferences(
    session: Session,
    user_id: Id,
    replace: Annotated[
        str | None, typer.Option("--replace", metavar="FILE|-", help="Replace them by this JSON; - reads stdin.")
    ] = None,
) -> None:
    """Show what a user wants, by channel and category; or replace it."""
    path = f"/v1/users/{segment(user_id)}/preferences"
    session.show_one(session.ask("GET", path) if replace is None else session.ask("PUT", path, read_json(replace)))

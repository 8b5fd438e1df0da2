"""`heliograph list`, `cancel` and `resend`: notifications, from the command line.

May import console.commands.client. Never: HTTP, what a state means.
"""

from __future__ import annotations

from typing import Annotated

import typer

from console.commands.client import Api, ApiKey, Json, Limit, ask, client, listed, segment
from console.commands.output import show, show_one
from console.commands.stack import DEFAULT_STATE_DIR, StateDir

_Id = Annotated[str, typer.Argument(metavar="ID", help="Of a notification.")]
_COLUMNS = ("id", "status", "reason", "accepted_at")


def list_notifications(
    status: Annotated[str | None, typer.Option("--status", help="That have this status now.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="To this user.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="With this tag.")] = None,
    limit: Limit = 25,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """List notifications, the newest first. The list is a second or two behind."""
    query = {"status": status, "user_id": user, "tag": tag}
    found = listed(client(api, api_key, state_dir), "/v1/notifications", query, limit)
    rows = found if as_json else [{name: row.get(name) for name in _COLUMNS} for row in found]
    show(rows, as_json, empty="there are no such notifications")


def cancel(
    notification_id: _Id,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Cancel what is not sent yet; says what has become of the notification."""
    show_one(
        ask(client(api, api_key, state_dir), "POST", f"/v1/notifications/{segment(notification_id)}/cancel"), as_json
    )


def resend(
    notification_id: _Id,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Send a settled notification again, decided and rendered anew: whoever got it gets it twice."""
    show_one(
        ask(client(api, api_key, state_dir), "POST", f"/v1/notifications/{segment(notification_id)}/resend"), as_json
    )

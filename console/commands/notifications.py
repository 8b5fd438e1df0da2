"""`heliograph list`, `cancel` and `resend`: notifications, from the command line.

May import console.commands.client. Never: HTTP, what a state means.
"""

from __future__ import annotations

from typing import Annotated

import typer

from console.commands.client import Limit, Session, segment, with_api

Id = Annotated[str, typer.Argument(metavar="ID", help="Of a notification.")]


@with_api
def list_notifications(
    session: Session,
    status: Annotated[str | None, typer.Option("--status", help="That have this status now.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="To this user.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="With this tag.")] = None,
    limit: Limit = 25,
) -> None:
    """List notifications, the newest first. The list is a second or two behind."""
    found = session.listed("/v1/notifications", {"status": status, "user_id": user, "tag": tag}, limit)
    session.show(found, ("id", "status", "reason", "accepted_at"), empty="there are no such notifications")


@with_api
def cancel(session: Session, notification_id: Id) -> None:
    """Cancel what is not sent yet; says what has become of the notification."""
    session.show_one(session.ask("POST", f"/v1/notifications/{segment(notification_id)}/cancel"))


@with_api
def resend(session: Session, notification_id: Id) -> None:
    """Send a settled notification again, decided and rendered anew: whoever got it gets it twice."""
    session.show_one(session.ask("POST", f"/v1/notifications/{segment(notification_id)}/resend"))

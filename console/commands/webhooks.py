"""`heliograph webhooks`: where customers' programs hear of facts, from the command line.

May import console.commands.client. Never: HTTP, a signature.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from console.commands.client import Limit, Session, segment, with_api

webhooks_app = typer.Typer(no_args_is_help=True, help="Endpoints that are told of facts, signed.")
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]


def _path(webhook_id: str, *more: str) -> str:
    return "/".join(("/v1/webhooks", segment(webhook_id), *more))


@webhooks_app.command("list")
@with_api
def list_webhooks(session: Session, limit: Limit = 25) -> None:
    """List webhooks, and how their deliveries go."""
    found = session.listed("/v1/webhooks", {}, limit)
    rows: list[dict[str, Any]] = found
    if not session.as_json:
        rows = [
            {**row, **{name: row["deliveries"][name] for name in ("condition", "cause", "behind")}} for row in found
        ]
    session.show(rows, ("id", "url", "condition", "cause", "behind"), empty="there are no webhooks")


@webhooks_app.command("show")
@with_api
def show_webhook(session: Session, webhook_id: WebhookId) -> None:
    """Show a webhook: its filters, its condition, what was dropped or given up."""
    session.show_one(session.ask("GET", _path(webhook_id)))


@webhooks_app.command("create")
@with_api
def create_webhook(
    session: Session,
    url: Annotated[str, typer.Argument(metavar="URL", help="https://..., where facts are posted to.")],
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
    state: Annotated[list[str] | None, typer.Option("--state", help="Only facts of this state; repeat it.")] = None,
    channel: Annotated[
        list[str] | None, typer.Option("--channel", help="Only facts of this channel; repeat it.")
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only facts of this category; repeat it.")
    ] = None,
) -> None:
    """Tell an endpoint of facts from now on; prints its secret, which cannot be shown again."""
    filters = {"states": state or [], "channels": channel or [], "categories": category or []}
    session.show_one(session.ask("POST", "/v1/webhooks", {"url": url, "description": description, **filters}))


@webhooks_app.command("change")
@with_api
def change_webhook(
    session: Session,
    webhook_id: WebhookId,
    url: Annotated[str | None, typer.Option("--url", help="Another URL.")] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Tell it facts, or none; its position is kept.")
    ] = None,
) -> None:
    """Change a webhook; one that fails or was disabled by its answer 410 is asked again."""
    given = {"url": url, "enabled": enabled}
    changes = {name: value for name, value in given.items() if value is not None}
    session.show_one(session.ask("PATCH", _path(webhook_id), changes))


@webhooks_app.command("delete")
@with_api
def delete_webhook(session: Session, webhook_id: WebhookId) -> None:
    """Tell an endpoint nothing more."""
    session.ask("DELETE", _path(webhook_id))
    session.show_one({"deleted": webhook_id})


@webhooks_app.command("rotate")
@with_api
def rotate_secret(
    session: Session,
    webhook_id: WebhookId,
    overlap_s: Annotated[
        int, typer.Option("--overlap-s", min=0, max=604_800, help="For so many seconds both secrets sign.")
    ] = 86_400,
) -> None:
    """Make another secret and print it: it cannot be shown again."""
    session.show_one(session.ask("POST", _path(webhook_id, "rotate"), {"overlap_s": overlap_s}))


@webhooks_app.command("test")
@with_api
def test_webhook(session: Session, webhook_id: WebhookId) -> None:
    """Make one signed request now and show the answer."""
    session.show_one(session.ask("POST", _path(webhook_id, "test")))


@webhooks_app.command("replay")
@with_api
def replay_webhook(
    session: Session,
    webhook_id: WebhookId,
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="RFC 3339; facts since then are sent again.")],
) -> None:
    """Send facts again, under the ids they had; a time of now skips what an endpoint is behind."""
    session.show_one(session.ask("POST", _path(webhook_id, "replay"), {"from": since}))

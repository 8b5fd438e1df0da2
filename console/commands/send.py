"""`heliograph send`: notifications from a file, an id per line.

May import typer and console.commands.client. Never: HTTP, what a notification may hold.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from console.commands.client import Session, read_text, with_api
from runtime.errors import HeliographError, SettingsError
from runtime.http.client import ApiClient, ApiError

IN_FLIGHT = 32
FileOrDash = Annotated[
    str, typer.Argument(metavar="FILE|-", help="JSON (one body, or a list) or JSONL; - reads stdin.")
]


class NotAcceptedError(HeliographError):
    """The API refused at least one notification."""


def read_bodies(text: str) -> Iterator[dict[str, Any]]:
    """The bodies of a JSON or JSONL text. Raises SettingsError naming the line."""
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if whole is not None:
        yield from whole if isinstance(whole, list) else [whole]
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as exc:
                raise SettingsError(f"line {number} is not JSON: {exc}") from exc


@with_api
def send(session: Session, source: FileOrDash) -> None:
    """Send notifications (JSON or JSONL in the shape of the API) and print an id per line, in order."""
    results = asyncio.run(_send_all(session, list(read_bodies(read_text(source)))))
    if session.as_json:
        session.show(results)
    if refused := sum("refused" in result for result in results):
        raise NotAcceptedError(f"{refused} not accepted, see above")


async def _send_all(session: Session, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The id or the refusal of each, in order; for people they are printed as they come."""
    results: list[dict[str, Any]] = []
    async with session.client as api:
        for start in range(0, len(bodies), IN_FLIGHT):
            batch = bodies[start : start + IN_FLIGHT]
            for number, sent in enumerate(await asyncio.gather(*(_send_one(api, body) for body in batch)), start + 1):
                if isinstance(sent, ApiError):
                    results.append({"number": number, "status": sent.status, "refused": sent.words})
                    typer.echo(f"notification {number}: {sent.status} {sent.words}", err=True)
                else:
                    results.append({"number": number, "id": sent})
                    if not session.as_json:
                        typer.echo(sent)
    return results


async def _send_one(api: ApiClient, body: dict[str, Any]) -> str | ApiError:
    """Its id, or why it is refused."""
    try:
        answer = await api.call("POST", "/v1/notifications", body, expect=(202,))
    except ApiError as exc:
        return exc
    return str(answer.body["id"])

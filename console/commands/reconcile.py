"""`heliograph reconcile`: providers are asked after every message that ended `unknown`.

May import replay.reconcile. Never: a vendor, a decision.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any

import typer

from console.commands.audit import moment
from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, settings_for
from replay.reconcile import Looked, Pace, Reconciliation, reconcile, unknown_messages
from replay.source import Reader
from runtime.errors import SettingsError
from runtime.kafka.producer import Producer
from runtime.settings import Settings

_WORDS = {
    "found": "the provider has it: sent",
    "refused": "the provider did not send it",
    "not_shown": "not shown, which proves nothing",
    "failed": "the provider did not answer",
    "cannot_ask": "the provider cannot be asked after it",
}


def _row(looked: Looked) -> dict[str, Any]:
    provider_message_id = getattr(looked.result, "provider_message_id", None)
    return {
        "message": looked.message.message_id,
        "notification": looked.message.notification_id,
        "provider": looked.provider,
        "outcome": looked.outcome,
        "provider_message_id": provider_message_id,
    }


async def _ask(
    settings: Settings, since_s: int, provider: str | None, limit: int, per_second: float, dry_run: bool
) -> list[Looked]:
    reader = Reader(settings.kafka)
    producer = None if dry_run else Producer(settings.kafka, client_id="reconcile")
    asking = Reconciliation(settings.providers, reader, Pace(per_second))
    try:
        await asking.start()
        pages = unknown_messages(settings.clickhouse, since_s, provider, limit)
        return [looked async for looked in reconcile(pages, asking, producer.publish if producer else None)]
    finally:
        await asking.close()
        reader.close()
        if producer is not None:
            producer.close()


def reconcile_command(
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Accepted since then, such as 2026-03-01 or -2h. 7 days unless given.")
    ] = "-7d",
    provider: Annotated[str | None, typer.Option(help="Of one provider account. All unless given.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Ask after that many messages at most.")] = 10_000,
    per_second: Annotated[float, typer.Option(min=0.01, max=1_000, help="Requests a second at most.")] = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask, and publish nothing.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask providers after messages in `unknown`; what they have becomes `sent`. Nothing is sent."""
    settings = settings_for(state_dir)
    names = [each.name for each in settings.providers]
    if provider is not None and provider not in names:
        raise SettingsError(f"there is no provider account {provider}; there are: {', '.join(names)}")
    looked = asyncio.run(_ask(settings, moment(since), provider, limit, per_second, dry_run))
    if as_json:
        show([_row(each) for each in looked], True)
        return
    counts = Counter(each.outcome for each in looked)
    rows = [
        {"outcome": word, "messages": counts[word], "meaning": text} for word, text in _WORDS.items() if counts[word]
    ]
    show(rows, False, empty="no message is unknown")
    if dry_run and looked:
        typer.echo("nothing was published")

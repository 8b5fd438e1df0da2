"""`heliograph demo`: a stack, reference data over HTTP, examples/requests.jsonl published, and every message accounted for.

    up ──► users, preferences, suppressions, templates ──► publish ──► watch ClickHouse ──► compare it with the vendors' log

    The verdict has an independent source: what ClickHouse says was sent is compared, message by message, with what the simulated
    vendors accepted and with the mails in the mailbox (local/verification.py).
May import every layer, rich, aiohttp for the metrics of roles. Never: a way for a message to be sent that others do not have.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import aiohttp
import typer

from local import stack
from local.verification import (
    ClickHouseResults,
    DemoEndpoints,
    Finding,
    compare,
    gather,
    local_endpoints,
    reports_pending,
)
from producers.notification import Notification
from producers.publisher import Publication, Publisher
from runtime.clock import system_clock, system_monotonic
from runtime.errors import HeliographError
from runtime.http.client import ApiClient
from runtime.settings import load_settings

if TYPE_CHECKING:
    from rich.console import Console

SERVICES = "https://services.example"
"""Where the examples' browsers and webhooks are: the simulator's address takes its place."""
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
GONE = "gone@nowhere.example"
FAULTS: tuple[Mapping[str, Any], ...] = (
    {"kind": "smtp", "mode": "reject", "match": GONE},
    {"kind": "smtp", "mode": "429", "times": 20},
    {"kind": "twilio", "mode": "429", "times": 10, "retry_after_s": 1},
    {"kind": "bulksms", "mode": "429", "times": 30, "retry_after_s": 1},
)
"""The vendors' faults during the demo: one mailbox does not exist, and sends are asked to retry later. The first account of SMS is
refused by its vendor all the time (layout.StackOptions.failover), and the second is throttled."""

POLL_S = 0.5
STALLED_S = 60.0
"""The demo ends when nothing has moved for this long: a retry waits 60 s at most, the faults above ask for one or two."""
AGREE_S = 10.0
"""How long the comparison may lag behind the last status: a sink's flush and its retry, and what vendors report later."""
STORED_S = 1.5
"""How long an accepted delivery report may take until it is in ClickHouse."""
_CONNECTIONS = 64
"""A write is answered when the relay has published it: they wait together."""
_TRIES = 10
"""Of a write that is answered 503: the relay may just have started."""


class DemoError(HeliographError):
    """The demo cannot continue, or its two sides differ."""


# -- reference data ----------------------------------------------------------------------------------------------------


async def write_reference(api: ApiClient, reference: Mapping[str, Any], templates: Sequence[Mapping[str, Any]]) -> None:
    """Users, their preferences, suppressions, templates; what is there already is replaced or left as it is."""
    preferences = reference["preferences"]

    async def user(body: Mapping[str, Any]) -> None:
        status, _ = await api.call("POST", "/v1/users", body, expect=(201, 409))
        if status == 409:
            await api.call("PUT", f"/v1/users/{body['id']}", body)
        if choices := preferences.get(body["id"]):
            await api.call("PUT", f"/v1/users/{body['id']}/preferences", choices)

    async def template(body: Mapping[str, Any]) -> None:
        status, _ = await api.call("POST", "/v1/templates", body, expect=(201, 409))
        if status == 409:
            _, present = await api.call("GET", f"/v1/templates/{body['id']}")
            if any(present[part] != body[part] for part in ("category", "channels", "locales")):
                await api.call("POST", f"/v1/templates/{body['id']}/versions", body)

    await asyncio.gather(*map(user, reference["users"]))
    await asyncio.gather(*(api.call("POST", "/v1/suppressions", body) for body in reference["suppressions"]))
    await asyncio.gather(*map(template, templates))


_VIEW_KEYS = re.compile(r'^heliograph_view_keys\{topic="([^"]+)"\} (\S+)$', re.MULTILINE)


async def wait_for_views(metrics: Mapping[str, str], wanted: Mapping[str, int], timeout_s: float = 10.0) -> None:
    """Return when every router holds that many keys; the gauges are a second behind."""
    deadline = system_monotonic() + timeout_s
    async with aiohttp.ClientSession() as session:
        for role, url in metrics.items():
            while role.startswith("router-") and system_monotonic() < deadline:
                async with session.get(url) as answer:
                    held = {topic: float(count) for topic, count in _VIEW_KEYS.findall(await answer.text())}
                if all(held.get(topic, 0) >= count for topic, count in wanted.items()):
                    break
                await asyncio.sleep(0.2)


async def prepare(
    endpoints: DemoEndpoints, reference: Mapping[str, Any], templates: Sequence[Mapping[str, Any]]
) -> int:
    """Write the reference data, script the faults; returns the last seq of the vendors' log."""
    if endpoints.simulator is not None:
        reference = json.loads(json.dumps(reference).replace(f'"{SERVICES}/', f'"{endpoints.simulator}/'))
    async with ApiClient(endpoints.api, endpoints.api_key, connections=_CONNECTIONS, tries=_TRIES) as api:
        await write_reference(api, reference, templates)
    wanted = {
        "notify.recipients.v1": len(reference["users"]),
        "notify.suppressions.v1": len(reference["suppressions"]),
        "notify.templates.v1": 2 * len(templates),  # the version, and the published one
    }
    if endpoints.metrics:
        await wait_for_views(endpoints.metrics, wanted)
    else:
        await asyncio.sleep(3)
    if endpoints.simulator is None:
        return 0
    async with ApiClient(endpoints.simulator) as simulator:
        if not (await simulator.call("GET", "/faults")).body:  # otherwise a user has scripted faults of their own
            for fault in FAULTS:
                await simulator.call("POST", "/faults", fault)
        return int((await simulator.call("GET", "/accepted/count")).body["count"])


async def calm(endpoints: DemoEndpoints) -> None:
    """Remove the demo's scripted faults, unless a user has added their own."""
    if endpoints.simulator is None:
        return
    async with ApiClient(endpoints.simulator) as simulator:
        faults = (await simulator.call("GET", "/faults")).body
        if [(fault["kind"], fault["mode"]) for fault in faults] == [(fault["kind"], fault["mode"]) for fault in FAULTS]:
            await simulator.call("DELETE", "/faults")


# -- publishing --------------------------------------------------------------------------------------------------------


def publications(bodies: Iterable[Mapping[str, Any]], run: str, started: int) -> Iterator[Publication]:
    """Requests as this run publishes them.

    A key makes the id together with accepted_at, so a copy has the same: the run's start. The run's name before the key
    makes the same file new notifications at the next run.
    """
    for body in bodies:
        rest = dict(body)
        key = rest.pop("request_id", None)
        notification = Notification.model_validate(rest)
        if key is None:
            yield Publication(notification, correlation_id=run)
        else:
            yield Publication(notification, f"{run}-{key}", accepted_at=started, correlation_id=run)


# -- watching ----------------------------------------------------------------------------------------------------------


def watch(
    results: ClickHouseResults, wanted: int, show: Callable[[dict[str, int], list[dict[str, Any]]], None]
) -> dict[str, int]:
    """Look until every notification is settled, or until nothing moves any more; returns the last accounting."""
    moved = system_monotonic()
    last: tuple[object, ...] = ()
    while True:
        accounting = results.accounting()
        report = results.report()
        show(accounting, report)
        if accounting["accepted"] >= wanted and accounting["in_flight"] == 0:
            return accounting
        now = (accounting, [tuple(row.values()) for row in report])
        if now != last:
            last = now
            moved = system_monotonic()
        if system_monotonic() - moved > STALLED_S:
            return accounting
        time.sleep(POLL_S)


# -- showing -----------------------------------------------------------------------------------------------------------


class Screen:
    """What a person sees: a bar that moves on a terminal, a line now and then everywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = system_monotonic()

    def line(self, what: str, text: str) -> None:
        """A step that is done, with the time since the last one."""
        elapsed = system_monotonic() - self._started
        self._started = system_monotonic()
        self._console.print(f"[bold]{what:<10}[/bold] {text} [dim]({elapsed:.1f} s)[/dim]", soft_wrap=True)

    @contextmanager
    def progress(self, wanted: int) -> Iterator[Callable[[dict[str, int], list[dict[str, Any]]], None]]:
        """A function that shows the run's progress."""
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.table import Column

        if not self._console.is_terminal:
            shown = [0.0]

            def plain(accounting: dict[str, int], report: list[dict[str, Any]]) -> None:
                if system_monotonic() - shown[0] > 2 or accounting["settled"] >= wanted:
                    shown[0] = system_monotonic()
                    self._console.print(
                        f"           {accounting['settled']:,} of {wanted:,} settled: {by_state(report) or 'nothing yet'}",
                        soft_wrap=True,
                    )

            yield plain
            return
        columns: list[ProgressColumn] = [
            TextColumn(text, table_column=Column(min_width=width, no_wrap=True))
            for text, width in (
                ("{task.description}", 9),
                ("{task.completed:,}/{task.total:,}", 11),
                ("{task.fields[states]}", 1),
            )
        ]
        columns.insert(1, BarColumn(20))
        with Progress(*columns, console=self._console, transient=True) as progress:
            accepted = progress.add_task("accepted", total=wanted, states="")
            settled = progress.add_task("settled", total=wanted, states="")

            def bars(accounting: dict[str, int], report: list[dict[str, Any]]) -> None:
                progress.update(accepted, completed=accounting["accepted"])
                progress.update(settled, completed=accounting["settled"], states=by_state(report, 3))

            yield bars

    def table(self, report: Sequence[Mapping[str, Any]]) -> None:
        """The closing report."""
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("channel", "state", "reason"):
            table.add_column(name)
        for name in ("messages", "attempts", "possibly twice"):
            table.add_column(name, justify="right")
        for row in report:
            table.add_row(
                row["channel"] or "(none)",
                row["state"],
                row["reason"],
                f"{row['messages']:,}",
                f"{row['attempts']:,}",
                f"{row['possible_duplicates']:,}",
            )
        self._console.print()
        self._console.print(table)
        self._console.print()


def by_state(report: Iterable[Mapping[str, Any]], most: int | None = None) -> str:
    """sent 1,203, skipped 40, ...: the most common first."""
    counts: Counter[str] = Counter()
    for row in report:
        counts[row["state"]] += int(row["messages"])
    return ", ".join(f"{state} {count:,}" for state, count in counts.most_common(most))


# -- the command -------------------------------------------------------------------------------------------------------


def run(endpoints: DemoEndpoints, examples: Path, screen: Screen, closing: Sequence[tuple[str, str]] = ()) -> bool:
    """The demo against a stack that is up; True when everything agrees. `closing` is said before the last line."""
    bodies = [json.loads(line) for line in _read(examples / "requests.jsonl").splitlines()]
    reference = json.loads(_read(examples / "reference.json"))
    templates = json.loads(_read(examples / "templates.json"))
    since_seq = asyncio.run(prepare(endpoints, reference, templates))
    screen.line(
        "reference",
        f"{len(reference['users'])} users, {len(reference['preferences'])} with preferences, "
        f"{len(reference['suppressions'])} suppressions, {len(templates)} templates",
    )
    started = system_clock()
    name = f"demo-{started:x}"
    with Publisher(endpoints.kafka, tenant=endpoints.tenant, source=name) as publisher:
        ids = publisher.publish_many(publications(bodies, name, started))
    published = set(ids)
    copies = len(ids) - len(published)
    screen.line("published", f"{len(ids):,} requests, {copies} of them copies: {len(published):,} notifications")
    results = ClickHouseResults(endpoints, started)
    try:
        with screen.progress(len(published)) as show:
            accounting = watch(results, len(published), show)
        asyncio.run(calm(endpoints))
        screen.line("settled", f"{accounting['settled']:,} of {len(published):,}")
        balanced, findings, accounting = _conclude(results, endpoints, published, since_seq, screen)
    finally:
        results.close()
    for what, text in closing:
        screen.line(what, text)
    for finding in findings:
        typer.echo(f"does not agree: {finding}", err=True)
    typer.echo(
        f"accepted {accounting['accepted']} = settled {accounting['settled']} + in flight {accounting['in_flight']}, "
        f"residual {accounting['residual']}"
    )
    return balanced and not findings


def _conclude(
    results: ClickHouseResults, endpoints: DemoEndpoints, published: set[str], since_seq: int, screen: Screen
) -> tuple[bool, list[Finding], dict[str, int]]:
    """Print the report and hold it against the vendors: (does the accounting balance, what does not agree, it)."""
    deadline = system_monotonic() + AGREE_S
    pending = asyncio.run(reports_pending(endpoints))
    complete = system_monotonic() + (STORED_S if pending is not None else 0)
    while True:
        if pending:
            pending = asyncio.run(reports_pending(endpoints))
            complete = system_monotonic() + STORED_S
        verification = gather(results, endpoints, published, since_seq)
        findings = compare(verification)
        accounting = results.accounting()
        balanced = (
            accounting["accepted"] == accounting["settled"] == len(published)
            and accounting["in_flight"] == accounting["residual"] == 0
        )
        if (balanced and not findings and system_monotonic() >= complete) or system_monotonic() > deadline:
            break
        time.sleep(POLL_S)
    screen.table(results.report())
    if endpoints.simulator is None:
        screen.line("compared", "nothing: --simulator names no vendors' log to hold it against")
    elif not findings:
        kinds = Counter(kind for kind, id_ in verification.accepts if id_ not in verification.others)
        sums = ", ".join(f"{kind} {kinds[kind]:,}" for kind in sorted(kinds))
        screen.line(
            "compared", f"the vendors accepted {sums}: each is recorded as sent, none is missing, none came twice"
        )
        if endpoints.mailbox is not None:
            screen.line(
                "compared", f"{len(verification.mails):,} mails are in the mailbox: every one that went by SMTP"
            )
    if failovers := results.failovers():
        words = ", ".join(f"{account} {count:,}" for account, count in failovers.items())
        screen.line("failover", f"{words}: each time the next account was asked at once")
    return balanced, findings, accounting


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as exc:
        raise DemoError(f"cannot read {path}: {exc.strerror}; give the directory with --examples") from exc


def _external(
    api: str | None, api_key: str | None, tenant: str, simulator: str | None, mailbox: str | None
) -> DemoEndpoints:
    settings = load_settings()
    if api_key is None:
        raise DemoError("--external needs --api-key, a key of the tenant whose data the demo may write")
    return DemoEndpoints(
        api=api or f"http://{settings.api.host}:{settings.api.port}",
        api_key=api_key,
        tenant=tenant,
        kafka=settings.kafka,
        clickhouse=settings.clickhouse,
        simulator=simulator,
        mailbox=mailbox,
    )


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit(143)


def demo(
    state_dir: Annotated[
        Path, typer.Option(help="Where the stack keeps its data, logs and endpoints.json.")
    ] = stack.DEFAULT_STATE_DIR,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running to look around.")] = False,
    external: Annotated[
        bool, typer.Option("--external", help="Use the endpoints of the settings instead of starting a stack.")
    ] = False,
    api: Annotated[str | None, typer.Option(help="With --external: URL of the API.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="HELIOGRAPH_API_KEY", help="With --external: an API key.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="With --external: the key's tenant.")] = "default",
    simulator: Annotated[str | None, typer.Option(help="With --external: URL of a vendor simulator.")] = None,
    mailbox: Annotated[str | None, typer.Option(help="With --external: URL of its mailbox.")] = None,
    examples: Annotated[Path, typer.Option(help="Where requests.jsonl and the reference data are.")] = EXAMPLES,
) -> None:
    """Start everything, send 2,400 example requests, account for every message, stop."""
    from rich.console import Console

    screen = Screen(Console(highlight=False))
    if external:
        raise typer.Exit(0 if run(_external(api, api_key, tenant, simulator, mailbox), examples, screen) else 1)
    signal.signal(signal.SIGTERM, _stop)
    running = stack.up(
        state_dir, detach=keep, failover=True, progress=lambda name: typer.echo(f"started {name}", err=True)
    )
    try:
        endpoints = running.endpoints
        screen.line("stack", f"{len(endpoints['pids'])} processes are ready, logs in {state_dir / 'logs'}")
        closing = [("running", f"API {endpoints['api']}, mails {endpoints['mailbox']}; stop it with heliograph down")]
        agrees = run(local_endpoints(endpoints), examples, screen, closing if keep else ())
    finally:
        # a stack that was running before belongs to the user
        if running.started_here and not keep:
            stack.down(state_dir)
    raise typer.Exit(0 if agrees else 1)

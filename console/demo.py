"""`heliograph demo`: a stack, reference data over HTTP, examples/requests.jsonl published, and every message accounted for.

    up ──► users, preferences, suppressions, templates ──► publish ──► watch ClickHouse ──► hold it against the vendors' log

The verdict is not ours alone: what ClickHouse says was sent is compared, message by message, with what the simulated vendors
accepted and with the mails that lie in the mailbox. `compare` is pure.
May import every layer, rich and aiohttp. What never enters here: a way for a message to be sent that others do not have.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import aiohttp
import typer

from console.local import stack
from producers.notification import Notification
from producers.publisher import Publication, Publisher
from runtime.clock import system_clock
from runtime.errors import HeliographError
from runtime.settings import ClickHouseSettings, KafkaSettings, load_settings
from sinks.clickhouse import connect, select, store_errors

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
KINDS = {"email": "smtp", "sms": "twilio", "push": "fcm"}
"""Channel → the kind under which the simulator logs its accepts."""
GONE = "gone@nowhere.example"
FAULTS: tuple[Mapping[str, Any], ...] = (
    {"kind": "smtp", "mode": "reject", "match": GONE},
    {"kind": "smtp", "mode": "429", "times": 20},
    {"kind": "twilio", "mode": "429", "times": 10, "retry_after_s": 1},
)
"""What the vendors do wrong meanwhile: one mailbox does not exist, and thirty sends are told to come back later."""

POLL_S = 0.5
STALLED_S = 60.0
"""Nothing moved for so long: a retry waits 60 s at most, the faults above ask for one or two."""
AGREE_S = 10.0
"""How long the comparison may lag behind the last status: a sink's flush and its retry."""
_CONNECTIONS = 64
"""A write is answered when the relay has published it: they wait together."""
_PAGE = 1_000
_SAMPLE = 5

_MESSAGES = """
SELECT toString(message_id), toString(notification_id), channel, state, possible_duplicate
FROM message_state
WHERE tenant = {tenant:String}
    AND hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
    AND accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
"""
_REQUESTS = """
SELECT toString(notification_id)
FROM requests
WHERE tenant = {tenant:String}
    AND hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
    AND accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
"""
# As text: what a vendor was given for an id need not be one.
_KNOWN = """
SELECT toString(message_id)
FROM message_state
WHERE tenant = {tenant:String} AND toString(message_id) IN {ids:Array(String)}
"""


class DemoError(HeliographError):
    """The demo cannot go on, or what it saw does not agree."""


# -- what is compared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """A message as ClickHouse has it."""

    id: str
    notification_id: str
    channel: str
    state: str
    possible_duplicate: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not agree, with ids to look at."""

    text: str
    ids: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.ids) - _SAMPLE} more" if len(self.ids) > _SAMPLE else ""
        return f"{len(self.ids)} {self.text}: {', '.join(self.ids[:_SAMPLE])}{more}"


@dataclass(slots=True)
class Evidence:
    """Both sides of one run: what Heliograph says, and what the vendors and the mailbox have."""

    published: set[str]
    requests: list[str]
    messages: list[Message]
    accepts: list[tuple[str, str]] = field(default_factory=list)
    """(kind, message id) of every accept since the start."""
    mails: list[str] = field(default_factory=list)
    """Message ids of the mails that came since the start."""
    others: set[str] = field(default_factory=set)
    """Message ids that are none of this run's but known to ClickHouse: an earlier run's late retries."""


def compare(evidence: Evidence) -> list[Finding]:
    """What does not agree; empty when everything does.

    | message in ClickHouse            | accepts at its channel's vendor |
    |----------------------------------|---------------------------------|
    | sent, delivered                  | exactly 1                       |
    | the same, flagged as possibly twice | 1 or more                    |
    | unknown; failed and flagged      | any number                      |
    | any other                        | 0                               |
    """
    accepts = Counter(evidence.accepts)
    lost, doubled, unrecorded = [], [], []
    expected: set[tuple[str, str]] = set()
    for message in evidence.messages:
        place = (KINDS.get(message.channel, message.channel), message.id)
        expected.add(place)
        count = accepts[place]
        if message.state in ("sent", "delivered"):
            if count == 0:
                lost.append(message.id)
            elif count > 1 and not message.possible_duplicate:
                doubled.append(message.id)
        elif count and message.state != "unknown" and not message.possible_duplicate:
            unrecorded.append(message.id)
    strange = [id_ for kind, id_ in accepts if (kind, id_) not in expected and id_ not in evidence.others]
    mails = Counter(evidence.mails)
    # A mail lies in the mailbox as often as the SMTP side accepted it.
    unfiled = [id_ for (kind, id_), count in accepts.items() if kind == KINDS["email"] and mails[id_] != count]
    requests = Counter(evidence.requests)
    found = {
        "published notifications are not in ClickHouse": sorted(evidence.published - requests.keys()),
        "notifications in ClickHouse were not published by this run": sorted(requests.keys() - evidence.published),
        "notifications were counted more than once": [id_ for id_, count in requests.items() if count > 1],
        "messages are recorded as sent, but no vendor accepted them": lost,
        "messages were accepted twice without a recorded reason": doubled,
        "messages were accepted by a vendor, but are recorded as not sent": unrecorded,
        "accepts at a vendor belong to no message": strange,
        "mails were accepted, but do not lie in the mailbox once per accept": unfiled,
    }
    return [Finding(text, tuple(ids)) for text, ids in found.items() if ids]


# -- where everything is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Places:
    """The endpoints of one demo."""

    api: str
    api_key: str
    tenant: str
    kafka: KafkaSettings
    clickhouse: ClickHouseSettings
    simulator: str | None = None
    mailbox: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)


def local_places(endpoints: Mapping[str, Any]) -> Places:
    """Out of endpoints.json."""
    return Places(
        api=endpoints["api"], api_key=endpoints["api_key"], tenant=endpoints["tenant"],
        kafka=KafkaSettings(bootstrap_servers=endpoints["kafka"]),
        clickhouse=ClickHouseSettings(url=endpoints["clickhouse"], database=endpoints["clickhouse_database"]),
        simulator=endpoints["simulator"], mailbox=endpoints["mailbox"], metrics=endpoints["metrics"],
    )  # fmt: skip


class Http:
    """JSON over HTTP with the demo's key."""

    def __init__(self, session: aiohttp.ClientSession, base: str, key: str | None = None) -> None:
        self._session, self._base = session, base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def call(self, method: str, path: str, body: Any = None, *, expect: Sequence[int] = (200, 201)) -> Any:
        """(status, JSON). Raises DemoError for a status that is not expected."""
        try:
            async with self._session.request(
                method, self._base + path, headers=self._headers, json=body, timeout=aiohttp.ClientTimeout(60)
            ) as answer:
                text = await answer.text()
                if answer.status not in expect:
                    raise DemoError(f"{method} {self._base}{path} answered {answer.status}: {text[:300]}")
                return answer.status, json.loads(text) if text else None
        except aiohttp.ClientError as exc:
            raise DemoError(f"{method} {self._base}{path} failed: {exc or type(exc).__name__}") from exc


# -- reference data ----------------------------------------------------------------------------------------------------


async def write_reference(api: Http, reference: Mapping[str, Any], templates: Sequence[Mapping[str, Any]]) -> None:
    """Users, their preferences, suppressions, templates; what is there already is replaced or left as it is."""
    preferences = reference["preferences"]

    async def user(body: Mapping[str, Any]) -> None:
        status, _ = await api.call("POST", "/v1/users", body, expect=(201, 409))
        if status == 409:
            await api.call("PUT", f"/v1/users/{body['id']}", body)
        if wishes := preferences.get(body["id"]):
            await api.call("PUT", f"/v1/users/{body['id']}/preferences", wishes)

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


async def wait_for_views(
    session: aiohttp.ClientSession, metrics: Mapping[str, str], wanted: Mapping[str, int], timeout_s: float = 10.0
) -> None:
    """Return when every router holds that many keys; the gauges are a second behind."""
    deadline = time.monotonic() + timeout_s
    for role, url in metrics.items():
        while role.startswith("router-") and time.monotonic() < deadline:
            async with session.get(url) as answer:
                held = {topic: float(count) for topic, count in _VIEW_KEYS.findall(await answer.text())}
            if all(held.get(topic, 0) >= count for topic, count in wanted.items()):
                break
            await asyncio.sleep(0.2)


async def prepare(places: Places, reference: Mapping[str, Any], templates: Sequence[Mapping[str, Any]]) -> int:
    """Write the reference data, script the faults; returns the last seq of the vendors' log."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_CONNECTIONS)) as session:
        await write_reference(Http(session, places.api, places.api_key), reference, templates)
        wanted = {
            "notify.recipients.v1": len(reference["users"]),
            "notify.suppressions.v1": len(reference["suppressions"]),
            "notify.templates.v1": 2 * len(templates),  # the version, and the published one
        }
        if places.metrics:
            await wait_for_views(session, places.metrics, wanted)
        else:
            await asyncio.sleep(3)
        if places.simulator is None:
            return 0
        simulator = Http(session, places.simulator)
        if not (await simulator.call("GET", "/faults"))[1]:  # else somebody has scripted their own
            for fault in FAULTS:
                await simulator.call("POST", "/faults", fault)
        return int((await simulator.call("GET", "/accepted/count"))[1]["count"])


async def calm(places: Places) -> None:
    """Take the scripted faults back, unless somebody has added their own."""
    if places.simulator is None:
        return
    async with aiohttp.ClientSession() as session:
        simulator = Http(session, places.simulator)
        _, faults = await simulator.call("GET", "/faults")
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


class Book:
    """What ClickHouse says about everything accepted since the start of the run."""

    def __init__(self, places: Places, since: int) -> None:
        self._settings, self._tenant = places.clickhouse, places.tenant
        self._client = connect(places.clickhouse)
        self._parameters = {"tenant": places.tenant, "since": since}

    def accounting(self) -> dict[str, int]:
        """accepted, settled, in_flight, residual."""
        rows = select(self._settings, self._client, "accounting", self._parameters)
        return {name: int(value or 0) for name, value in rows[0].items()}

    def report(self) -> list[dict[str, Any]]:
        """Messages by channel, state and reason."""
        return select(self._settings, self._client, "report", self._parameters)

    def requests(self) -> list[str]:
        """Every notification's id."""
        return [str(row[0]) for row in self._rows(_REQUESTS, self._parameters)]

    def messages(self) -> list[Message]:
        """Every message."""
        return [
            Message(str(id_), str(notification_id), channel, state, bool(twice))
            for id_, notification_id, channel, state, twice in self._rows(_MESSAGES, self._parameters)
        ]

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the message ids that ClickHouse knows, from whenever."""
        if not ids:
            return set()
        return {str(row[0]) for row in self._rows(_KNOWN, {"tenant": self._tenant, "ids": list(ids)})}

    def _rows(self, query: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        with store_errors(self._settings):
            rows: Sequence[Sequence[Any]] = self._client.query(query, parameters=dict(parameters)).result_rows
        return rows

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


def watch(book: Book, wanted: int, show: Callable[[dict[str, int], list[dict[str, Any]]], None]) -> dict[str, int]:
    """Look until every notification is settled, or until nothing moves any more; returns the last accounting."""
    moved = time.monotonic()
    last: tuple[object, ...] = ()
    while True:
        accounting, report = book.accounting(), book.report()
        show(accounting, report)
        if accounting["accepted"] >= wanted and accounting["in_flight"] == 0:
            return accounting
        now = (accounting, [tuple(row.values()) for row in report])
        if now != last:
            last, moved = now, time.monotonic()
        if time.monotonic() - moved > STALLED_S:
            return accounting
        time.sleep(POLL_S)


async def gather_accepts(places: Places, since_seq: int) -> tuple[list[tuple[str, str]], list[str]]:
    """(kind, message id) of every accept since, and the message id of every mail since."""
    accepts: list[tuple[str, str]] = []
    mails: list[str] = []
    async with aiohttp.ClientSession() as session:
        if places.simulator is not None:
            simulator = Http(session, places.simulator)
            _, entries = await simulator.call("GET", f"/accepted?since_seq={since_seq}")
            accepts = [(e["kind"], e["message_id"] or "") for e in entries if e["kind"] in KINDS.values()]
        if places.mailbox is not None:
            mailbox, offset, older = Http(session, places.mailbox), 0, False
            while not older:
                _, page = await mailbox.call("GET", f"/api/messages?limit={_PAGE}&offset={offset}")
                new = [mail for mail in page["entries"] if (mail["seq"] or 0) > since_seq]
                mails += [mail["message_id"] or "" for mail in new]
                older = len(new) < _PAGE
                offset += _PAGE
    return accepts, mails


def gather(book: Book, places: Places, published: set[str], since_seq: int) -> Evidence:
    """Both sides, as they are now: the vendors first, so that a message sent in between is not taken for lost."""
    accepts, mails = asyncio.run(gather_accepts(places, since_seq))
    messages = book.messages()
    ours = {message.id for message in messages}
    others = book.known([id_ for _, id_ in accepts if id_ not in ours and id_])
    if places.simulator is None:  # nothing to hold it against
        messages = [m for m in messages if m.state not in ("sent", "delivered")]
    return Evidence(published, book.requests(), messages, accepts, mails, others)


# -- showing -----------------------------------------------------------------------------------------------------------


class Screen:
    """What a person sees: a bar that moves on a terminal, a line now and then everywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def line(self, what: str, text: str) -> None:
        """A step that is done, with the time since the last one."""
        elapsed, self._started = time.monotonic() - self._started, time.monotonic()
        self._console.print(f"[bold]{what:<10}[/bold] {text} [dim]({elapsed:.1f} s)[/dim]", soft_wrap=True)

    @contextmanager
    def progress(self, wanted: int) -> Iterator[Callable[[dict[str, int], list[dict[str, Any]]], None]]:
        """A function that shows where the run stands."""
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.table import Column

        if not self._console.is_terminal:
            shown = [0.0]

            def plain(accounting: dict[str, int], report: list[dict[str, Any]]) -> None:
                if time.monotonic() - shown[0] > 2 or accounting["settled"] >= wanted:
                    shown[0] = time.monotonic()
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
                row["channel"] or "(none)", row["state"], row["reason"], f"{row['messages']:,}", f"{row['attempts']:,}",
                f"{row['possible_duplicates']:,}",
            )  # fmt: skip
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


def run(places: Places, examples: Path, screen: Screen, closing: Sequence[tuple[str, str]] = ()) -> bool:
    """The demo against a stack that is up; True when everything agrees. `closing` is said before the last line."""
    bodies = [json.loads(line) for line in _read(examples / "requests.jsonl").splitlines()]
    reference = json.loads(_read(examples / "reference.json"))
    templates = json.loads(_read(examples / "templates.json"))
    since_seq = asyncio.run(prepare(places, reference, templates))
    screen.line(
        "reference",
        f"{len(reference['users'])} users, {len(reference['preferences'])} with preferences, "
        f"{len(reference['suppressions'])} suppressions, {len(templates)} templates",
    )
    started = system_clock()
    name = f"demo-{started:x}"
    with Publisher(places.kafka, tenant=places.tenant, source=name) as publisher:
        ids = publisher.publish_many(publications(bodies, name, started))
    published = set(ids)
    copies = len(ids) - len(published)
    screen.line("published", f"{len(ids):,} requests, {copies} of them copies: {len(published):,} notifications")
    book = Book(places, started)
    try:
        with screen.progress(len(published)) as show:
            accounting = watch(book, len(published), show)
        asyncio.run(calm(places))
        screen.line("settled", f"{accounting['settled']:,} of {len(published):,}")
        balanced, findings, accounting = _conclude(book, places, published, since_seq, screen)
    finally:
        book.close()
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
    book: Book, places: Places, published: set[str], since_seq: int, screen: Screen
) -> tuple[bool, list[Finding], dict[str, int]]:
    """Print the report and hold it against the vendors: (does the accounting balance, what does not agree, it)."""
    deadline = time.monotonic() + AGREE_S
    while True:
        evidence = gather(book, places, published, since_seq)
        findings, accounting = compare(evidence), book.accounting()
        balanced = (
            accounting["accepted"] == accounting["settled"] == len(published)
            and accounting["in_flight"] == accounting["residual"] == 0
        )
        if (balanced and not findings) or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    screen.table(book.report())
    if places.simulator is None:
        screen.line("compared", "nothing: --simulator names no vendors' log to hold it against")
    elif not findings:
        kinds = Counter(kind for kind, id_ in evidence.accepts if id_ not in evidence.others)
        sums = ", ".join(f"{kind} {kinds[kind]:,}" for kind in KINDS.values())
        screen.line(
            "compared", f"the vendors accepted {sums}: each is recorded as sent, none is missing, none came twice"
        )
        if places.mailbox is not None:
            screen.line("compared", f"{len(evidence.mails):,} mails are in the mailbox: every one that was sent")
    return balanced, findings, accounting


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as exc:
        raise DemoError(f"cannot read {path}: {exc.strerror}; give the directory with --examples") from exc


def _external(api: str | None, api_key: str | None, tenant: str, simulator: str | None, mailbox: str | None) -> Places:
    settings = load_settings()
    if api_key is None:
        raise DemoError("--external needs --api-key, a key of the tenant whose data the demo may write")
    return Places(
        api=api or f"http://{settings.api.host}:{settings.api.port}", api_key=api_key, tenant=tenant, kafka=settings.kafka,
        clickhouse=settings.clickhouse, simulator=simulator, mailbox=mailbox,
    )  # fmt: skip


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
    running = stack.up(state_dir, detach=keep, progress=lambda name: typer.echo(f"started {name}", err=True))
    try:
        endpoints = running.endpoints
        screen.line("stack", f"{len(endpoints['pids'])} processes are ready, logs in {state_dir / 'logs'}")
        closing = [("running", f"API {endpoints['api']}, mails {endpoints['mailbox']}; stop it with heliograph down")]
        agrees = run(local_places(endpoints), examples, screen, closing if keep else ())
    finally:
        # a stack that was running before is somebody's
        if running.started_here and not keep:
            stack.down(state_dir)
    raise typer.Exit(0 if agrees else 1)

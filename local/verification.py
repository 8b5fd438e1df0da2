"""Both sides of a run: the outcome of every message in ClickHouse, and what the vendors and the mailbox have.

`compare` is pure and says what does not agree; the demo and the fault tests end with it.
May import sinks, vendors.registry and runtime.http.client. Never: publishing, a fault, a way to make the two sides agree.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.http.client import ApiClient
from runtime.settings import ClickHouseSettings, KafkaSettings
from sinks.clickhouse import connect, select, store_errors
from vendors.registry import VENDORS

CHANNELS = {vendor.kind: vendor.channel for vendor in VENDORS}
"""The kind under which the simulator logs an accept → its channel."""
_MAILED = "smtp"
"""The kind whose accepts are mails in the mailbox; other vendors of e-mail keep theirs."""
_TAKEN = ("sent", "delivered", "undelivered")
"""States of a message that a vendor took."""
_PAGE = 1_000
_MAX_LOG_BYTES = 1 << 30
"""Of the vendors' own log, with each message whole: our own simulator's."""
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
_FAILED_OVER = """
SELECT toString(provider), count()
FROM delivery_events
WHERE tenant = {tenant:String} AND state = 'failed_over'
    AND hour >= toStartOfHour(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))
    AND accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
GROUP BY 1 ORDER BY 2 DESC, 1
"""
# As text: what a vendor was given for an id need not be one.
_KNOWN = """
SELECT toString(message_id)
FROM message_state
WHERE tenant = {tenant:String} AND toString(message_id) IN {ids:Array(String)}
"""


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
class Verification:
    """Both sides of one run: what Heliograph says, and what the vendors and the mailbox have."""

    published: set[str]
    requests: list[str]
    messages: list[Message]
    accepts: list[tuple[str, str]] = field(default_factory=list)
    """(kind, message id) of every accept since the start."""
    mails: list[str] = field(default_factory=list)
    """Message ids of the mails that came since the start."""
    others: set[str] = field(default_factory=set)
    """Message ids that do not belong to this run but are in ClickHouse: an earlier run's late retries."""


def compare(verification: Verification) -> list[Finding]:
    """What does not agree; empty when everything does.

    | message in ClickHouse            | accepts at its channel's vendor |
    |----------------------------------|---------------------------------|
    | sent, delivered, undelivered     | exactly 1                       |
    | the same, flagged as possibly twice | 1 or more                    |
    | bounced                          | 0 (refused) or 1 (reported later) |
    | unknown; failed and flagged      | any number                      |
    | any other                        | 0                               |
    """
    accepts = Counter((CHANNELS.get(kind, kind), id_) for kind, id_ in verification.accepts)
    mailed = Counter(id_ for kind, id_ in verification.accepts if kind == _MAILED)
    lost = []
    doubled = []
    unrecorded = []
    expected: set[tuple[str, str]] = set()
    for message in verification.messages:
        key = (message.channel, message.id)
        expected.add(key)
        count = accepts[key]
        if message.state in (*_TAKEN, "bounced"):
            if count == 0 and message.state in _TAKEN:
                lost.append(message.id)
            elif count > 1 and not message.possible_duplicate:
                doubled.append(message.id)
        elif count and message.state != "unknown" and not message.possible_duplicate:
            unrecorded.append(message.id)
    strange = [id_ for kind, id_ in accepts if (kind, id_) not in expected and id_ not in verification.others]
    mails = Counter(verification.mails)
    # A mail is in the mailbox as often as the SMTP side accepted it.
    unfiled = [id_ for id_, count in mailed.items() if mails[id_] != count]
    requests = Counter(verification.requests)
    found = {
        "published notifications are not in ClickHouse": sorted(verification.published - requests.keys()),
        "notifications in ClickHouse were not published by this run": sorted(requests.keys() - verification.published),
        "notifications were counted more than once": [id_ for id_, count in requests.items() if count > 1],
        "messages are recorded as sent, but no vendor accepted them": lost,
        "messages were accepted twice without a recorded reason": doubled,
        "messages were accepted by a vendor, but are recorded as not sent": unrecorded,
        "accepts at a vendor belong to no message": strange,
        "mails were accepted, but are not in the mailbox once per accept": unfiled,
    }
    return [Finding(text, tuple(ids)) for text, ids in found.items() if ids]


# -- where everything is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DemoEndpoints:
    """The endpoints of one demo."""

    api: str
    api_key: str
    tenant: str
    kafka: KafkaSettings
    clickhouse: ClickHouseSettings
    simulator: str | None = None
    mailbox: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)


def local_endpoints(endpoints: Mapping[str, Any]) -> DemoEndpoints:
    """Out of endpoints.json."""
    return DemoEndpoints(
        api=endpoints["api"],
        api_key=endpoints["api_key"],
        tenant=endpoints["tenant"],
        kafka=KafkaSettings(bootstrap_servers=endpoints["kafka"]),
        clickhouse=ClickHouseSettings(url=endpoints["clickhouse"], database=endpoints["clickhouse_database"]),
        simulator=endpoints["simulator"],
        mailbox=endpoints["mailbox"],
        metrics=endpoints["metrics"],
    )


# -- both sides --------------------------------------------------------------------------------------------------------


class ClickHouseResults:
    """What ClickHouse says about everything accepted since the start of the run."""

    def __init__(self, endpoints: DemoEndpoints, since: int) -> None:
        self._settings = endpoints.clickhouse
        self._tenant = endpoints.tenant
        self._client = connect(endpoints.clickhouse)
        self._parameters = {"tenant": endpoints.tenant, "since": since}

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

    def failovers(self) -> dict[str, int]:
        """How often another account took over, by the account that did not send."""
        return {str(provider): int(count) for provider, count in self._rows(_FAILED_OVER, self._parameters)}

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


async def gather_accepts(endpoints: DemoEndpoints, since_seq: int) -> tuple[list[tuple[str, str]], list[str]]:
    """(kind, message id) of every accept since, and the message id of every mail since."""
    accepts: list[tuple[str, str]] = []
    mails: list[str] = []
    if endpoints.simulator is not None:
        async with ApiClient(endpoints.simulator, max_response_bytes=_MAX_LOG_BYTES) as simulator:
            entries = (await simulator.call("GET", f"/accepted?since_seq={since_seq}")).body
        accepts = [(e["kind"], e["message_id"] or "") for e in entries if e["kind"] in CHANNELS]
    if endpoints.mailbox is not None:
        offset = 0
        older = False
        async with ApiClient(endpoints.mailbox) as mailbox:
            while not older:
                page = (await mailbox.call("GET", f"/api/messages?limit={_PAGE}&offset={offset}")).body
                new = [mail for mail in page["entries"] if (mail["seq"] or 0) > since_seq]
                mails += [mail["message_id"] or "" for mail in new]
                older = len(new) < _PAGE
                offset += _PAGE
    return accepts, mails


async def reports_pending(endpoints: DemoEndpoints) -> int | None:
    """Reports of the simulated vendors that were not accepted yet; None if there were none to send."""
    if endpoints.simulator is None:
        return None
    async with ApiClient(endpoints.simulator) as simulator:
        reports = (await simulator.call("GET", "/callbacks")).body
    return int(reports["pending"]) if reports["pending"] or reports["answers"] else None


def gather(results: ClickHouseResults, endpoints: DemoEndpoints, published: set[str], since_seq: int) -> Verification:
    """Both sides, as they are now: the vendors first, so that a message sent in between is not taken for lost."""
    accepts, mails = asyncio.run(gather_accepts(endpoints, since_seq))
    messages = results.messages()
    ours = {message.id for message in messages}
    others = results.known([id_ for _, id_ in accepts if id_ not in ours and id_])
    if endpoints.simulator is None:  # nothing to hold it against
        messages = [m for m in messages if m.state not in _TAKEN]
    return Verification(published, results.requests(), messages, accepts, mails, others)

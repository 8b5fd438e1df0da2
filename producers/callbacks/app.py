"""POST /callbacks/<kind>: a provider's callback is answered only after the broker has acknowledged its records.

    | the request                                                        | response                 |
    |--------------------------------------------------------------------|--------------------------|
    | genuine; its receipts, and their status events, are acknowledged   | what the vendor calls taken (204) |
    | genuine, but a repetition                                          | the same                 |
    | the broker does not acknowledge, or too many callbacks wait for it | 503 + Retry-After        |
    | not signed by the account, or the account is not configured        | 403                      |
    | signed, and older than the vendor's last repetition                | 403, or what stops the vendor |
    | unreadable                                                         | 400, 405, 408, 413, 415  |

A request may hold many reports: all are published, then answered once. One that cannot be read is counted and passed over.
Receipts are published first, then status events. If the process dies in between it has not answered: the vendor repeats
the callback, and all records get the same ids again. A repeated genuine callback therefore adds nothing.
May import starlette. Never: a vendor's field, a Kafka client.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from producers.batcher import Batcher, Broker
from producers.callbacks.records import fact_record, receipt_of, receipt_record
from runtime.callbacks import PATH
from runtime.clock import Clock, system_clock
from runtime.errors import PublishError
from runtime.http.problems import PROBLEM_HANDLERS, Problem, bug_response, problem_response, unavailable
from runtime.logs import get_logger
from runtime.metrics import CALLBACK_SECONDS, CALLBACKS, RECEIPTS_TAKEN
from runtime.references import ReferenceView, reference_key, subject_of_reference
from schemas.events import ProviderReceipt
from vendors.reports import (
    DeliveryReport,
    ForgedError,
    MalformedError,
    NotNowError,
    ReportReader,
    Reports,
    Request,
    StaleError,
    UnknownAccountError,
)

BODY_TIMEOUT_S = 10.0
"""For a whole body: a vendor sends it at once; one that arrives slowly occupies a connection."""
MAX_WAITING = 1_000
"""Callbacks that wait for the broker at once."""
MAX_READING = 64 * 1024 * 1024
"""Bytes of bodies held at once, of callbacks that nobody signed too."""
HOLD_S = 0.05
"""For how long at most a callback is held back so that it is published with others: a broker that answers does so sooner."""
REMEMBERED = 65_536
"""Ids of recent receipts kept to recognise repetitions; an older one is published again, under the same id."""
RETRY_AFTER_S = 2

log = get_logger("callbacks")
T = TypeVar("T")


class _Recent(Generic[T]):
    """What was kept under the `size` keys that were added last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = OrderedDict[str, T]()

    def get(self, key: str) -> T | None:
        """None for a key that is not kept."""
        return self._kept.get(key)

    def add(self, key: str, value: T) -> None:
        """Add one; drop the oldest beyond `size`."""
        self._kept[key] = value
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def drop(self, key: str) -> None:
        """Forget one."""
        self._kept.pop(key, None)


class CallbackEndpoint:
    """Handles callbacks. `crash_here` gets the name of each step: the fault tests end the process there."""

    def __init__(
        self,
        broker: Broker,
        public_url: str,
        clock: Clock = system_clock,
        crash_here: Callable[[str], None] | None = None,
        remembered: int = REMEMBERED,
        references: ReferenceView | None = None,
        tenants: Callable[[str], Sequence[str]] = lambda _: (),
        publish_timeout_s: float = 5.0,
    ) -> None:
        """`tenants`: for whom an account sends."""
        # A little more than the producer's own limit, which names the cause.
        self._batcher = Batcher(broker, publish_timeout_s + 1, HOLD_S)
        self._tenants = tenants
        self._references = references
        self._public_url = public_url.rstrip("/")
        self._clock = clock
        self._crash_here = crash_here or (lambda _: None)
        # Whether the receipt said what it is about: the same event may come without, and then with it (SES).
        self._published_receipts = _Recent[bool](remembered)
        self._nonces = _Recent[bytes](remembered)
        self._waiting = 0
        self._held = 0

    async def take(self, kind: str, reader: ReportReader, scope: Scope, receive: Receive) -> Response:
        """The answer to one request. Raises Problem."""
        started = time.perf_counter()
        refused: str | None = "malformed"
        held = [0]
        try:
            request = await self._read(kind, reader, scope, receive, held)
            reports = self._resolved(await reader.read(request), request.received_at)
            refused = "unavailable"
            outcomes = await self._once(kind, reports, request)
            refused = None
        except MalformedError as exc:
            raise Problem(400, "malformed_callback", str(exc)) from exc
        except UnknownAccountError as exc:
            refused = "unknown_account"
            raise Problem(403, "unknown_account", "no account of this installation") from exc
        except StaleError as exc:
            refused = "stale"
            raise Problem(
                reader.intake.unusable or 403, "stale_callback", "the signature is older than any repetition of yours"
            ) from exc
        except ForgedError as exc:
            refused = "forged"
            log.warning("callback with a wrong signature refused", vendor=kind)
            raise Problem(
                403, "wrong_signature", "the signature is not that of the account over the public URL"
            ) from exc
        except PublishError as exc:
            raise unavailable(
                "broker_unavailable", "the broker did not acknowledge; send the callback again", RETRY_AFTER_S
            ) from exc
        except NotNowError as exc:
            refused = "unavailable"
            raise unavailable("not_now", f"{exc}; send the callback again", RETRY_AFTER_S) from exc
        finally:
            self._held -= held[0]
            if refused is not None:
                CALLBACKS.labels(kind, refused).inc()
            CALLBACK_SECONDS.labels(kind).observe(time.perf_counter() - started)
        for outcome in outcomes or (() if reports.unreadable else ("noted",)):
            CALLBACKS.labels(kind, outcome).inc()
        if reports.unreadable:
            CALLBACKS.labels(kind, "malformed").inc(reports.unreadable)
            log.warning("reports that cannot be read passed over", vendor=kind, count=reports.unreadable)
        useless = reports.unreadable and not reports.reports
        return Response(status_code=(useless and reader.intake.unusable) or reader.intake.taken)

    async def _read(self, kind: str, reader: ReportReader, scope: Scope, receive: Receive, held: list[int]) -> Request:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in reader.intake.media_types:
            wanted = " or ".join(sorted(reader.intake.media_types))
            raise Problem(415, "unsupported_media_type", f"a callback of this kind is {wanted}")
        if headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "unsupported_encoding", "Content-Encoding is not taken here")
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await self._body(receive, reader.intake.max_body, held)
        except TimeoutError as exc:
            raise Problem(408, "incomplete_body", "the body came too slowly", headers={"Connection": "close"}) from exc
        raw_query = scope["query_string"].decode("latin-1")
        url = f"{self._public_url}{PATH}{kind}" + (f"?{raw_query}" if raw_query else "")
        query = dict(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else {}
        return Request(url, query, headers, body, self._clock(), scope.get("path_params", {}).get("secret", ""))

    async def _body(self, receive: Receive, most: int, held: list[int]) -> bytes:
        """The body; `held` has its bytes so far, for the caller to give back. Raises Problem, NotNowError."""
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Problem(400, "malformed_callback", "the body is incomplete")
            chunk = message.get("body", b"")
            chunks.append(chunk)
            held[0] += len(chunk)
            self._held += len(chunk)
            if held[0] > most:
                raise Problem(413, "too_large", f"a callback has at most {most} bytes", headers={"Connection": "close"})
            if self._held > MAX_READING:
                raise NotNowError("too many callbacks at once")
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _resolved(self, reports: Reports, now: int) -> Reports:
        """The reports, with what their references stand for. Raises NotNowError while one may still be on its way."""
        if self._references is None or not any(report.reference for report in reports.reports):
            return reports
        resolved = []
        for report in reports.reports:
            if report.reference is not None:
                found = self._references.get(reference_key(report.provider, report.reference))
                if found is not None:
                    report = replace(report, subject=subject_of_reference(found))
                elif now < report.known_by:
                    raise NotNowError("the message is not known yet")
            resolved.append(report)
        return reports._replace(reports=resolved)

    async def _once(self, kind: str, reports: Reports, request: Request) -> list[str]:
        """As `_publish`. Raises ForgedError for a nonce that came with another body; it is used up only once all is published."""
        if (nonce := reports.nonce) is None:
            return await self._publish(kind, reports, request)
        digest = hashlib.sha256(request.body).digest()
        if self._nonces.get(nonce) not in (None, digest):
            raise ForgedError
        self._nonces.add(nonce, digest)
        try:
            return await self._publish(kind, reports, request)
        except PublishError:
            self._nonces.drop(nonce)
            raise

    async def _publish(self, kind: str, reports: Reports, request: Request) -> list[str]:
        """Publish what is new; returns the outcome of each report, values of the metric's label. Raises PublishError."""
        fresh: dict[str, tuple[ProviderReceipt, DeliveryReport]] = {}
        outcomes = []
        for report in reports.reports:
            receipt = receipt_of(report, request.body, request.received_at, self._tenants(report.provider))
            event_id, known = receipt["event_id"], receipt["message_id"] is not None
            before = self._published_receipts.get(event_id)
            if event_id in fresh or (before is not None and before >= known):
                outcomes.append("repeated")
                continue
            fresh[event_id] = receipt, report
            if not report.final:
                outcomes.append("noted")
            elif report.subject.attempt_ref is not None:
                outcomes.append("stated")
            else:
                outcomes.append("opted_out" if receipt["tenants"] else "no_message")
        if not fresh:
            return outcomes
        if self._waiting >= MAX_WAITING:
            raise PublishError("too many callbacks wait for the broker")
        facts = [
            fact_record(report, report.subject.attempt_ref, request.received_at)
            for _, report in fresh.values()
            if report.final and report.subject.attempt_ref is not None
        ]
        self._waiting += 1
        try:
            await self._batcher.publish([receipt_record(receipt) for receipt, _ in fresh.values()])
            self._crash_here("after_receipt")
            if facts:
                await self._batcher.publish(facts)
            self._crash_here("before_callback_answer")
        finally:
            self._waiting -= 1
        for event_id, (receipt, _) in fresh.items():
            self._published_receipts.add(event_id, receipt["message_id"] is not None)
            RECEIPTS_TAKEN.labels(kind, receipt["state"]).inc()
        return outcomes


class _Route:
    """The ASGI endpoint of one vendor."""

    def __init__(self, kind: str, reader: ReportReader, endpoint: CallbackEndpoint) -> None:
        self._kind, self._reader, self._endpoint = kind, reader, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._endpoint.take(self._kind, self._reader, scope, receive)
        except Problem as exc:
            response = problem_response(exc)
        except Exception as exc:  # noqa: BLE001 the boundary: it is logged, and answered with 500
            response = bug_response(f"{PATH}{self._kind}", exc)
        await response(scope, receive, send)


def create_app(readers: Mapping[str, ReportReader], endpoint: CallbackEndpoint) -> ASGIApp:
    """The application: a route per vendor, and one with a secret where the vendor may have that."""
    direct: dict[str, _Route] = {}
    routes = []
    for kind, reader in readers.items():
        direct[f"{PATH}{kind}"] = route = _Route(kind, reader, endpoint)
        paths = [f"{PATH}{kind}", *([f"{PATH}{kind}/{{secret}}"] if reader.intake.takes_secret else [])]
        routes += [Route(path, route, methods=["POST"]) for path in paths]
    app = Starlette(routes=routes, exception_handlers=PROBLEM_HANDLERS)
    app.router.redirect_slashes = False  # a redirect would be to what the request calls its host

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # A router with its middleware costs a third of what the rest of a callback does in this process.
        if scope["type"] == "http" and scope["method"] == "POST" and (route := direct.get(scope["path"])) is not None:
            await route(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve

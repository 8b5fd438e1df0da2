"""POST /callbacks/<kind>: a provider's callback is answered 204 only after the broker has acknowledged its records.

    | the request                                                        | response                 |
    |--------------------------------------------------------------------|--------------------------|
    | genuine; its receipt, and its status event, are acknowledged       | 204                      |
    | genuine, but a repetition                                          | 204                      |
    | the broker does not acknowledge, or too many callbacks wait for it | 503 + Retry-After        |
    | not signed by the account, or the account is not configured        | 403                      |
    | unreadable                                                         | 400, 405, 408, 413, 415  |

The receipt is published first, then the status event. If the process dies in between it has not answered: the vendor repeats
the callback, and both records get the same ids again. A repeated genuine callback therefore adds nothing.
May import starlette. Never: a vendor's field, a Kafka client.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from producers.callbacks.records import fact_record, receipt_of, receipt_record
from runtime.callbacks import PATH, attempt_ref_of, message_id_of
from runtime.clock import Clock, system_clock
from runtime.errors import PublishError
from runtime.http.problems import PROBLEM_HANDLERS, Problem, unavailable
from runtime.logs import get_logger
from runtime.metrics import CALLBACK_SECONDS, CALLBACKS
from runtime.records import ProducerRecord
from vendors.reports import DeliveryReport, ForgedError, MalformedError, ReportReader, Request, UnknownAccountError

MAX_BODY = 64 * 1024
BODY_TIMEOUT_S = 10.0
"""For a whole body: a vendor sends it at once; one that arrives slowly occupies a connection."""
MAX_WAITING = 1_000
"""Callbacks that wait for the broker at once."""
REMEMBERED = 65_536
"""Ids of recent receipts kept to recognise repetitions; an older one is published again, under the same id."""
RETRY_AFTER_S = 2

log = get_logger("callbacks")


class Broker(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Done when every record is acknowledged. Raises PublishError."""


class _Recent:
    """The `size` ids that were added last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ids = OrderedDict[str, None]()

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    def add(self, event_id: str) -> None:
        """Add one; drop the oldest beyond `size`."""
        self._ids[event_id] = None
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)


class CallbackEndpoint:
    """Handles callbacks. `crash_here` gets the name of each step: the fault tests end the process there."""

    def __init__(
        self,
        broker: Broker,
        public_url: str,
        clock: Clock = system_clock,
        crash_here: Callable[[str], None] | None = None,
        remembered: int = REMEMBERED,
    ) -> None:
        self._broker = broker
        self._public_url = public_url.rstrip("/")
        self._clock = clock
        self._crash_here = crash_here or (lambda _: None)
        self._published_receipts = _Recent(remembered)
        self._waiting = 0

    async def take(self, kind: str, reader: ReportReader, http: HttpRequest) -> Response:
        """The answer to one request. Raises Problem."""
        started = time.perf_counter()
        outcome = "malformed"
        try:
            request = await self._read(kind, reader, http)
            report = reader.read(request)
            outcome = "unavailable"
            outcome = await self._publish(report, request)
        except ClientDisconnect as exc:
            raise Problem(400, "malformed_callback", "the body is incomplete") from exc
        except MalformedError as exc:
            raise Problem(400, "malformed_callback", str(exc)) from exc
        except UnknownAccountError as exc:
            outcome = "unknown_account"
            raise Problem(403, "unknown_account", "no account of this installation") from exc
        except ForgedError as exc:
            outcome = "forged"
            log.warning("callback with a wrong signature refused", vendor=kind)
            raise Problem(
                403, "wrong_signature", "the signature is not that of the account over the public URL"
            ) from exc
        except PublishError as exc:
            raise unavailable(
                "broker_unavailable", "the broker did not acknowledge; send the callback again", RETRY_AFTER_S
            ) from exc
        finally:
            CALLBACKS.labels(kind, outcome).inc()
            CALLBACK_SECONDS.labels(kind).observe(time.perf_counter() - started)
        return Response(status_code=204)

    async def _read(self, kind: str, reader: ReportReader, http: HttpRequest) -> Request:
        headers = {name.lower(): value for name, value in http.headers.items()}
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != reader.content_type:
            raise Problem(415, "unsupported_media_type", f"a callback of this kind is {reader.content_type}")
        if headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "unsupported_encoding", "Content-Encoding is not taken here")
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _body(http)
        except TimeoutError as exc:
            raise Problem(408, "incomplete_body", "the body came too slowly", headers={"Connection": "close"}) from exc
        raw_query = http.scope["query_string"].decode("latin-1")
        url = f"{self._public_url}{PATH}{kind}" + (f"?{raw_query}" if raw_query else "")
        return Request(url, dict(parse_qsl(raw_query, keep_blank_values=True)), headers, body)

    async def _publish(self, report: DeliveryReport, request: Request) -> str:
        """Publish what is new; returns the outcome, a value of the metric's label. Raises PublishError."""
        now = self._clock()
        receipt = receipt_of(report, message_id_of(request.query), request.body, now)
        if receipt["event_id"] in self._published_receipts:
            return "repeated"
        attempt_ref = attempt_ref_of(request.query) if report.final else None
        if self._waiting >= MAX_WAITING:
            raise PublishError("too many callbacks wait for the broker")
        self._waiting += 1
        try:
            await self._broker.send([receipt_record(receipt)])
            self._crash_here("after_receipt")
            if attempt_ref is not None:
                await self._broker.send([fact_record(report, attempt_ref, now)])
            self._crash_here("before_callback_answer")
        finally:
            self._waiting -= 1
        self._published_receipts.add(receipt["event_id"])
        if not report.final:
            return "noted"
        return "no_message" if attempt_ref is None else "stated"


async def _body(http: HttpRequest) -> bytes:
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Problem(413, "too_large", f"a callback has at most {MAX_BODY} bytes", headers={"Connection": "close"})
    return bytes(body)


def create_app(readers: Mapping[str, ReportReader], endpoint: CallbackEndpoint) -> Starlette:
    """The application: a route per vendor."""

    def handler(kind: str, reader: ReportReader) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def take(request: HttpRequest) -> Response:
            return await endpoint.take(kind, reader, request)

        return take

    routes = [Route(f"{PATH}{kind}", handler(kind, reader), methods=["POST"]) for kind, reader in readers.items()]
    app = Starlette(routes=routes, exception_handlers=PROBLEM_HANDLERS)
    app.router.redirect_slashes = False  # a redirect would be to what the request calls its host
    return app

"""An account over HTTP: a message becomes one POST, its answer a result. A vendor says how, this module does it.

    | what the request came to                       | result                                             |
    |------------------------------------------------|----------------------------------------------------|
    | no connection                                  | transient: it never left                           |
    | its response lost                              | in doubt                                           |
    | a response                                     | what the vendor's `read` makes of it               |
    | keys that `read` gives                         | the first row found in the vendor's table          |
    | no row                                         | transient (4xx) or in doubt, counted (codes.py)    |

`prepare` and `read` are pure, so that a vendor is tested without a network.
May import the shared modules of vendors. Never: a vendor, a retry.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic_core import from_json, to_json
from yarl import URL

from runtime.clock import Clock, system_clock
from runtime.outbound import MAX_ANSWER_BYTES, MAX_S, CheckedResolver, OutboundRules
from runtime.retry import parse_retry_after
from runtime.settings import ProviderSettings
from vendors.codes import CodeRule, Codes, classify_code, refuse_probe, unknown_http
from vendors.http import HttpResponse, HttpTransport, NotSentError, ResponseLostError
from vendors.provider import ProviderAccount, UnsendableError, bounded
from vendors.sender import (
    CANNOT_ASK,
    NOT_FOUND,
    Doubt,
    ErrorClass,
    InDoubt,
    ProbeRefusal,
    Rejected,
    Retry,
    SendResult,
    Sent,
)

MESSAGE_ID_HEADER = "X-Heliograph-Message-Id"
"""Brings our message id to a vendor whose API has no field for it: of use to who reads logs between us, and to the simulator."""
UNREADABLE = InDoubt("unreadable answer")
"""A success that does not say what it should."""


@dataclass(frozen=True, slots=True, repr=False)
class HttpRequest:
    """What goes out; it is never shown, as its headers hold credentials and its body an address."""

    url: str | URL
    headers: Mapping[str, str]
    body: bytes | None
    """None makes it a GET."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a vendor said other than yes: keys into its table, the most telling first, and the words to record.

    `retry_after_s` is a wait that it names elsewhere than in Retry-After.
    """

    keys: tuple[str, ...]
    code: str
    retry_after_s: float | None = None


class _HttpSender(ProviderAccount[HttpRequest]):
    """What sends by one POST a message."""

    codes: ClassVar[Codes]
    """The vendor's table."""

    def __init__(self, provider: ProviderSettings, clock: Clock, http: HttpTransport) -> None:
        super().__init__(provider)
        self._clock, self._http = clock, http

    async def start(self) -> None:
        """Make the session; opens no connection."""
        self._http.start()

    async def close(self) -> None:
        """Close the session."""
        await self._http.close()

    @abstractmethod
    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """What the answer to a message says; total, whatever it holds."""

    def rule(self, answer: Answer) -> CodeRule | None:
        """The row of an answer, None when the table does not know it."""
        return self.codes.find(*answer.keys)

    async def deliver(self, prepared: HttpRequest) -> SendResult:
        """One POST."""
        try:
            response = await self._ask(prepared)
        except NotSentError as exc:
            return Retry(ErrorClass.TRANSIENT, str(exc))
        except ResponseLostError as exc:
            return InDoubt(str(exc))
        answer = self.read(response)
        if not isinstance(answer, Answer):
            return answer
        wait_s = answer.retry_after_s
        if wait_s is None:
            wait_s = parse_retry_after(response.headers.get("retry-after"), self._clock())
        return classify_code(self.name, self.rule(answer), unknown_http(response.status), answer.code, wait_s)

    async def _ask(self, request: HttpRequest) -> HttpResponse:
        """Raises NotSentError, ResponseLostError."""
        if request.body is None:
            return await self._http.get(request.url, headers=request.headers)
        return await self._http.post(request.url, headers=request.headers, body=request.body)


class HttpAccount(_HttpSender):
    """One account of an HTTP vendor."""

    def __init__(self, provider: ProviderSettings, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock, HttpTransport(provider.timeout_s, provider.max_in_flight))

    @abstractmethod
    def probe_request(self) -> HttpRequest:
        """A request that needs the credentials and sends nothing."""

    @abstractmethod
    def read_probe(self, response: HttpResponse) -> ProbeRefusal | Answer | None:
        """What the answer to it says; None when the vendor serves the account."""

    async def probe(self) -> ProbeRefusal | None:
        """One request that sends nothing."""
        try:
            response = await self._ask(self.probe_request())
        except (NotSentError, ResponseLostError) as exc:
            return ProbeRefusal(ErrorClass.TRANSIENT, str(exc))
        answer = self.read_probe(response)
        if not isinstance(answer, Answer):
            return answer
        return refuse_probe(self.rule(answer), unknown_http(response.status), answer.code)


class LookUpAccount(HttpAccount):
    """One whose vendor can be asked after a message.

    | what the request came to                | result                                             |
    |-----------------------------------------|----------------------------------------------------|
    | no connection, its response lost        | transient: to be asked again                       |
    | 429, or 5xx                             | transient                                          |
    | any other error                         | cannot be asked: the key may not look, say         |
    | a response that shows the message       | what the vendor's `read_look_up` makes of it       |
    | one that does not, or is unreadable     | in doubt                                           |
    """

    shows_after_s: ClassVar[float]

    @abstractmethod
    def look_up_request(self, doubt: Doubt) -> HttpRequest | None:
        """A request that shows the message; None where too little of it is known."""

    @abstractmethod
    def read_look_up(self, response: HttpResponse, doubt: Doubt) -> Sent | Rejected | None:
        """What a successful answer says of the message, None where it does not show it; total."""

    async def look_up(self, doubt: Doubt) -> SendResult:
        """See the table above. Never raises for what a provider answers."""
        try:
            request = self.look_up_request(doubt)
        except UnsendableError:
            request = None
        if request is None:
            return CANNOT_ASK
        try:
            response = await self._ask(request)
        except (NotSentError, ResponseLostError) as exc:
            return Retry(ErrorClass.TRANSIENT, f"look-up: {exc}", account_wide=False)
        if response.status == 429 or response.status >= 500:
            wait_s = parse_retry_after(response.headers.get("retry-after"), self._clock())
            return Retry(ErrorClass.TRANSIENT, f"look-up: {response.status}", wait_s, account_wide=False)
        if response.status != 200:
            return replace(CANNOT_ASK, code=f"look-up: {response.status}")
        return bounded(self.read_look_up(response, doubt) or NOT_FOUND)


class GivenUrlAccount(_HttpSender):
    """One whose requests go to URLs that users give, where runtime/outbound.py lets them: its `deliver` may raise
    OutboundRefusedError for a name that does not resolve to what is public."""

    def __init__(self, provider: ProviderSettings, outbound: OutboundRules, clock: Clock = system_clock) -> None:
        http = HttpTransport(
            min(provider.timeout_s, MAX_S),
            provider.max_in_flight,
            max_response_bytes=MAX_ANSWER_BYTES,
            resolver=CheckedResolver(outbound),
        )
        super().__init__(provider, clock, http)
        self._outbound = outbound

    async def probe(self) -> None:
        """There is no vendor to ask, only receivers (registry.can_be_probed)."""


def json_body(value: object) -> bytes:
    """The value as JSON. Raises UnsendableError for text that is no Unicode."""
    try:
        return to_json(value)
    except ValueError as exc:
        raise UnsendableError("its text is not valid Unicode") from exc


def parsed(response: HttpResponse) -> Any:
    """The body as JSON, None when it is no JSON."""
    try:
        return from_json(response.body)
    except (ValueError, RecursionError):
        return None


def member(value: object, name: str) -> Any:
    """A member of an object, None where the value is no object or has none of that name."""
    return value.get(name) if isinstance(value, Mapping) else None


def items(value: object) -> list[Any]:
    """The items of a list, [] where the value is none."""
    return value if isinstance(value, list) else []


def said(status: int, *words: str | None) -> str:
    """Status and code in words."""
    return " ".join((str(status), *(word for word in words if word)))


def by_status(response: HttpResponse) -> Answer:
    """An answer of which its status says all."""
    return Answer((str(response.status),), said(response.status))


def sent_as(given: object) -> Sent | InDoubt:
    """Sent, under the id that a vendor gives in its success; in doubt where it gives none."""
    return Sent(given) if given and isinstance(given, str) else UNREADABLE

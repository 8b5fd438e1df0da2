"""SMS through Twilio: the SDK builds and authenticates the request and reads the answer, our transport carries it.

    | response                                 | result                            |
    |------------------------------------------|-----------------------------------|
    | an error with a code, or a status alone  | its row in codes.py               |
    | a code no row knows, status 4xx          | transient, counted                |
    | a code no row knows, any other status    | in_doubt, counted                 |
    | unreadable 2xx, response lost            | in_doubt                          |
    | no connection                            | transient                         |

The only sender that may import twilio. Never: a retry, Kafka.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlencode

from pydantic_core import from_json
from twilio.base.exceptions import TwilioException
from twilio.http import HttpClient
from twilio.http.response import Response
from twilio.rest import Client

from runtime import callbacks
from runtime.clock import Clock, system_clock
from runtime.retry import parse_retry_after
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.codes import CodeRule, classify_code, refuse_probe, unknown_http
from vendors.http import HttpTransport, NotSentError, ResponseLostError
from vendors.provider import ProviderAccount
from vendors.sender import ErrorClass, InDoubt, ProbeRefusal, Retry, SendResult, Sent
from vendors.settings import checked_base_url, parse_keys
from vendors.sms_text import clean_text
from vendors.twilio.codes import CODES
from vendors.twilio.keys import VENDOR_URL, TwilioKeys

_UNREADABLE = (TwilioException, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What the SDK raises for an answer that makes no sense."""


def twilio_rule(status: int, code: int | None) -> CodeRule | None:
    """The row of an answer; a code decides before its status does. None when the table does not know it."""
    return CODES.find(str(status)) if code is None else CODES.find(str(code))


def build_sms(message: ChannelMessage, sender: str, callback_url: str | None, provider: str = "") -> dict[str, str]:
    """Arguments of messages.create."""
    fields = {"to": message["address"], "from_": sender, "body": clean_text(message["text"] or "")}
    if callback_url:
        fields["status_callback"] = callbacks.callback_url(callback_url, message, provider)
    return fields


class _RefusedError(Exception):
    """Twilio answered with an error; carries what the SDK's own exception drops."""

    def __init__(self, status: int, code: int | None, retry_after: str | None) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def said(self) -> str:
        """Status and code in words."""
        return str(self.status) if self.code is None else f"{self.status} {self.code}"


def _error_code(body: bytes) -> int | None:
    try:
        response = from_json(body)
    except ValueError:
        return None
    code = response.get("code") if isinstance(response, dict) else None
    known = isinstance(code, int) and not isinstance(code, bool) and 0 <= code < 1_000_000
    return code if known else None


class _Transport(HttpClient):  # type: ignore[misc]
    """The SDK's HTTP seam over our transport. Raises _RefusedError for an error answer."""

    def __init__(self, http: HttpTransport, base_url: str) -> None:
        super().__init__(logging.getLogger("twilio"), True, None)
        self._http = http
        self._base_url = base_url

    async def request(
        self,
        method: str,
        uri: str,
        params: Any = None,
        data: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        url = self._base_url + uri.removeprefix(VENDOR_URL)
        if method == "GET":
            response = await self._http.get(url, headers=headers or {}, auth=auth)
        else:
            response = await self._http.post(url, headers=headers or {}, auth=auth, body=urlencode(data or {}).encode())
        if not 200 <= response.status < 300:
            raise _RefusedError(response.status, _error_code(response.body), response.headers.get("retry-after"))
        return Response(response.status, response.body.decode("utf-8", "replace"), response.headers)


class TwilioSender(ProviderAccount[dict[str, str]]):
    """One Twilio account."""

    channel = "sms"

    def __init__(self, provider: ProviderSettings, keys: TwilioKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider)
        self._keys = keys
        self._clock = clock
        self._http = HttpTransport(provider.timeout_s, provider.max_in_flight)
        transport = _Transport(self._http, checked_base_url(provider, keys.base_url))
        self._client = Client(keys.account_sid, keys.token(provider), http_client=transport)

    async def start(self) -> None:
        """Make the session."""
        self._http.start()

    def prepare(self, message: ChannelMessage) -> dict[str, str]:
        """Arguments of messages.create."""
        return build_sms(message, self._keys.sender, self._keys.callback_url, self.name)

    async def deliver(self, prepared: dict[str, str]) -> SendResult:
        """One POST to Messages.json."""
        try:
            created = await self._client.messages.create_async(**prepared)
        except NotSentError as exc:
            return Retry(ErrorClass.TRANSIENT, str(exc))
        except ResponseLostError as exc:
            return InDoubt(str(exc))
        except _RefusedError as exc:
            wait = parse_retry_after(exc.retry_after, self._clock())
            return classify_code(self.name, twilio_rule(exc.status, exc.code), unknown_http(exc.status), exc.said, wait)
        except _UNREADABLE as exc:
            return InDoubt(f"unreadable answer ({type(exc).__name__})")
        return Sent(created.sid) if created.sid else InDoubt("answer without a sid")

    async def probe(self) -> ProbeRefusal | None:
        """One GET of the account itself."""
        try:
            account = await self._client.api.v2010.accounts(self._keys.account_sid).fetch_async()
        except (NotSentError, ResponseLostError) as exc:
            return ProbeRefusal(ErrorClass.TRANSIENT, str(exc))
        except _RefusedError as exc:
            return refuse_probe(twilio_rule(exc.status, exc.code), unknown_http(exc.status), exc.said)
        except _UNREADABLE as exc:
            return ProbeRefusal(ErrorClass.TRANSIENT, f"unreadable answer ({type(exc).__name__})")
        return (
            None if account.status == "active" else ProbeRefusal(ErrorClass.ACCOUNT, f"the account is {account.status}")
        )

    async def close(self) -> None:
        """Close the session."""
        await self._http.close()


def create(provider: ProviderSettings) -> TwilioSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return TwilioSender(provider, parse_keys(TwilioKeys, provider))

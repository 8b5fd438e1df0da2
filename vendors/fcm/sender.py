"""Push through FCM HTTP v1: firebase-admin checks and encodes the payload and holds the credentials, our transport carries it.

    | response                                             | result                             |
    |------------------------------------------------------|------------------------------------|
    | an error with an FcmError's code, or a status alone  | its row in codes.py                |
    | INVALID_ARGUMENT about the token, not our payload    | permanent_recipient                |
    | SENDER_ID_MISMATCH before this account ever sent     | account: our project may be wrong  |
    | a code that is not in the table                      | transient (4xx) or in_doubt        |
    | unreadable 2xx                                       | in_doubt                           |
    | no access token                                      | transient, or account if refused   |

firebase-admin's own client retries a 500 four
times, so it is not used. The only module that imports firebase_admin. Never: a retry, Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from firebase_admin import credentials, messaging
from pydantic_core import to_json

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.fcm.codes import CODES, INVALID_ARGUMENT, INVALID_TOKEN, MISMATCH, UNPROVEN_MISMATCH
from vendors.google_token import AccessToken, GoogleAuthError, no_token
from vendors.http import HttpResponse
from vendors.http_account import UNREADABLE, Answer, HttpAccount, HttpRequest, items, member, parsed, said
from vendors.provider import UnsendableError
from vendors.push_data import push_data
from vendors.sender import InDoubt, ProbeRefusal, Retry, SendResult, Sent
from vendors.settings import ProviderKeys, checked_base_url, parse_keys

MESSAGE_ID_KEY = "heliograph_message_id"
PROBE_TOPIC = "heliograph-probe"
_JSON = {"Content-Type": "application/json"}


class FcmKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind fcm."""

    credentials_file: Path
    project_id: str | None = None
    base_url: str = "https://fcm.googleapis.com"


def build_push(message: ChannelMessage) -> dict[str, Any]:
    """The `message` object of FCM v1. Raises UnsendableError, and ValueError when firebase-admin refuses it."""
    given = push_data(message)
    data = {key: value if isinstance(value, str) else to_json(value).decode() for key, value in given.items()}
    notification = None
    if message["title"] or message["body"]:
        notification = messaging.Notification(title=message["title"] or None, body=message["body"] or None)
    # The collapse key makes a possible duplicate replace the first one on the device.
    android = messaging.AndroidConfig(collapse_key=message["message_id"])
    push = messaging.Message(
        token=message["address"],
        notification=notification,
        android=android,
        data={**data, MESSAGE_ID_KEY: message["message_id"]},
    )
    encoded: dict[str, Any] = messaging._MessagingService.encode_message(push)
    return encoded


def fcm_code(body: Any) -> str | None:
    """The key of an error's row: FcmError's code; INVALID_TOKEN where the token is what is invalid."""
    error = member(body, "error")
    if not isinstance(error, Mapping):
        return None
    details = [d for d in items(error.get("details")) if isinstance(d, Mapping)]
    code = next((d.get("errorCode") for d in details if str(d.get("@type", "")).endswith("FcmError")), None)
    if code == INVALID_ARGUMENT and "registration token" in str(error.get("message", "")).lower():
        violations = [v for d in details for v in items(d.get("fieldViolations")) if isinstance(v, Mapping)]
        if all(v.get("field") == "message.token" for v in violations):
            return INVALID_TOKEN
    return code if isinstance(code, str) and code.isascii() and len(code) <= 64 else None


class FcmSender(HttpAccount):
    """One Firebase project."""

    channel = "push"
    platforms = frozenset({"fcm"})
    codes = CODES

    def __init__(
        self,
        provider: ProviderSettings,
        keys: FcmKeys,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        super().__init__(provider, clock)
        try:
            certificate = credentials.Certificate(str(keys.credentials_file))
        except (OSError, ValueError) as exc:
            raise SettingsError(
                f"provider {provider.name}: credentials_file {keys.credentials_file} is not a service account's key file: {exc}"
            ) from exc
        self._token = AccessToken(certificate.get_credential(), provider.timeout_s, clock, monotonic)
        project = keys.project_id or certificate.project_id
        self._url = f"{checked_base_url(provider, keys.base_url)}/v1/projects/{project}/messages:send"
        self._proven = False
        """A push was taken: project and credential fit together."""

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The JSON body; its access token is added when it goes out."""
        try:
            return HttpRequest(self._url, _JSON, to_json({"message": build_push(message)}))
        except UnsendableError:
            raise
        except ValueError as exc:
            raise UnsendableError(f"firebase-admin refuses the payload ({type(exc).__name__})") from exc

    async def deliver(self, prepared: HttpRequest) -> SendResult:
        """One POST to messages:send."""
        try:
            return await super().deliver(prepared)
        except GoogleAuthError as exc:
            return Retry(*no_token(exc))

    async def _ask(self, request: HttpRequest) -> HttpResponse:
        """Raises GoogleAuthError, NotSentError, ResponseLostError."""
        headers = {**request.headers, "Authorization": f"Bearer {await self._token.get()}"}
        return await super()._ask(replace(request, headers=headers))

    async def probe(self) -> ProbeRefusal | None:
        """See read_probe."""
        try:
            return await super().probe()
        except GoogleAuthError as exc:
            return ProbeRefusal(*no_token(exc))

    def probe_request(self) -> HttpRequest:
        """A push that Google is to check and not to send (`validate_only`), to a topic that nobody subscribes to."""
        return HttpRequest(self._url, _JSON, to_json({"validate_only": True, "message": {"topic": PROBE_TOPIC}}))

    def read_probe(self, response: HttpResponse) -> Answer | None:
        """It checks credentials, project and permission."""
        return None if response.status == 200 else _refused(response, fcm_code(parsed(response)))

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        body = parsed(response)
        if response.status == 200:
            name = member(body, "name")
            if not name:
                return UNREADABLE
            self._proven = True
            return Sent(str(name))
        code = fcm_code(body)
        if code == MISMATCH and not self._proven:
            code = UNPROVEN_MISMATCH
        if response.status == 401:
            self._token.expire()
        return _refused(response, code)


def _refused(response: HttpResponse, code: str | None) -> Answer:
    """A code decides before its status does."""
    return Answer((code or str(response.status),), said(response.status, code))


def create(provider: ProviderSettings) -> FcmSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return FcmSender(provider, parse_keys(FcmKeys, provider))

"""Push through FCM HTTP v1: firebase-admin checks and encodes the payload and holds the credentials, our transport carries it.

    | answer                                             | reaction            |
    |----------------------------------------------------|---------------------|
    | 404 UNREGISTERED, 403 SENDER_ID_MISMATCH           | permanent_recipient |
    | 400 INVALID_ARGUMENT with FcmError and a token text| permanent_recipient |
    | other 400                                          | permanent_message   |
    | 429 QUOTA_EXCEEDED (first wait ≥ 60 s)             | throttled           |
    | 401, 403 otherwise, THIRD_PARTY_AUTH_ERROR         | account             |
    | 503 UNAVAILABLE                                    | transient           |
    | 500 and other 5xx, unreadable 2xx, answer lost     | in_doubt            |
    | no connection, no access token                     | transient           |

Codes: firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode. firebase-admin's own client retries a 500 four times, so it
is not used. The only module that imports firebase_admin. What never enters here: a retry, Kafka.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google.auth.transport.requests
from firebase_admin import credentials, messaging
from google.auth.exceptions import GoogleAuthError
from pydantic_core import from_json, to_json

from runtime.clock import Clock, system_clock
from runtime.errors import SettingsError
from runtime.metrics import UNKNOWN_CODES
from runtime.retry import parse_retry_after
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from senders.http import Answer, AnswerLostError, HttpTransport, NotSentError
from senders.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent, classify
from senders.settings import ProviderKeys, checked_base_url, parse_keys

MESSAGE_ID_KEY = "heliograph_message_id"
QUOTA_WAIT_S = 60.0
"""Project and topic quotas refill by the minute: firebase.google.com/docs/cloud-messaging/scale-fcm."""
_RENEW_BEFORE_S = 300


class FcmKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind fcm."""

    credentials_file: Path
    project_id: str | None = None
    base_url: str = "https://fcm.googleapis.com"


def build_push(message: ChannelMessage) -> dict[str, Any]:
    """The `message` object of FCM v1. Raises ValueError when firebase-admin refuses it."""
    data = from_json(message["data"]) if message["data"] else {}
    data = {str(key): value if isinstance(value, str) else to_json(value).decode() for key, value in data.items()}
    notification = None
    if message["title"] or message["body"]:
        notification = messaging.Notification(title=message["title"] or None, body=message["body"] or None)
    # The collapse key makes a possible duplicate replace the first one on the device.
    android = messaging.AndroidConfig(collapse_key=message["message_id"])
    push = messaging.Message(
        token=message["address"], notification=notification, android=android,
        data={**data, MESSAGE_ID_KEY: message["message_id"]},
    )  # fmt: skip
    encoded: dict[str, Any] = messaging._MessagingService.encode_message(push)
    return encoded


def fcm_error(status: int, body: Any) -> ErrorClass:
    """The table of this module's docstring."""
    error = body.get("error", {}) if isinstance(body, Mapping) else {}
    error = error if isinstance(error, Mapping) else {}
    details = [d for d in error.get("details") or [] if isinstance(d, Mapping)]
    code = next((d.get("errorCode") for d in details if str(d.get("@type", "")).endswith("FcmError")), None)
    if code in ("UNREGISTERED", "SENDER_ID_MISMATCH"):
        return ErrorClass.PERMANENT_RECIPIENT
    if status == 400:
        token_refused = code == "INVALID_ARGUMENT" and "registration token" in str(error.get("message", "")).lower()
        return ErrorClass.PERMANENT_RECIPIENT if token_refused else ErrorClass.PERMANENT_MESSAGE
    if status == 429:
        return ErrorClass.THROTTLED
    if status in (401, 403) or code == "THIRD_PARTY_AUTH_ERROR":
        return ErrorClass.ACCOUNT
    if status == 404:
        # Without UNREGISTERED it is the project that is not found, not the device.
        return ErrorClass.ACCOUNT
    if status == 503:
        return ErrorClass.TRANSIENT
    return ErrorClass.IN_DOUBT if status >= 500 or status < 400 else ErrorClass.PERMANENT_MESSAGE


class FcmSender:
    """One Firebase project."""

    channel = "push"
    platforms: frozenset[str] | None = frozenset({"fcm"})

    def __init__(self, provider: ProviderSettings, keys: FcmKeys, clock: Clock = system_clock) -> None:
        self.name = provider.name
        self.max_in_flight = provider.max_in_flight
        self.rate_per_second = provider.rate_per_second
        self._clock = clock
        try:
            certificate = credentials.Certificate(str(keys.credentials_file))
        except (OSError, ValueError) as exc:
            raise SettingsError(
                f"provider {provider.name}: credentials_file {keys.credentials_file} is not a service account's key file: {exc}"
            ) from exc
        self._credential = certificate.get_credential()
        project = keys.project_id or certificate.project_id
        self._url = f"{checked_base_url(provider, keys.base_url)}/v1/projects/{project}/messages:send"
        self._http = HttpTransport(provider.timeout_s, provider.max_in_flight)
        self._renewing = asyncio.Lock()
        self._valid_until = 0

    async def start(self) -> None:
        """Make the session; the access token is fetched with the first push."""
        self._http.start()

    async def _access_token(self) -> str:
        async with self._renewing:
            if self._clock() >= self._valid_until:
                # Blocking, once an hour, on a thread.
                await asyncio.to_thread(self._credential.refresh, google.auth.transport.requests.Request())
                self._valid_until = self._clock() + 1000 * (3600 - _RENEW_BEFORE_S)
            return str(self._credential.token)

    async def send(self, message: ChannelMessage) -> SendResult:
        """One POST to messages:send."""
        try:
            body = to_json({"message": build_push(message)})
        except ValueError as exc:
            return Rejected(ErrorClass.PERMANENT_MESSAGE, f"firebase-admin refuses the payload ({type(exc).__name__})")
        try:
            token = await self._access_token()
        except GoogleAuthError as exc:
            return Retry(ErrorClass.ACCOUNT, f"no access token ({type(exc).__name__})")
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            answer = await self._http.post(self._url, headers=headers, body=body)
        except NotSentError as exc:
            return Retry(ErrorClass.TRANSIENT, str(exc))
        except AnswerLostError as exc:
            return InDoubt(str(exc))
        return self._read(answer)

    def _read(self, answer: Answer) -> SendResult:
        try:
            body = from_json(answer.body)
        except ValueError:
            body = None
        if answer.status == 200:
            name = body.get("name") if isinstance(body, dict) else None
            return Sent(str(name)) if name else InDoubt("unreadable answer")
        error = fcm_error(answer.status, body)
        if answer.status == 401:
            self._valid_until = 0
        if error is ErrorClass.PERMANENT_MESSAGE and answer.status != 400:
            UNKNOWN_CODES.labels(self.name).inc()
        wait = parse_retry_after(answer.headers.get("retry-after"), self._clock())
        if error is ErrorClass.THROTTLED and wait is None:
            wait = QUOTA_WAIT_S
        return classify(error, str(answer.status), wait)

    async def close(self) -> None:
        """Close the session."""
        await self._http.close()


def create(provider: ProviderSettings) -> FcmSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return FcmSender(provider, parse_keys(FcmKeys, provider))

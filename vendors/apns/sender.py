"""Push through APNs: HTTP/2, a provider token (ES256 JWT), one request per claim.

    | response                                            | result                                          |
    |-----------------------------------------------------|-------------------------------------------------|
    | an error with a reason, or a status alone           | its row in codes.py                             |
    | ExpiredProviderToken                                | transient: signed again, sent by the next claim |
    | ExpiredProviderToken again within 20 minutes        | account: this machine's clock is wrong          |
    | a reason that is not in the table                   | transient (4xx) or in_doubt, counted            |
    | response lost, 1xx to 3xx                           | in_doubt                                        |
    | no connection, no stream, GOAWAY or REFUSED_STREAM  | transient                                       |

A 500 does not say that nothing was sent; the collapse id lets a possible duplicate replace the first one on the device.
aioapns gives the model of a push (NotificationRequest, PushType, priorities). Its connection pool sends again by itself
when a connection closes (five attempts), so our transport carries the push.
May import aioapns and jwt (the only module that does) and the transport. Never: aioapns's client or pool, a retry, Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import jwt
from aioapns.common import PRIORITY_HIGH, PRIORITY_NORMAL, NotificationRequest, PushType
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field
from pydantic_core import from_json, to_json

from runtime.clock import Clock, system_clock
from runtime.errors import SettingsError
from runtime.retry import parse_retry_after
from runtime.settings import ProviderSettings
from runtime.status import rfc3339
from schemas.events import ChannelMessage
from vendors.apns.codes import CODES, EXPIRED, RENEWED
from vendors.codes import CodeRule, classify_code, refuse_probe, unknown_http
from vendors.http import HttpResponse, NotSentError, ResponseLostError
from vendors.http2 import Http2Transport
from vendors.provider import ProviderAccount, UnsendableError
from vendors.push_data import is_silent, push_data
from vendors.sender import ErrorClass, InDoubt, ProbeRefusal, Rejected, Retry, SendResult, Sent
from vendors.settings import ProviderKeys, checked_base_url, parse_keys

MESSAGE_ID_KEY = "heliograph_message_id"
MAX_PAYLOAD_BYTES = 4096
NO_DEVICE = "0" * 64
"""A token in Apple's form that belongs to no device."""
TOKEN_AGE_MS = 45 * 60_000
"""Apple takes a token for an hour."""
MIN_TOKEN_AGE_MS = 20 * 60_000
"""Apple answers TooManyProviderTokenUpdates to more than one new token in twenty minutes."""


class ApnsKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind apns."""

    key_file: Path
    key_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,32}$")]
    team_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,32}$")]
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,255}$")]
    base_url: str = "https://api.push.apple.com"


@dataclass(frozen=True, slots=True)
class ApnsPush:
    """A request to Apple but for its authorization."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


def build_request(message: ChannelMessage, topic: str) -> NotificationRequest:
    """aioapns's model of the push, without an end in time. Raises UnsendableError when APNs would refuse its data.

    Apple delays or drops a push whose type does not match its payload.
    """
    silent = is_silent(message)
    # The lower priority lets the device choose the moment: what a campaign is worth, and all that Apple takes for a
    # background push.
    priority = PRIORITY_NORMAL if silent or message["lane"] == "bulk" else PRIORITY_HIGH
    return NotificationRequest(
        device_token=message["address"],
        message=build_payload(message),
        notification_id=message["message_id"],
        priority=int(priority),
        # A possible duplicate replaces the first one on the device.
        collapse_key=message["message_id"][:64],
        push_type=PushType.BACKGROUND if silent else PushType.ALERT,
        apns_topic=topic,
    )


def build_payload(message: ChannelMessage) -> dict[str, Any]:
    """The JSON object of the body; without title and body it wakes the app and shows nothing. Raises UnsendableError."""
    data = push_data(message)
    if "aps" in data:
        raise UnsendableError("the key aps in data is Apple's")
    aps: dict[str, Any] = {"content-available": 1}
    if not is_silent(message):
        alert = {"title": message["title"], "body": message["body"]}
        aps = {"alert": {name: text for name, text in alert.items() if text}}
    return {**data, "aps": aps, MESSAGE_ID_KEY: message["message_id"]}


def encode_payload(request: NotificationRequest) -> bytes:
    """The body as UTF-8 JSON. Raises UnsendableError above Apple's limit."""
    payload = to_json(request.message)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise UnsendableError(f"the payload has {len(payload)} bytes, APNs takes {MAX_PAYLOAD_BYTES}")
    return payload


def build_headers(request: NotificationRequest, expires_at: int | None) -> list[tuple[str, str]]:
    """Apple's headers but the authorization. `expires_at` is in Unix milliseconds; None leaves the end to Apple."""
    # All are set by build_request; aioapns's class calls them optional.
    assert request.collapse_key is not None and request.apns_topic is not None and request.push_type is not None
    headers = [
        ("apns-id", request.notification_id),
        ("apns-collapse-id", request.collapse_key),
        ("apns-topic", request.apns_topic),
        ("apns-push-type", request.push_type.value),
        ("apns-priority", str(request.priority)),
        ("content-type", "application/json"),
    ]
    if expires_at is not None:
        # A point in time; aioapns's time_to_live is a duration, which a push that waits would outlive.
        # 0 would mean "now or never".
        headers.append(("apns-expiration", str(max(1, expires_at // 1000))))
    return headers


def apns_rule(status: int, reason: str | None) -> CodeRule | None:
    """The row of an answer; a reason decides before its status does. None when the table does not know it."""
    return CODES.find(str(status)) if reason is None else CODES.find(reason)


class ProviderToken:
    """The JWT of an account: signed again before Apple's limit of an hour, and once when Apple calls it expired."""

    # Not aioapns's JWTAuthorizationHeaderProvider: it reads time.time() itself, and cannot be made to sign again.

    def __init__(self, key: EllipticCurvePrivateKey, key_id: str, team_id: str, clock: Clock) -> None:
        self._key = key
        self._key_id = key_id
        self._team_id = team_id
        self._clock = clock
        self._token = ""
        self._signed_at: int | None = None
        self._refused_at: int | None = None

    def get(self) -> str:
        """A token that Apple should take."""
        now = self._clock()
        if self._signed_at is None or not 0 <= now - self._signed_at < TOKEN_AGE_MS:
            self._sign(now)
        return self._token

    def expired(self, token: str) -> bool:
        """Apple calls `token` expired; whether there is a newer one now.

        Asked again within twenty minutes it is this machine's clock that is wrong, and there is none.
        """
        now = self._clock()
        recently = self._refused_at is not None and 0 <= now - self._refused_at < MIN_TOKEN_AGE_MS
        if token == self._token and not recently:
            self._refused_at = now
            self._sign(now)
        return token != self._token

    def _sign(self, now: int) -> None:
        claims = {"iss": self._team_id, "iat": now // 1000}
        self._token = jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._key_id})
        self._signed_at = now


class ApnsSender(ProviderAccount["ApnsPush"]):
    """One team's key and one app's topic."""

    channel = "push"
    platforms = frozenset({"apns"})

    def __init__(self, provider: ProviderSettings, keys: ApnsKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider)
        self._topic = keys.topic
        self._clock = clock
        self._token = ProviderToken(_read_key(provider, keys.key_file), keys.key_id, keys.team_id, clock)
        self._http = Http2Transport(checked_base_url(provider, keys.base_url), provider.timeout_s)

    async def start(self) -> None:
        """Connects with the first push."""

    def prepare(self, message: ChannelMessage) -> ApnsPush:
        """The push but for the account's token."""
        request = build_request(message, self._topic)
        path = "/3/device/" + quote(request.device_token, safe="")
        return ApnsPush(path, build_headers(request, message["expires_at"]), encode_payload(request))

    async def deliver(self, prepared: ApnsPush) -> SendResult:
        """One POST to /3/device/<token>."""
        token = self._token.get()
        try:
            response = await self._post(prepared, token)
        except NotSentError as exc:
            return Retry(ErrorClass.TRANSIENT, str(exc))
        except ResponseLostError as exc:
            return InDoubt(str(exc))
        return self._read(response, token)

    async def _post(self, push: ApnsPush, token: str) -> HttpResponse:
        """Raises NotSentError or ResponseLostError."""
        headers = [("authorization", f"bearer {token}"), *push.headers]
        return await self._http.post(push.path, headers=headers, body=push.body)

    async def probe(self) -> ProbeRefusal | None:
        """A silent push to a token that no device has: Apple looks at ours first, and then calls that one bad."""
        headers = [("apns-topic", self._topic), ("apns-push-type", "background"), ("apns-priority", "5")]
        try:
            response = await self._post(ApnsPush(f"/3/device/{NO_DEVICE}", headers, b'{"aps":{}}'), self._token.get())
        except (NotSentError, ResponseLostError) as exc:
            return ProbeRefusal(ErrorClass.TRANSIENT, str(exc))
        reason, _ = _reason(response)
        rule = apns_rule(response.status, reason)
        if response.status == 200 or (rule is not None and rule.error is ErrorClass.PERMANENT_RECIPIENT):
            return None
        return refuse_probe(rule, unknown_http(response.status), _code(response.status, reason, None))

    def _read(self, response: HttpResponse, token: str) -> SendResult:
        if response.status == 200:
            return Sent(response.headers.get("apns-id"))
        reason, timestamp = _reason(response)
        rule = apns_rule(response.status, reason)
        if reason == EXPIRED and self._token.expired(token):
            rule = RENEWED
        wait = parse_retry_after(response.headers.get("retry-after"), self._clock())
        since = _invalid_since(response.status, timestamp)
        code = _code(response.status, reason, since)
        result = classify_code(self.name, rule, unknown_http(response.status), code, wait)
        return replace(result, invalid_since=since) if isinstance(result, Rejected) else result

    async def close(self) -> None:
        """Close the connection."""
        await self._http.close()


def _reason(response: HttpResponse) -> tuple[str | None, object]:
    """(reason, timestamp) of an error's body, as far as it has them."""
    try:
        body = from_json(response.body)
    except ValueError:
        body = None
    body = body if isinstance(body, Mapping) else {}
    reason = body.get("reason")
    return (reason if isinstance(reason, str) else None), body.get("timestamp")


def _invalid_since(status: int, timestamp: object) -> int | None:
    """Since when Apple calls the device dead: a device that registered later is alive."""
    if status != 410 or not isinstance(timestamp, int) or isinstance(timestamp, bool) or not 0 < timestamp < 1 << 43:
        return None
    # Milliseconds, as Apple's table says; a test double may say seconds.
    return timestamp if timestamp > 10**11 else timestamp * 1000


def _code(status: int, reason: str | None, since: int | None) -> str:
    """`410 Unregistered since ...`."""
    known = reason if reason and reason.isascii() and reason.isalnum() and len(reason) <= 64 else None
    code = f"{status} {known}" if known else str(status)
    return code if since is None else f"{code} since {rfc3339(since)}"


def _read_key(provider: ProviderSettings, file: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as exc:
        raise SettingsError(f"provider {provider.name}: key_file {file} is not Apple's .p8 file: {exc}") from exc
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise SettingsError(f"provider {provider.name}: key_file {file} holds no P-256 key")
    return key


def create(provider: ProviderSettings) -> ApnsSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return ApnsSender(provider, parse_keys(ApnsKeys, provider))

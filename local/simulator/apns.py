"""Apple Push Notification service: HTTP/2 without TLS (prior knowledge), provider tokens verified, Apple's errors.

On start it writes a .p8 key that is kept across restarts. Any device token but zeros is taken, so that tests can name their devices;
the topic must be ours (DeviceTokenNotForTopic). Our id is the apns-id. Apple answers an accept without a body: `bad_json`
puts garbage there. A fault that ends the connection ends every stream on it, as it would at Apple's.

May import the simulator's state, h2 and cryptography. Never: a decision on scripted faults (faults.py), the senders' JWT library.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error
from h2.settings import SettingCodes

from local.simulator import APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC
from local.simulator.faults import Mode
from local.simulator.ground_truth import Accept, GroundTruthError
from local.simulator.state import SimulatorState, reset_connection

KIND = "apns"
NO_DEVICE = "0" * 64
_MAX_STREAMS = 1000
_MAX_PAYLOAD_BYTES = 4096
_TOKEN_LIFETIME_S = 3600
_PATH = re.compile(r"/3/device/([^/]*)\Z")
_PUSH_TYPES = frozenset(
    {"alert", "background", "location", "voip", "complication", "fileprovider", "mdm", "liveactivity", "pushtotalk"}
)


class ApnsKeyError(Exception):
    """The key file cannot be used."""


@dataclass(frozen=True, slots=True)
class ApnsResponse:
    """Status, headers and body of one answer."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def error(status: int, reason: str, retry_after: str | None = None, **more: Any) -> ApnsResponse:
    """An error as Apple writes it."""
    headers = () if retry_after is None else (("retry-after", retry_after),)
    return ApnsResponse(status, json.dumps({"reason": reason, **more}).encode(), headers)


class ProviderKey:
    """The key of the simulator's team."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def load_or_create(cls, path: Path) -> ProviderKey:
        """Read the key of an earlier run or make one, mode 0600. Raises ApnsKeyError."""
        if path.exists():
            try:
                key = serialization.load_pem_private_key(path.read_bytes(), None)
            except (ValueError, TypeError) as exc:
                raise ApnsKeyError(f"{path} is not a key file: move it to another place") from exc
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ApnsKeyError(f"{path} holds a key that is not EC: move it to another place")
            return cls(key)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
        temporary.replace(path)
        return cls(key)

    def refusal(self, authorization: str, now: float) -> ApnsResponse | None:
        """Why Apple would not take this provider token, None when it would."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            return error(403, "MissingProviderToken")
        try:
            signed, _, signature = token.rpartition(".")
            header, claims = (json.loads(_unbase64(part)) for part in signed.split("."))
            raw = _unbase64(signature)
            der = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
            self._key.public_key().verify(der, signed.encode(), ec.ECDSA(hashes.SHA256()))
            known = (header["alg"], header["kid"], claims["iss"]) == ("ES256", APNS_KEY_ID, APNS_TEAM_ID)
            age = now - float(claims["iat"])
        except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature):
            return error(403, "InvalidProviderToken")
        if not known or age < -60:
            return error(403, "InvalidProviderToken")
        return error(403, "ExpiredProviderToken") if age > _TOKEN_LIFETIME_S else None


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def refusal(headers: Mapping[str, str], body: bytes, key: ProviderKey, now: float) -> ApnsResponse | None:
    """Why Apple would not take this request, None when it would."""
    if headers.get(":method") != "POST":
        return error(405, "MethodNotAllowed")
    found = _PATH.match(headers.get(":path", ""))
    if found is None:
        return error(404, "BadPath")
    if (refused := key.refusal(headers.get("authorization", ""), now)) is not None:
        return refused
    if not found[1]:
        return error(400, "MissingDeviceToken")
    if found[1] == NO_DEVICE:
        return error(400, "BadDeviceToken")
    if not body:
        return error(400, "PayloadEmpty")
    if len(body) > _MAX_PAYLOAD_BYTES:
        return error(413, "PayloadTooLarge")
    if "apns-topic" not in headers:
        return error(400, "MissingTopic")
    if headers["apns-topic"] != APNS_TOPIC:
        return error(400, "DeviceTokenNotForTopic")
    if headers.get("apns-push-type", "alert") not in _PUSH_TYPES:
        return error(400, "InvalidPushType")
    if headers.get("apns-priority", "10") not in ("1", "5", "10"):
        return error(400, "BadPriority")
    if len(headers.get("apns-collapse-id", "").encode()) > 64:
        return error(400, "BadCollapseId")
    if not headers.get("apns-expiration", "0").isdigit():
        return error(400, "BadExpirationDate")
    try:
        uuid.UUID(headers.get("apns-id", str(uuid.UUID(int=0))))
    except ValueError:
        return error(400, "BadMessageId")
    return None


@dataclass(slots=True)
class _Request:
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)


class ApnsSession(asyncio.Protocol):
    """One connection; its streams are answered as they are decided, in any order."""

    def __init__(self, state: SimulatorState, key: ProviderKey) -> None:
        self._state = state
        self._key = key
        self._http2 = H2Connection(H2Configuration(client_side=False))
        self._transport: asyncio.Transport
        self._requests: dict[int, _Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._http2.initiate_connection()
        self._http2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS})
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._http2.receive_data(data):
                match event:
                    case RequestReceived(stream_id=int(stream_id), headers=headers):
                        self._requests[stream_id] = _Request({_text(n): _text(v) for n, v in headers or ()})
                    case DataReceived(stream_id=int(stream_id), data=piece, flow_controlled_length=length):
                        self._http2.acknowledge_received_data(length or 0, stream_id)
                        request = self._requests.get(stream_id)
                        if request is not None and len(request.body) <= _MAX_PAYLOAD_BYTES:
                            request.body += piece or b""
                    case StreamEnded(stream_id=int(stream_id)):
                        self._begin(stream_id)
                    case StreamReset(stream_id=int(stream_id)):
                        self._requests.pop(stream_id, None)
                    case ConnectionTerminated():
                        self._transport.close()
                    case _:
                        pass  # bookkeeping that h2 has done
        except H2Error:
            self._flush()
            self._transport.close()
            return
        self._flush()

    def _begin(self, stream_id: int) -> None:
        request = self._requests.pop(stream_id, None)
        if request is not None:
            # Continues when the client hangs up: a vendor that has read a request may still accept it.
            task = asyncio.get_running_loop().create_task(self._serve(stream_id, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream_id: int, request: _Request) -> None:
        try:
            answer = await self._decide(request)
        except GroundTruthError:
            self._transport.abort()  # nothing that is not in the log may look accepted
            return
        if answer is None or self._transport.is_closing():
            return
        headers = [
            (":status", str(answer.status)),
            ("apns-id", request.headers.get("apns-id") or str(uuid.uuid4())),
            *answer.headers,
        ]
        try:
            self._http2.send_headers(stream_id, headers, end_stream=not answer.body)
            if answer.body:
                self._http2.send_data(stream_id, answer.body, end_stream=True)
        except H2Error:
            return  # the client gave the stream up
        self._flush()

    async def _decide(self, request: _Request) -> ApnsResponse | None:
        """The answer, None when the connection ends instead."""
        state = self._state
        state.seen(KIND)
        body = bytes(request.body)
        if (refused := refusal(request.headers, body, self._key, time.time())) is not None:
            return refused
        found = _PATH.match(request.headers[":path"])
        token = unquote(found[1]) if found else ""
        our_id = request.headers.get("apns-id")
        accept = Accept(KIND, token, our_id, body.decode("utf-8", "surrogateescape"), our_id)
        decision = state.faults.decide(KIND, token)
        if decision.latency_s:
            await asyncio.sleep(decision.latency_s)
        retry_after = decision.retry_after(datetime.now(UTC))
        # Apple says when to come back with 503 only.
        failed = error(500, "InternalServerError") if retry_after is None else _unavailable(retry_after)
        match decision.mode:
            case Mode.THROTTLE:
                return error(429, "TooManyRequests", retry_after)
            case Mode.FAIL:
                return failed
            case Mode.REJECT:
                return error(410, "Unregistered", timestamp=int(time.time() * 1000))
            case Mode.RESET:
                reset_connection(self._transport)
                return None
            case _:
                await state.accept(accept)
        match decision.mode:
            case Mode.FAIL_AFTER_ACCEPT:
                return failed
            case Mode.DROP_AFTER_ACCEPT:
                self._transport.close()
                return None
            case Mode.BAD_JSON:
                return ApnsResponse(200, b'{"reason": \xff<html>')
            case _:
                return ApnsResponse(200)

    def _flush(self) -> None:
        if (data := self._http2.data_to_send()) and not self._transport.is_closing():
            self._transport.write(data)


def _unavailable(retry_after: str) -> ApnsResponse:
    return error(503, "ServiceUnavailable", retry_after)


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value

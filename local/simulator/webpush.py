"""A push service (RFC 8030) with its browsers: it checks VAPID and headers, and decrypts what its browser would read.

A browser's keys are made of its name, so that whoever knows the name can subscribe it, here and in another process; nothing is
kept. Our message id is read from Topic. The log has the decrypted push, and as recipient the subscription whole.
May import the simulator's state, subscriptions and aiohttp. Never: a decision on scripted faults (faults.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from functools import lru_cache

import http_ece
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from py_vapid import Vapid02, VapidException

from local.simulator.ground_truth import Accept
from local.simulator.state import SimulatorState, answer
from runtime.subscriptions import Subscription

KIND = "webpush"
_PATH = "/webpush/"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_URGENCIES = ("very-low", "low", "normal", "high")
_MAX_BODY = 4_096


@lru_cache(maxsize=4_096)
def _keys(name: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A browser's private key and authentication secret."""
    digest = hashlib.sha512(name.encode()).digest()
    return ec.derive_private_key(int.from_bytes(digest[:32]) % (_ORDER - 1) + 1, ec.SECP256R1()), digest[32:48]


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def subscription(base_url: str, name: str) -> Subscription:
    """The subscription of a browser of this name at the simulator."""
    key, secret = _keys(name)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return Subscription(f"{base_url}{_PATH}{name}", _base64url(secret), _base64url(point))


def error(status: int, text: str, retry_after: str | None = None) -> web.Response:
    """An error: prose, as services write it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.Response(status=status, text=text, headers=headers)


class WebpushErrors:
    """Scripted faults in a push service's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return error(429, "Too many requests", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return error(503 if retry_after else 500, "Internal error", retry_after)

    def rejected(self, recipient: str) -> web.Response:
        return error(410, "push subscription has unsubscribed or expired")


def _authorized(request: web.Request) -> bool:
    """Whether a VAPID token for this service came along, signed with the key beside it."""
    scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
    fields = dict(field.strip().partition("=")[::2] for field in rest.split(","))
    try:
        return scheme.lower() == "vapid" and {"t", "k"} <= fields.keys() and Vapid02.verify(f"vapid {rest}")
    except (ValueError, VapidException, AssertionError, IndexError, KeyError, binascii.Error):
        return False


def _fault(request: web.Request) -> str | None:
    """What is wrong with a push's headers."""
    ttl, topic = request.headers.get("TTL", ""), request.headers.get("Topic", "")
    if not ttl.isdigit():
        return "TTL is missing"
    if request.headers.get("Content-Encoding") != "aes128gcm":
        return "Content-Encoding is aes128gcm"
    if request.headers.get("Urgency", "normal") not in _URGENCIES:
        return "Urgency is unknown"
    return "Topic is too long" if len(topic) > 32 else None


def _message_id(topic: str) -> str | None:
    try:
        return str(uuid.UUID(bytes=base64.urlsafe_b64decode(topic + "==")))
    except (ValueError, binascii.Error):
        return None


def add_webpush_routes(app: web.Application, state: SimulatorState) -> None:
    """Serve the push service."""
    errors = WebpushErrors()

    async def push(request: web.Request) -> web.Response:
        state.seen(KIND)
        if not _authorized(request):
            return error(403, "the VAPID token is not valid")
        if (fault := _fault(request)) is not None:
            return error(400, fault)
        body = await request.read()
        if len(body) > _MAX_BODY:
            return error(413, "Payload too large")
        name = request.match_info["name"]
        key, secret = _keys(name)
        try:
            plain = http_ece.decrypt(body, private_key=key, auth_secret=secret, version="aes128gcm")
        except (ValueError, http_ece.ECEException):
            return error(400, "the browser cannot decrypt it")
        their_id = uuid.uuid4().hex
        to = subscription(str(request.url.origin()), name).address
        accept = Accept(
            KIND, to, _message_id(request.headers.get("Topic", "")), plain.decode("utf-8", "surrogateescape"), their_id
        )
        headers = {"Location": f"{request.url.origin()}{_PATH}messages/{their_id}", "TTL": request.headers["TTL"]}
        return await answer(state, request, errors, accept, lambda: web.Response(status=201, headers=headers))

    app.router.add_post(f"{_PATH}{{name}}", push)

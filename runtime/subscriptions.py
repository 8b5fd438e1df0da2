"""A browser's push subscription (PushSubscription.toJSON() of the Push API), and the one text that is its address; pure.

An address is compared, hashed and kept within a record, so that it has one form: endpoint and keys in this order, without
spaces or padding; what a browser adds (expirationTime) is left out. Whether the endpoint may be asked is known when it is.
May import the standard library and pydantic's parser and writer. Never: encryption, the network.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

MAX_ENDPOINT_CHARS = 2048
_THIS_MACHINE = r"http://(?:127\.0\.0\.1|\[::1\]|localhost)(?::\d{1,5})?/"
_ENDPOINT = re.compile(rf"(?:https://|{_THIS_MACHINE})[!#-\[\]-~]+")
"""Visible ASCII but for what JSON would escape; plain http to this machine alone, and only where settings open it."""
_POINT_BYTES, _SECRET_BYTES = 65, 16


class Subscription(NamedTuple):
    """Where the push service takes pushes for the browser, and the keys that only the browser can read them with."""

    endpoint: str
    auth: str
    """16 bytes as base64url: the authentication secret."""
    p256dh: str
    """65 bytes as base64url: an uncompressed point of P-256; whether it is on the curve is not checked here."""

    @property
    def address(self) -> str:
        """The text that is its address."""
        return f'{{"endpoint":"{self.endpoint}","keys":{{"auth":"{self.auth}","p256dh":"{self.p256dh}"}}}}'


def subscription_of(value: object) -> Subscription:
    """The subscription of an object as a browser gives it. Raises ValueError, which says what is wrong without quoting it."""
    endpoint = value.get("endpoint") if isinstance(value, Mapping) else None
    keys = value.get("keys") if isinstance(value, Mapping) else None
    if not isinstance(endpoint, str) or len(endpoint) > MAX_ENDPOINT_CHARS or not _ENDPOINT.fullmatch(endpoint):
        raise ValueError(f"a subscription has an endpoint: an https URL of at most {MAX_ENDPOINT_CHARS} characters")
    if not isinstance(keys, Mapping):
        raise ValueError("a subscription has keys: an object with p256dh and auth")
    auth, p256dh = _key(keys, "auth", _SECRET_BYTES), _key(keys, "p256dh", _POINT_BYTES)
    return Subscription(endpoint, auth, p256dh)


def read_subscription(address: str | bytes) -> Subscription:
    """The subscription that a text holds. Raises ValueError."""
    try:
        value = from_json(address)
    except (ValueError, RecursionError):
        raise ValueError("a subscription is a JSON object with endpoint and keys") from None
    return subscription_of(value)


def _key(keys: Mapping[str, object], name: str, size: int) -> str:
    given = keys.get(name)
    text = given.rstrip("=") if isinstance(given, str) and given.isascii() and len(given) <= 2 * size else ""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != size or not re.fullmatch("[A-Za-z0-9_-]+", text) or (size == _POINT_BYTES and raw[0] != 4):
        raise ValueError(f"{name} of a subscription's keys is {size} bytes as base64url")
    return text


def address_of(device: Mapping[str, Any]) -> str | None:
    """The address of a profile's device: its token, or its subscription as one text; None where it has neither.

    A subscription that is none is its text: what becomes of a message to it is recorded like anything else.
    """
    given = device.get("subscription")
    if given is None:
        return device.get("token")
    text = given if isinstance(given, bytes) else to_json(given)
    try:
        return read_subscription(text).address
    except ValueError:
        return text.decode("utf-8", "replace")

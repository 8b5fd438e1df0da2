"""A push that only its browser can read (RFC 8291), by the vendors' library.

The only module that imports pywebpush; nothing of it sends: its own requests wait for hours and print what they hold.
May import subscriptions. Never: a request.
"""

from __future__ import annotations

from http_ece import ECEException
from pywebpush import WebPusher, WebPushException

from runtime.subscriptions import Subscription
from vendors.provider import UnsendableError

ENCODING = "aes128gcm"
MAX_PLAIN_BYTES = 3_993
"""What fits into the 4,096 bytes that every push service takes (RFC 8030 §7.2, RFC 8291 §4)."""


def encrypted(subscription: Subscription, plain: bytes) -> bytes:
    """The body for the subscription. Raises UnsendableError for a text that is too long, or a key that is no point."""
    if len(plain) > MAX_PLAIN_BYTES:
        raise UnsendableError(f"a push of {len(plain)} bytes, {MAX_PLAIN_BYTES} are allowed")
    keys = {"auth": subscription.auth, "p256dh": subscription.p256dh}
    try:
        body: bytes = WebPusher({"endpoint": subscription.endpoint, "keys": keys}).encode(plain, ENCODING)["body"]
    except (ValueError, WebPushException, ECEException) as exc:
        raise UnsendableError(f"nothing can be encrypted for the subscription ({type(exc).__name__})") from exc
    return body

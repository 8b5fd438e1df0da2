"""What push services answer, by HTTP status: their bodies are prose, each service's own; data.

A subscription is gone with 404 or 410 alone: 400 is the request's fault, and a key that does not match (401, 403) is ours until
a service says otherwise of one subscription.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

CODES = Codes(
    source="RFC 8030 §5, §7.3, §8.4, RFC 8292 §4.2; autopush.readthedocs.io (http), developer.apple.com (sending web push notifications)",
    rows={
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {"404": "no such subscription", "410": "the subscription has ended"},
        ),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {"400": "the request is wrong", "413": "the push is too large"},
        ),
        **same(
            ErrorClass.THROTTLED,
            {"406": "Windows' service: over its throttle limit", "429": "too many requests"},
        ),
        **same(
            ErrorClass.ACCOUNT,
            {
                "401": "the VAPID token is refused",
                "403": "the VAPID token is refused: is subject a real address, is private_key the one of the subscriptions?",
            },
        ),
        **same(
            ErrorClass.IN_DOUBT,
            {
                "500": "it does not say that nothing was sent",
                "502": "bad gateway",
                "503": "not available: it does not say since when",
                "504": "gateway timeout",
            },
        ),
    },
)

"""OneSignal's answers, by HTTP status: its errors are prose; data.

A 200 with an empty id and errors made no push: the subscription is not one, or its owner left.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

NOT_SUBSCRIBED = "not_subscribed"
"""The key of a 200 that made no push."""

CODES = Codes(
    source="documentation.onesignal.com/reference/create-message, .../docs/rate-limits (onesignal.com/docs)",
    rows={
        **same(ErrorClass.PERMANENT_RECIPIENT, {NOT_SUBSCRIBED: "not a subscription, or not subscribed any more"}),
        **same(ErrorClass.PERMANENT_MESSAGE, {"400": "the request is wrong", "413": "the request is too large"}),
        **same(ErrorClass.THROTTLED, {"429": "too many requests"}),
        **same(ErrorClass.ACCOUNT, {"401": "the API key is refused", "403": "the API key is not this app's"}),
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

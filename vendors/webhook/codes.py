"""What the HTTP statuses of a receiver mean; data. It may be any program, so a status stands for its whole class.

The specification says: 2xx is success, any other is not; 410 ends the subscription; 429, 502 and 504 ask for fewer requests.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

REDIRECT, REFUSED = "3xx", "4xx"
"""Keys of the statuses that have no row of their own: a receiver may recover from all of them."""

CODES = Codes(
    source="the specification of Standard Webhooks (standardwebhooks.com, github.com/standard-webhooks/standard-webhooks)",
    rows={
        **same(ErrorClass.PERMANENT_RECIPIENT, {"410": "the receiver wants no more of them"}),
        **same(ErrorClass.PERMANENT_MESSAGE, {"413": "the body is too large for the receiver"}),
        **same(ErrorClass.THROTTLED, {"429": "too many requests", "503": "not available"}, account_wide=False),
        **same(
            ErrorClass.TRANSIENT,
            {REDIRECT: "it points elsewhere, and redirects are not followed", REFUSED: "the receiver refuses it"},
            account_wide=False,
        ),
        **same(
            ErrorClass.IN_DOUBT,
            {
                "500": "it does not say that nothing was done",
                "502": "bad gateway",
                "504": "gateway timeout",
            },
        ),
    },
)

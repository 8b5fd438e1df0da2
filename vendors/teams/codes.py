"""What the HTTP statuses of a Workflows webhook mean; data. Microsoft documents no list of its own.

The signature in the URL is the credential: a URL that is refused, or whose flow was deleted or switched off, is gone.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

OWN_REPLY = "own_reply"
"""The key of a success that is not 202."""

CODES = Codes(
    source="learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors (learn.microsoft.com), and what HTTP says",
    rows={
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {
                "401": "the URL's signature is refused",
                "403": "the flow may not be triggered",
                "404": "the flow was deleted or switched off",
                "410": "the flow is gone",
            },
        ),
        **same(ErrorClass.PERMANENT_MESSAGE, {"400": "the card is wrong", "413": "the card is too large"}),
        **same(ErrorClass.THROTTLED, {"429": "more than four messages a second"}, account_wide=False),
        **same(
            ErrorClass.IN_DOUBT,
            {
                OWN_REPLY: "the flow replies by itself: only 202 says that it was triggered",
                "500": "it does not say that nothing was posted",
                "502": "bad gateway",
                "503": "not available: it does not say since when",
                "504": "gateway timeout",
            },
        ),
    },
)

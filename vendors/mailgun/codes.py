"""Mailgun's answers, by HTTP status: its errors have words and no code; data.

Two answers mean another thing than their status says: the words about an address that is none, and anything that comes from
elsewhere than the API, also with a 200: then base_url, region or domain are wrong.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

BAD_RECIPIENT = "invalid_recipient"
"""The key of a 400 whose words say that `to` is no address."""
NOT_THE_API = "not_the_api"
"""The key of a 200 or 404 that is no JSON: the landing page."""

CODES = Codes(
    source="documentation.mailgun.com/docs/mailgun/api-reference/api-overview (mailgun.com/docs)",
    rows={
        **same(ErrorClass.PERMANENT_RECIPIENT, {BAD_RECIPIENT: "not a valid address"}),
        **same(ErrorClass.PERMANENT_MESSAGE, {"400": "the request is wrong", "413": "the mail is too large"}),
        **same(ErrorClass.THROTTLED, {"429": "too many requests"}),
        **same(
            ErrorClass.ACCOUNT,
            {
                "401": "the API key is refused",
                "402": "the account is not paid for",
                "403": "not allowed: a disabled account, a sandbox domain, or its limit",
                NOT_THE_API: "the answer is not the API's: base_url, region or domain is wrong",
            },
        ),
        # The vendor's own advice: the domain may not be there yet. All mails of the account share it.
        **same(ErrorClass.TRANSIENT, {"404": "the domain is not found, which may pass"}),
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

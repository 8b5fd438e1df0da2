"""SendGrid's answers, by HTTP status: its errors have words and a field, and no code; data.

A 400 is about the message as it is, also where it names the recipient's address: whether a mailbox exists is only known
when it bounces. The one refusal with a meaning of its own is a sender that was never verified.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

UNVERIFIED = "unverified_sender"
"""The key of a 400 or 403 whose words are about our own address."""

CODES = Codes(
    source="twilio.com/docs/sendgrid/api-reference/how-to-use-the-sendgrid-v3-api/responses, .../rate-limits",
    rows={
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                "400": "the request is wrong: the field is named",
                "404": "no such path",
                "405": "not a POST",
                "413": "the mail is too large",
            },
        ),
        **same(ErrorClass.THROTTLED, {"429": "too many requests"}),
        **same(
            ErrorClass.ACCOUNT,
            {
                "401": "the API key is refused, or its credits are used up",
                "403": "the API key may not send mail",
                UNVERIFIED: "from_address belongs to no verified sender identity",
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

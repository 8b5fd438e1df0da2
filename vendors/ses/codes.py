"""SES's error names, and the HTTP statuses that come without one; data.

Two of the account's own limits are told in words alone. The sending rate is over in seconds; the daily quota is not, so
another account is the answer: it is the account's fault, not a wait.
May import the shape of a table and what every AWS service says. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass
from vendors.sigv4 import COMMON

REJECTED = "MessageRejected"
UNVERIFIED = "unverified_identity"
"""The key of a MessageRejected whose words are about our own address."""
DAILY_QUOTA = "daily_quota"
"""The key of any error whose words are about the quota of a day."""

CODES = Codes(
    source="docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html, .../ses/latest/dg/manage-sending-quotas-errors.html (amazon.com/ses)",
    rows={
        **COMMON,
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                "BadRequestException": "the request is wrong",
                REJECTED: "the content is refused",
                "NotFoundException": "what the request names is not there",
                "400": "the request is wrong",
                "413": "the mail is too large",
            },
        ),
        **same(ErrorClass.THROTTLED, {"TooManyRequestsException": "too many requests, or over the sending rate"}),
        **same(
            ErrorClass.ACCOUNT,
            {
                "AccountSuspendedException": "the account is suspended",
                "LimitExceededException": "a limit of the account",
                "MailFromDomainNotVerifiedException": "the MAIL FROM domain is not verified",
                "SendingPausedException": "sending is paused",
                UNVERIFIED: "from_address is not verified in this region, or the account is in the sandbox",
                DAILY_QUOTA: "the day's quota is used up",
                "401": "unauthorised",
                "403": "forbidden",
            },
        ),
        **same(ErrorClass.IN_DOUBT, {"InternalServiceErrorException": "internal error"}),
    },
)

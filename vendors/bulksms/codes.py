"""BulkSMS's statuses of a message (type and subtype), and the HTTP statuses of its errors; data.

A message that was created may be in a failed status at once. BLOCKED is paid for all the same: the recipient said STOP.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import CodeRule, Codes, same
from vendors.sender import ErrorClass

CODES = Codes(
    source="developer.bulksms.com (bulksms.com/developer), its OpenAPI document 1.0.0",
    rows={
        "FAILED.BLOCKED": CodeRule(ErrorClass.PERMANENT_RECIPIENT, "the recipient said STOP", opted_out=True),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                "FAILED.NOT_SENT": "no route to the number",
                "400": "the request is wrong",
                "413": "the request is too large",
            },
        ),
        # Not documented by the vendor, and what the status means anywhere (RFC 6585).
        **same(ErrorClass.THROTTLED, {"429": "too many requests"}),
        **same(ErrorClass.ACCOUNT, {"401": "wrong credentials", "403": "the credits are used up, or no permission"}),
        **same(
            ErrorClass.TRANSIENT,
            {"FAILED.EXPIRED": "not delivered in time", "FAILED.HANDSET_ERROR": "the handset did not take it"},
            account_wide=False,
        ),
        **same(
            ErrorClass.IN_DOUBT,
            {
                "UNKNOWN.null": "its state is not known",
                "500": "it does not say that nothing was sent",
                "502": "bad gateway",
                "503": "not available: it does not say since when",
                "504": "gateway timeout",
            },
        ),
    },
)

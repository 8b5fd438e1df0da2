"""Vonage's statuses of a part, and the HTTP statuses that come without one; data.

An answer with HTTP 200 may refuse: what counts is the status of each part. Its number is a key only with a word before it,
as some are HTTP statuses elsewhere.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

PARTIAL = "partial"
"""The key of an answer that takes some parts of a text and not others."""


def status_key(status: str) -> str:
    """The key of a part's status."""
    return f"vonage-{status}"


CODES = Codes(
    source="developer.vonage.com/en/messaging/sms/guides/troubleshooting-sms (vonage.com/sms), sms.yml of its API specification",
    rows={
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {
                status_key("6"): "the number cannot be routed to",
                status_key("7"): "the number is barred",
                status_key("33"): "the number is deactivated",
            },
        ),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                status_key("2"): "a parameter is missing",
                status_key("3"): "a parameter is wrong",
                status_key("12"): "the text is too long",
                status_key("15"): "the sender is not valid here",
                status_key("22"): "the network code is not valid",
                "400": "the request is wrong",
                "413": "the request is too large",
            },
        ),
        **same(
            ErrorClass.THROTTLED,
            {
                status_key("1"): "over the account's rate",
                status_key("10"): "too many connections",
                "429": "too many requests",
            },
        ),
        **same(
            ErrorClass.ACCOUNT,
            {
                status_key("4"): "wrong credentials",
                status_key("8"): "the account is barred",
                status_key("9"): "the credit is used up",
                status_key("11"): "the account may not use this API",
                status_key("14"): "the signature is wrong",
                status_key("23"): "the callback address is not valid",
                status_key("29"): "the account may send to numbers of its own list alone",
                status_key("32"): "a signature and a secret together",
                "401": "wrong credentials",
                "402": "the credit is used up",
                "403": "forbidden",
            },
        ),
        **same(
            ErrorClass.IN_DOUBT,
            {
                status_key("5"): "internal error",
                PARTIAL: "some parts were taken and others were not",
                "500": "internal error",
                "502": "bad gateway",
                "503": "not available: it does not say since when",
                "504": "gateway timeout",
            },
        ),
    },
)

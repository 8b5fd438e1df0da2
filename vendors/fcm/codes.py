"""FCM's error codes, and the HTTP statuses that come without one; data.

The same INVALID_ARGUMENT means our payload or the device's token: sender.py distinguishes them before it looks here.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass

INVALID_ARGUMENT = "INVALID_ARGUMENT"
INVALID_TOKEN = "INVALID_ARGUMENT token"
"""The key of an INVALID_ARGUMENT that is about the token."""
MISMATCH = "SENDER_ID_MISMATCH"
UNPROVEN_MISMATCH = "SENDER_ID_MISMATCH unproven"
QUOTA_WAIT_S = 60.0
"""Quotas refill by the minute, so an answer that names no time asks for one."""

CODES = Codes(
    source="firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode, firebase.google.com/docs/cloud-messaging/scale-fcm",
    rows={
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {
                "UNREGISTERED": "the app is gone, or the token was renewed",
                INVALID_TOKEN: "not a registration token",
                MISMATCH: "the token belongs to another project",
            },
        ),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                INVALID_ARGUMENT: "the payload is wrong",
                "400": "the request is wrong",
                "413": "the request is too large",
            },
        ),
        **same(
            ErrorClass.THROTTLED,
            {"QUOTA_EXCEEDED": "project's, topic's or device's rate", "429": "too many requests"},
            QUOTA_WAIT_S,
        ),
        **same(
            ErrorClass.ACCOUNT,
            {
                "THIRD_PARTY_AUTH_ERROR": "the project's APNs key or web push key is wrong",
                UNPROVEN_MISMATCH: "no push of this account has been taken yet: is it the right project?",
                "401": "the access token is refused",
                "403": "the service account may not send",
                "404": "without UNREGISTERED it is the project that is not found",
            },
        ),
        # A server's own failure says nothing of what it did before, also where it says when to come back.
        **same(
            ErrorClass.IN_DOUBT,
            {
                "UNAVAILABLE": "overloaded",
                "503": "overloaded",
                "INTERNAL": "internal error",
                "500": "internal error",
                "502": "bad gateway",
                "504": "gateway timeout",
            },
        ),
    },
)

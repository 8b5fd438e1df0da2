"""SNS's error codes of Publish, and the HTTP statuses that come without one; data.

May import the shape of a table and what every AWS service says. Never: a request.
"""

from __future__ import annotations

from vendors import sigv4
from vendors.codes import CodeRule, Codes, same
from vendors.sender import ErrorClass

INVALID = "InvalidParameter"
BAD_NUMBER = "invalid_phone_number"
"""The key of an InvalidParameter whose words name PhoneNumber."""
NOT_ALLOWED = (*sigv4.NOT_ALLOWED, "AuthorizationError")
"""Codes of a request whose signature is good and whose user may not make it."""

CODES = Codes(
    source="docs.aws.amazon.com/sns/latest/api/API_Publish.html, .../CommonErrors.html (amazon.com/sns)",
    rows={
        **sigv4.COMMON,
        "OptedOut": CodeRule(ErrorClass.PERMANENT_RECIPIENT, "the recipient said STOP", opted_out=True),
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {BAD_NUMBER: "not a phone number", "EndpointDisabled": "the endpoint is disabled"},
        ),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                INVALID: "a parameter is wrong",
                "InvalidParameterValue": "a parameter's value is wrong",
                "ParameterValueInvalid": "a parameter's value is wrong",
                "ValidationException": "the request is wrong",
                "400": "the request is wrong",
                "413": "the request is too large",
            },
        ),
        **same(ErrorClass.THROTTLED, {"Throttled": "over the rate", "KMSThrottling": "over the key service's rate"}),
        **same(
            ErrorClass.ACCOUNT,
            {
                "AuthorizationError": "the key may not publish",
                "InvalidSecurity": "the signature is wrong",
                "KMSAccessDenied": "the encryption key may not be used",
                "KMSDisabled": "the encryption key is disabled",
                "KMSInvalidState": "the encryption key is not in a state to be used",
                "KMSNotFound": "the encryption key is not there",
                "KMSOptInRequired": "the account is not subscribed to the key service",
                "PlatformApplicationDisabled": "the platform application is disabled",
                "401": "unauthorised",
                "403": "forbidden",
            },
        ),
        **same(ErrorClass.IN_DOUBT, {"InternalError": "internal error"}),
    },
)

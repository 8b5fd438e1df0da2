"""Twilio's error codes, and the HTTP statuses that come without one; data.

A number that is not a mobile number, or whose owner sent STOP, is a fault of the recipient: it is suppressed, every further
try would be paid for or refused. A pair of numbers that do not reach each other (21612), a region that is switched off
(21408) or our own sender is not: another account may reach the same number.
Codes of the 30000s come in delivery reports as well, where nothing is sent again.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import CodeRule, Codes, same
from vendors.sender import ErrorClass

CODES = Codes(
    source="twilio.com/docs/api/errors; a 429 is never processed: twilio.com/docs/usage/rest-api-best-practices",
    rows={
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {
                "21211": "To is not a valid phone number",
                "21217": "To does not appear to be a phone number",
                "21614": "To is not a mobile number",
                "21635": "To is a landline",
                "30005": "unknown handset, the number may no longer exist",
                "30006": "a landline, or a carrier that cannot be reached",
            },
        ),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                "21212": "From is not a valid sender",
                "21266": "To and From are the same",
                "21408": "the recipient's region is not switched on",
                "21602": "no body",
                "21603": "no From",
                "21604": "no To",
                "21605": "the body is too long",
                "21606": "From cannot send to this number",
                "21608": "a trial account sends to verified numbers only",
                "21612": "From does not reach To",
                "21617": "the body has over 1,600 characters",
                "21619": "no body and no media",
                "21659": "From is not a Twilio number",
                "21660": "From is not this account's",
                "30004": "blocked by the carrier or the handset",
                "30007": "filtered as spam: sending it again makes it worse",
                "30034": "From is not registered for A2P 10DLC",
            },
        ),
        **same(
            ErrorClass.THROTTLED,
            {
                "14107": "the sender's rate is exceeded",
                "20429": "too many requests",
                "21611": "the sender's queue is full",
                "30001": "the queue overflowed",
                "429": "too many requests",
            },
        ),
        **same(
            ErrorClass.ACCOUNT,
            {
                "20003": "wrong credentials, or no permission",
                "20005": "the account is not active",
                "20008": "test credentials",
                "20404": "no such account",
                "30002": "the account is suspended",
                "401": "unauthorised",
                "403": "forbidden",
            },
        ),
        **same(ErrorClass.TRANSIENT, {"30017": "the carrier is congested"}),
        "21610": CodeRule(ErrorClass.PERMANENT_RECIPIENT, "the recipient sent STOP", opted_out=True),
        "30003": CodeRule(ErrorClass.TRANSIENT, "the handset is off or out of reach", wait_s=60, account_wide=False),
        **same(
            ErrorClass.IN_DOUBT,
            {
                "20500": "internal server error",
                "20503": "service unavailable",
                "20504": "gateway timeout",
                "30008": "unknown error",
                "500": "internal server error",
                "502": "bad gateway",
                "503": "service unavailable: it does not say whether before or after the message was made",
                "504": "gateway timeout",
            },
        ),
    },
)

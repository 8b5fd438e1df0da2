"""Says of vendors' callbacks, one JSON object a line, what the vendors' own SDKs say: true, false, or the name of an error.

    {"kind": "sendgrid", "key": …, "body": …, "headers": {…}}
    {"kind": "mailgun", "key": …, "body": …}
    {"kind": "vonage", "key": …, "method": …, "body": …}       JSON bodies; "sign" in place of "body" gives the signature

Runs in an environment of its own (requirements.txt).
"""

import json
import sys
from typing import Any

from mailgun.security import SecurityGuard
from sendgrid.helpers.eventwebhook import EventWebhook, EventWebhookHeader
from vonage_http_client import Auth


def sendgrid(asked: dict[str, Any]) -> Any:
    headers = asked["headers"]
    signature, timestamp = headers[EventWebhookHeader.SIGNATURE], headers[EventWebhookHeader.TIMESTAMP]
    return EventWebhook(asked["key"]).verify_signature(asked["body"], signature, timestamp)


def mailgun(asked: dict[str, Any]) -> Any:
    said = json.loads(asked["body"])["signature"]
    # Without its limit of age: the tests' time is not now.
    return SecurityGuard.verify_webhook(asked["key"], said["token"], said["timestamp"], said["signature"], 0)


def vonage(asked: dict[str, Any]) -> Any:
    auth = Auth(api_key="k", signature_secret=asked["key"], signature_method=asked["method"])
    if "sign" in asked:
        return auth.sign_params(dict(asked["sign"]))
    return auth.check_signature(json.loads(asked["body"]))


JUDGES = {"sendgrid": sendgrid, "mailgun": mailgun, "vonage": vonage}

for line in sys.stdin:
    question = json.loads(line)
    try:
        verdict = JUDGES[question["kind"]](question)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:  # what an SDK makes of what is none
        verdict = type(exc).__name__
    sys.stdout.write(json.dumps(verdict) + "\n")

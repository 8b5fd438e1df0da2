"""Amazon SES (version 2 of its API) and SNS: signed requests, SES in JSON and SNS in XML, with their errors.

A signature is looked at for its form and its access key. SES brings our message id in a tag; SNS has no field for it, so it is
read from a header of our own, which the vendor ignores.
May import the simulator's state and aiohttp. Never: a decision on scripted faults (faults.py), an AWS SDK.
"""

from __future__ import annotations

import binascii
import json
import re
import uuid
from base64 import b64decode
from urllib.parse import parse_qsl

from aiohttp import web

from local.simulator import WRONG_SECRET
from local.simulator.callbacks import Callbacks
from local.simulator.ground_truth import Accept
from local.simulator.reports import CERTIFICATE_PATH, SnsKey, ses_posts
from local.simulator.state import MESSAGE_ID_HEADER, SimulatorState, answer

SES, SNS = "ses", "sns"
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/[a-z0-9-]+/(ses|sns)/aws4_request, SignedHeaders=\S+, Signature=[0-9a-f]{64}"
)
_NUMBER = re.compile(r"\+[1-9]\d{6,14}", re.ASCII)


def ses_error(status: int, name: str, message: str) -> web.Response:
    """An error as SES writes it."""
    return web.json_response({"message": message}, status=status, headers={"x-amzn-ErrorType": name})


def sns_error(status: int, code: str, message: str) -> web.Response:
    """An error as SNS writes it."""
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    text = f'<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">{error}</ErrorResponse>'
    return web.Response(text=text, status=status, content_type="text/xml")


def with_wait(response: web.Response, retry_after: str | None) -> web.Response:
    """AWS names no wait; where a fault does, so that it can be told from none."""
    if retry_after is not None:
        response.headers["Retry-After"] = retry_after
    return response


class SesErrors:
    """Scripted faults in SES's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return with_wait(ses_error(429, "TooManyRequestsException", "Maximum sending rate exceeded."), retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return ses_error(500, "InternalServiceErrorException", "Internal error")

    def rejected(self, recipient: str) -> web.Response:
        return ses_error(400, "MessageRejected", "Transaction failed: Address is on the suppression list")


class SnsErrors:
    """Scripted faults in SNS's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return with_wait(sns_error(429, "Throttled", "Rate exceeded"), retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return sns_error(500, "InternalError", "Internal error")

    def rejected(self, recipient: str) -> web.Response:
        return sns_error(400, "InvalidParameter", "Invalid parameter: PhoneNumber Reason: not a valid phone number")


def signed(request: web.Request, service: str) -> bool:
    """Whether it bears a signature for the service by a key that is taken."""
    found = _SIGNED.fullmatch(request.headers.get("Authorization", ""))
    return found is not None and found[1] != WRONG_SECRET and found[2] == service and "X-Amz-Date" in request.headers


def add_aws_routes(app: web.Application, state: SimulatorState, callbacks: Callbacks) -> None:
    """Serve both services."""
    ses_errors, sns_errors, key = SesErrors(), SnsErrors(), SnsKey()

    async def send_mail(request: web.Request) -> web.Response:
        state.seen(SES)
        if not signed(request, SES):
            return ses_error(
                403, "UnrecognizedClientException", "The security token included in the request is invalid."
            )
        try:
            mail = json.loads(await request.read())
            (to,) = mail["Destination"]["ToAddresses"]
            raw = b64decode(mail["Content"]["Raw"]["Data"], validate=True)
            tags = {tag["Name"]: tag["Value"] for tag in mail.get("EmailTags", [])}
        except (ValueError, KeyError, TypeError, binascii.Error):
            return ses_error(400, "BadRequestException", "Invalid request")
        if "@" not in str(to):
            return ses_error(400, "BadRequestException", "Illegal address")
        their_id = f"0100{uuid.uuid4().hex}-{uuid.uuid4()}-000000"
        accept = Accept(SES, to, tags.get("message_id"), raw.decode("utf-8", "surrogateescape"), their_id)

        def report() -> None:
            if (target := callbacks.targets.get(SES)) is not None:
                callbacks.report(ses_posts(target, key, to, their_id, tags), target)

        return await answer(
            state, request, ses_errors, accept, lambda: web.json_response({"MessageId": their_id}), report
        )

    async def ses_account(request: web.Request) -> web.Response:
        if not signed(request, SES):
            return ses_error(
                403, "UnrecognizedClientException", "The security token included in the request is invalid."
            )
        return web.json_response({"SendingEnabled": True, "SendQuota": {"MaxSendRate": 14.0}})

    async def sns(request: web.Request) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode("utf-8", "replace"), keep_blank_values=True))
        if form.get("Action") == "Publish":
            state.seen(SNS)
        if not signed(request, SNS):
            return sns_error(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
        if form.get("Action") != "Publish":
            return web.Response(text="<GetSMSAttributesResponse/>", content_type="text/xml")
        to = form.get("PhoneNumber", "")
        if not _NUMBER.fullmatch(to):
            return sns_errors.rejected(to)
        if not form.get("Message"):
            return sns_error(400, "InvalidParameter", "Invalid parameter: Message Reason: empty")
        their_id = str(uuid.uuid4())
        accept = Accept(SNS, to, request.headers.get(MESSAGE_ID_HEADER), form["Message"], their_id)
        text = f"<PublishResponse><PublishResult><MessageId>{their_id}</MessageId></PublishResult></PublishResponse>"
        return await answer(
            state, request, sns_errors, accept, lambda: web.Response(text=text, content_type="text/xml")
        )

    async def certificate(_: web.Request) -> web.Response:
        return web.Response(body=key.certificate, content_type="application/x-pem-file")

    app.router.add_get(CERTIFICATE_PATH, certificate)
    app.router.add_post("/v2/email/outbound-emails", send_mail)
    app.router.add_get("/v2/email/account", ses_account)
    app.router.add_post("/", sns)

"""What the vendors over HTTP make of their own answers and put into their own requests; the tables row by row are in test_codes.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import pytest
from pydantic_core import from_json, to_json

from local.simulator.mailgun import form_of
from runtime import ids
from runtime.callbacks import AttemptRef, subject_of_token
from tests.support.accounts import CANARY, KINDS, TAKEN, account, sender_of, to_send
from tests.support.made import NOW
from vendors.bulksms.sender import sender_type, user_supplied_id
from vendors.http import HttpResponse
from vendors.http_account import UNREADABLE, HttpRequest
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

RCPT, MSG, THR, TRN, ACCT = (
    ErrorClass.PERMANENT_RECIPIENT,
    ErrorClass.PERMANENT_MESSAGE,
    ErrorClass.THROTTLED,
    ErrorClass.TRANSIENT,
    ErrorClass.ACCOUNT,
)
ID = "0190c0de-0000-5000-8000-000000000001"


class Canned:
    """A transport with one answer."""

    def __init__(self, answer: HttpResponse) -> None:
        self.answer = answer

    async def post(self, *_: Any, **__: Any) -> HttpResponse:
        return self.answer


@pytest.mark.parametrize("kind", [kind for kind, channel in KINDS.items() if channel == "sms"])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hi", "1 part of GSM-7"),
        ("x" * 161, "2 parts of GSM-7"),
        ("\x07€" + "x" * 158, "1 part of GSM-7"),
        ("😀" * 36, "2 parts of UCS-2"),
    ],
)
async def test_sent_text_is_noted_with_its_parts(kind: str, text: str, parts: str, tmp_path: Path) -> None:
    sender = sender_of(account(kind, tmp_path))
    sender._http = Canned(HttpResponse(*TAKEN[kind]))
    made = await sender.send(to_send(kind, text=text))
    assert isinstance(made, Sent)
    assert made.detail == parts


def said(status: int, body: Any = None, **headers: str) -> HttpResponse:
    raw = body if isinstance(body, bytes) else b"" if body is None else to_json(body)
    return HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def part(status: str, message_id: str = "V1") -> dict[str, str]:
    return {"status": status, "message-id": message_id}


def parts(*given: dict[str, str]) -> dict[str, Any]:
    return {"message-count": str(len(given)), "messages": list(given)}


def created(state: str) -> list[dict[str, Any]]:
    return [{"id": "B1", "status": {"id": state, "type": state.partition(".")[0]}}]


def refused(code: str, words: str = "x") -> bytes:
    return f"<ErrorResponse><Error><Code>{code}</Code><Message>{words}</Message></Error></ErrorResponse>".encode()


SENDER_IDENTITY = {
    "errors": [{"message": "The from address does not match a verified Sender Identity.", "field": "from"}]
}
BAD_TO = {"errors": [{"message": "Does not contain a valid address.", "field": "personalizations.0.to.0.email"}]}


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("sendgrid", said(202, x_message_id="sg"), Sent("sg")),
        ("sendgrid", said(202), Sent(None)),
        ("sendgrid", said(200), UNREADABLE),
        ("sendgrid", said(400, SENDER_IDENTITY), Retry(ACCT, "400 from")),
        ("sendgrid", said(403, SENDER_IDENTITY), Retry(ACCT, "403 from")),
        ("sendgrid", said(400, BAD_TO), Rejected(MSG, "400 personalizations.0.to.0.email")),
        ("sendgrid", said(400, {"errors": [{"field": "a b@c"}]}), Rejected(MSG, "400")),
        ("sendgrid", said(429, x_ratelimit_reset=str(NOW // 1000 + 7)), Retry(THR, "429", 7.0)),
        ("sendgrid", said(429, x_ratelimit_reset="soon"), Retry(THR, "429")),
        ("sendgrid", said(429, retry_after="3"), Retry(THR, "429", 3.0)),
        ("mailgun", said(200, {"id": "<m@x>"}), Sent("<m@x>")),
        ("mailgun", said(200, {"id": ""}), UNREADABLE),
        ("mailgun", said(200, b"Mailgun Magnificent API"), Retry(ACCT, "200 not_the_api")),
        ("mailgun", said(404, b"<html>"), Retry(ACCT, "404 not_the_api")),
        ("mailgun", said(404, {"message": "Domain not found: x"}), Retry(TRN, "404")),
        ("mailgun", said(400, {"message": "'to' parameter is not a valid address."}), Rejected(RCPT, "400 invalid_recipient")),
        ("mailgun", said(400, {"message": "'from' parameter is not a valid address."}), Rejected(MSG, "400")),
        ("mailgun", said(401, b"Forbidden"), Retry(ACCT, "401")),
        ("ses", said(200, {"MessageId": "s"}), Sent("s")),
        ("ses", said(200, {"MessageId": ""}), UNREADABLE),
        ("ses", said(400, {"message": "Email address is not verified."}, x_amzn_errortype="MessageRejected"),
         Retry(ACCT, "400 MessageRejected unverified_identity")),
        ("ses", said(400, {"message": "x"}, x_amzn_errortype="MessageRejected:http://a"), Rejected(MSG, "400 MessageRejected")),
        ("ses", said(429, {"message": "Daily message quota exceeded."}, x_amzn_errortype="TooManyRequestsException"),
         Retry(ACCT, "429 TooManyRequestsException daily_quota")),
        ("ses", said(429, {"message": "Maximum sending rate exceeded."}, x_amzn_errortype="TooManyRequestsException"),
         Retry(THR, "429 TooManyRequestsException")),
        ("ses", said(403, {"__type": "com.amazon.coral.service#AccessDeniedException"}), Retry(ACCT, "403 AccessDeniedException")),
        ("ses", said(400, {"__type": "NewException"}), Retry(TRN, "400 NewException")),
        ("ses", said(400, {"__type": "a b"}), Rejected(MSG, "400")),
        ("vonage", said(200, parts(part("0"), part("0", "V2"))), Sent("V1")),
        ("vonage", said(200, parts(part("0", ""))), UNREADABLE),
        ("vonage", said(200, parts(part("0"), part("1"))), InDoubt("200 partial vonage-1")),
        ("vonage", said(200, parts(part("1"), part("0"))), InDoubt("200 partial vonage-1")),
        ("vonage", said(200, parts(part("7"), part("7"))), Rejected(RCPT, "200 vonage-7")),
        ("vonage", said(200, parts(part("9"))), Retry(ACCT, "200 vonage-9")),
        ("vonage", said(200, {"messages": [{"status": 1}]}), Retry(THR, "200 vonage-1")),
        ("vonage", said(200, parts(part("5"))), InDoubt("200 vonage-5")),
        ("vonage", said(200, parts(part("99"))), InDoubt("200 vonage-99")),
        ("vonage", said(200, {"messages": []}), UNREADABLE),
        ("vonage", said(200, {"messages": [part("0"), None]}), UNREADABLE),
        ("bulksms", said(201, created("ACCEPTED.null")), Sent("B1")),
        ("bulksms", said(201, created("SCHEDULED.null")), Sent("B1")),
        ("bulksms", said(201, [{"id": "", "status": {"type": "ACCEPTED"}}]), UNREADABLE),
        ("bulksms", said(201, created("FAILED.NOT_SENT")), Rejected(MSG, "201 FAILED.NOT_SENT")),
        ("bulksms", said(201, created("FAILED.BLOCKED")), Rejected(RCPT, "201 FAILED.BLOCKED", opted_out=True)),
        ("bulksms", said(201, created("FAILED.HANDSET_ERROR")), Retry(TRN, "201 FAILED.HANDSET_ERROR")),
        ("bulksms", said(201, created("UNKNOWN.null")), InDoubt("201 UNKNOWN.null")),
        ("bulksms", said(201, [*created("ACCEPTED.null"), *created("ACCEPTED.null")]), UNREADABLE),
        ("bulksms", said(403, {"title": "insufficient credits"}), Retry(ACCT, "403")),
        ("sns", said(200, b"<PublishResponse><MessageId>a-1</MessageId></PublishResponse>"), Sent("a-1")),
        ("sns", said(200, b"<PublishResponse><MessageId></MessageId></PublishResponse>"), UNREADABLE),
        ("sns", said(400, refused("InvalidParameter", "Invalid parameter: PhoneNumber Reason: +49 is not valid")),
         Rejected(RCPT, "400 InvalidParameter invalid_phone_number")),
        ("sns", said(400, refused("InvalidParameter", "Invalid parameter: Message")), Rejected(MSG, "400 InvalidParameter")),
        ("sns", said(400, refused("OptedOut")), Rejected(RCPT, "400 OptedOut", opted_out=True)),
        ("sns", said(403, refused("AuthorizationError")), Retry(ACCT, "403 AuthorizationError")),
        ("sns", said(400, refused("KMSThrottling")), Retry(THR, "400 KMSThrottling")),
        ("sns", said(500, refused("InternalError")), InDoubt("500 InternalError")),
        ("onesignal", said(200, {"id": "o"}), Sent("o")),
        ("onesignal", said(200, {"id": "", "errors": ["All included players are not subscribed"]}),
         Rejected(RCPT, "200 not_subscribed")),
        ("onesignal", said(200, {"id": "", "errors": {"invalid_player_ids": ["x"]}}), Rejected(RCPT, "200 not_subscribed")),
        ("onesignal", said(200, {"id": ""}), UNREADABLE),
        ("onesignal", said(200, {"id": 7}), UNREADABLE),
        ("onesignal", said(429, {"errors": ["API rate limit exceeded"]}, retry_after="100"), Retry(THR, "429", 100.0)),
    ],
)  # fmt: skip
async def test_answer(kind: str, answer: HttpResponse, expected: SendResult, tmp_path: Path) -> None:
    sender = sender_of(account(kind, tmp_path))
    sender._http, sender._clock = Canned(answer), lambda: NOW
    assert await sender.send(to_send(kind, message_id=ID)) == expected


def prepared(kind: str, tmp_path: Path, **fields: Any) -> HttpRequest:
    sender = sender_of(account(kind, tmp_path))
    sender._clock = lambda: NOW
    made = sender.prepare(to_send(kind, message_id=ID, **fields))
    assert isinstance(made, HttpRequest)
    assert made.body is not None
    assert CANARY not in repr(made)
    return made


def body_of(request: HttpRequest) -> Any:
    return from_json(request.body or b"")


def test_sendgrid_gets_plain_text_first_and_no_tracking(tmp_path: Path) -> None:
    request = prepared("sendgrid", tmp_path, html="<p>T</p>")
    mail = body_of(request)
    assert request.url == "https://api.sendgrid.com/v3/mail/send"
    assert request.headers["Authorization"] == f"Bearer {CANARY}"
    assert mail["from"] == {"email": "no-reply@shop.example", "name": "Shop"}
    assert [part["type"] for part in mail["content"]] == ["text/plain", "text/html"]
    assert not mail["tracking_settings"]["click_tracking"]["enable"]
    (personalization,) = mail["personalizations"]
    assert personalization["custom_args"]["message_id"] == ID


@pytest.mark.parametrize(
    "fields", [{"subject": ""}, {"text": None}, {"text": "", "html": ""}, {"subject": "a\nBcc: x@y.z"}]
)
async def test_sendgrid_is_not_asked_for_a_mail_it_takes_never(fields: dict[str, Any], tmp_path: Path) -> None:
    made = await sender_of(account("sendgrid", tmp_path)).send(to_send("sendgrid", **fields))
    assert isinstance(made, Rejected)
    assert made.error is MSG


@pytest.mark.parametrize(
    ("kind", "region", "url"),
    [
        ("sendgrid", "eu", "https://api.eu.sendgrid.com/v3/mail/send"),
        ("mailgun", "eu", "https://api.eu.mailgun.net/v3/mg.shop.example/messages.mime"),
        ("ses", "us-east-1", "https://email.us-east-1.amazonaws.com/v2/email/outbound-emails"),
        ("sns", "us-east-1", "https://sns.us-east-1.amazonaws.com/"),
    ],
)
def test_region_says_where(kind: str, region: str, url: str, tmp_path: Path) -> None:
    sender = sender_of(account(kind, tmp_path, region=region, base_url=None))
    assert sender.prepare(to_send(kind, message_id=ID)).url == url


def test_mailgun_gets_our_mail_as_a_file_and_no_tracking(tmp_path: Path) -> None:
    request = prepared("mailgun", tmp_path, text="%recipient.name% --hg-x\r\n--hg-y")
    form = form_of(request.headers["Content-Type"], request.body or b"")
    assert form["to"] == to_send("mailgun")["address"].encode()
    assert form["message"].startswith(b"From: Shop <no-reply@mg.shop.example>\r\n")
    assert f"Message-ID: <{ID}@mg.shop.example>".encode() in form["message"]
    assert form["o:tracking"] == form["o:tracking-clicks"] == form["o:tracking-opens"] == b"no"
    assert form["v:message_id"] == ID.encode()


def test_ses_gets_our_mail_raw_with_the_tags_that_it_takes(tmp_path: Path) -> None:
    nid = ids.notification_id(NOW, "shop.eu")
    attempt_ref = AttemptRef(nid, ID, "shop.eu", "normal", 1)
    mail = body_of(prepared("ses", tmp_path, tenant="shop.eu", notification_id=nid))
    assert mail["FromEmailAddress"] == "no-reply@shop.example"
    tags = {tag["Name"]: tag["Value"] for tag in mail["EmailTags"]}
    assert tags["message_id"] == ID
    assert subject_of_token(tags["heliograph"]).attempt_ref == attempt_ref
    assert mail["ConfigurationSetName"] == "notifications"


@pytest.mark.parametrize("kind", ["ses", "sns"])
def test_aws_request_is_signed_for_its_region_and_service(kind: str, tmp_path: Path) -> None:
    headers = prepared(kind, tmp_path).headers
    credential = headers["Authorization"].partition("Credential=")[2].partition(",")[0].split("/")
    assert [credential[0], *credential[2:]] == ["AKIA0000000000000000", "eu-central-1", kind, "aws4_request"]
    assert CANARY not in str(headers)


def test_vonage_gets_digits_and_the_alphabet(tmp_path: Path) -> None:
    plain = parse_qs((prepared("vonage", tmp_path, text="hallo €").body or b"").decode())
    assert plain["to"] == [to_send("vonage")["address"].removeprefix("+")]
    assert subject_of_token(plain["client-ref"][0]).message_id == ID
    long = parse_qs((prepared("vonage", tmp_path, tenant="t" * 39).body or b"").decode())
    assert long["client-ref"] == [ID]  # it has 100 characters
    assert "type" not in plain
    assert parse_qs((prepared("vonage", tmp_path, text="привет").body or b"").decode())["type"] == ["unicode"]


@pytest.mark.parametrize(
    ("text", "sent", "encoding"),
    [
        ("Hi {F0##}", "Hi {\u200bF0##}", "UNICODE"),
        ("{fn##} {sn##}", "{\u200bfn##} {\u200bsn##}", "UNICODE"),
        ("{ F0 } {name} {}", "{ F0 } {name} {}", "TEXT"),
    ],
)
def test_bulksms_fills_no_template_in_a_text(text: str, sent: str, encoding: str, tmp_path: Path) -> None:
    (entry,) = body_of(prepared("bulksms", tmp_path, text=text))
    assert (entry["body"], entry["encoding"]) == (sent, encoding)
    assert entry["longMessageMaxParts"] == 10
    assert entry["from"] == {"type": "ALPHANUMERIC", "address": "Shop"}


@pytest.mark.parametrize(
    ("sender", "kind"),
    [
        ("Shop", "ALPHANUMERIC"),
        ("4Shop", "ALPHANUMERIC"),
        ("+4915112345678", "INTERNATIONAL"),
        ("12345", "INTERNATIONAL"),
    ],
)
def test_bulksms_sender_is_what_the_vendor_takes_it_for(sender: str, kind: str) -> None:
    assert sender_type(sender) == kind


def test_bulksms_is_given_120_bits_of_our_id() -> None:
    made = {user_supplied_id(str(UUID(int=n << 8))) for n in range(1_000)}
    assert len(made) == 1_000
    assert {len(text) for text in made} == {20}


def test_onesignal_push(tmp_path: Path) -> None:
    push = body_of(prepared("onesignal", tmp_path, address="sub-1", expires_at=NOW + 90_500, data=b'{"order": 7}'))
    assert push["include_subscription_ids"] == ["sub-1"]
    assert push["idempotency_key"] == push["collapse_id"] == ID
    assert (push["headings"], push["contents"], push["data"]) == ({"en": "T"}, {"en": "B"}, {"order": 7})
    assert push["ttl"] == 90
    silent = body_of(prepared("onesignal", tmp_path, title="", body="", data=b'{"a": 1}'))
    assert silent["content_available"] is True
    assert "contents" not in silent


@pytest.mark.parametrize("kind", ["twilio", "vonage", "bulksms", "sns"])
async def test_text_of_too_many_parts_is_rejected_with_their_number(kind: str, tmp_path: Path) -> None:
    sender = sender_of(account(kind, tmp_path, max_parts=2))
    sender._http = Canned(said(200))
    made = await sender.send(to_send(kind, text="ж" * 135))
    assert made == Rejected(MSG, "3 parts of UCS-2, more than max_parts = 2")

"""Every row of every provider's table of codes: its class, its wait, and where the vendor documents it."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
from prometheus_client import REGISTRY

from vendors import codes, smtp_codes
from vendors.apns import codes as apns_codes
from vendors.bulksms import codes as bulksms_codes
from vendors.codes import CodeRule, Codes, classify_code, unknown_http
from vendors.fcm import codes as fcm_codes
from vendors.mailgun import codes as mailgun_codes
from vendors.onesignal import codes as onesignal_codes
from vendors.registry import VENDORS
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry
from vendors.sendgrid import codes as sendgrid_codes
from vendors.ses import codes as ses_codes
from vendors.slack import codes as slack_codes
from vendors.sns import codes as sns_codes
from vendors.teams import codes as teams_codes
from vendors.twilio import codes as twilio_codes
from vendors.vonage import codes as vonage_codes
from vendors.webhook import codes as webhook_codes
from vendors.webpush import codes as webpush_codes

RCPT, MSG, THR, TRN, DOUBT, ACCT = (
    ErrorClass.PERMANENT_RECIPIENT,
    ErrorClass.PERMANENT_MESSAGE,
    ErrorClass.THROTTLED,
    ErrorClass.TRANSIENT,
    ErrorClass.IN_DOUBT,
    ErrorClass.ACCOUNT,
)
TABLES = {
    "smtp": smtp_codes.CODES,
    "gmail": smtp_codes.CODES,
    "twilio": twilio_codes.CODES,
    "fcm": fcm_codes.CODES,
    "apns": apns_codes.CODES,
    "sendgrid": sendgrid_codes.CODES,
    "mailgun": mailgun_codes.CODES,
    "ses": ses_codes.CODES,
    "vonage": vonage_codes.CODES,
    "bulksms": bulksms_codes.CODES,
    "sns": sns_codes.CODES,
    "onesignal": onesignal_codes.CODES,
    "webpush": webpush_codes.CODES,
    "webhook": webhook_codes.CODES,
    "slack": slack_codes.CODES,
    "teams": teams_codes.CODES,
}
# What AWS says of any service's request.
_AWS_ACCT = (
    "AccessDenied AccessDeniedException ExpiredToken ExpiredTokenException IncompleteSignature InvalidClientTokenId"
    " InvalidSignatureException MissingAuthenticationToken MissingAuthenticationTokenException OptInRequired RequestExpired"
    " SignatureDoesNotMatch UnrecognizedClientException 401 403"
)
_AWS_DOUBT = "InternalFailure ServiceUnavailable 500 502 503 504"

# What each class is allowed to hold, written out a second time: a row that moves must be moved here too.
EXPECTED = {
    "twilio": {
        RCPT: "21211 21217 21610 21614 21635 30005 30006",
        MSG: "21212 21266 21408 21602 21603 21604 21605 21606 21608 21612 21617 21619 21659 21660 30004 30007 30034",
        THR: "14107 20429 21611 30001 429",
        ACCT: "20003 20005 20008 20404 30002 401 403",
        TRN: "30003 30017",
        DOUBT: "20500 20503 20504 30008 500 502 503 504",
    },
    "fcm": {
        RCPT: "UNREGISTERED INVALID_ARGUMENT·token SENDER_ID_MISMATCH",
        MSG: "INVALID_ARGUMENT 400 413",
        THR: "QUOTA_EXCEEDED 429",
        ACCT: "THIRD_PARTY_AUTH_ERROR SENDER_ID_MISMATCH·unproven 401 403 404",
        TRN: "",
        DOUBT: "UNAVAILABLE INTERNAL 500 502 503 504",
    },
    "apns": {
        RCPT: "BadDeviceToken Unregistered ExpiredToken 410",
        MSG: "BadCollapseId BadExpirationDate BadMessageId BadPath BadPriority BadTopic DuplicateHeaders InvalidPushType"
        " MethodNotAllowed MissingDeviceToken MissingTopic PayloadEmpty PayloadTooLarge 404 405 413",
        THR: "TooManyRequests TooManyProviderTokenUpdates 429",
        ACCT: "BadCertificate BadCertificateEnvironment BadEnvironmentKeyIdInToken DeviceTokenNotForTopic"
        " ExpiredProviderToken Forbidden InvalidProviderToken MissingProviderToken TopicDisallowed UnrelatedKeyIdInToken"
        " 401 403",
        TRN: "IdleTimeout",
        DOUBT: "ServiceUnavailable Shutdown InternalServerError 500 502 503 504",
    },
    "sendgrid": {
        RCPT: "",
        MSG: "400 404 405 413",
        THR: "429",
        ACCT: "401 403 unverified_sender",
        TRN: "",
        DOUBT: "500 502 503 504",
    },
    "mailgun": {
        RCPT: "invalid_recipient",
        MSG: "400 413",
        THR: "429",
        ACCT: "401 402 403 not_the_api",
        TRN: "404",
        DOUBT: "500 502 503 504",
    },
    "ses": {
        RCPT: "",
        MSG: "BadRequestException MessageRejected NotFoundException 400 413",
        THR: "TooManyRequestsException Throttling ThrottlingException 429",
        ACCT: "AccountSuspendedException LimitExceededException MailFromDomainNotVerifiedException SendingPausedException"
        f" unverified_identity daily_quota {_AWS_ACCT}",
        TRN: "",
        DOUBT: f"InternalServiceErrorException {_AWS_DOUBT}",
    },
    "vonage": {
        RCPT: "vonage-6 vonage-7 vonage-33",
        MSG: "vonage-2 vonage-3 vonage-12 vonage-15 vonage-22 400 413",
        THR: "vonage-1 vonage-10 429",
        ACCT: "vonage-4 vonage-8 vonage-9 vonage-11 vonage-14 vonage-23 vonage-29 vonage-32 401 402 403",
        TRN: "",
        DOUBT: "vonage-5 partial 500 502 503 504",
    },
    "webhook": {RCPT: "410", MSG: "413", THR: "429 503", ACCT: "", TRN: "3xx 4xx", DOUBT: "500 502 504"},
    "slack": {
        RCPT: "slack-channel_not_found slack-channel_is_archived slack-no_service slack-no_service_id"
        " slack-no_active_hooks slack-no_team slack-team_disabled slack-invalid_token slack-action_prohibited"
        " slack-posting_to_general_channel_denied 404 410",
        MSG: "slack-invalid_payload slack-invalid_blocks slack-invalid_blocks_format slack-no_text"
        " slack-too_many_attachments slack-user_not_found 400 413",
        THR: "429",
        ACCT: "",
        TRN: "",
        DOUBT: "slack-rollup_error 500 502 503 504",
    },
    "teams": {
        RCPT: "401 403 404 410",
        MSG: "400 413",
        THR: "429",
        ACCT: "",
        TRN: "",
        DOUBT: "own_reply 500 502 503 504",
    },
    "bulksms": {
        RCPT: "FAILED.BLOCKED",
        MSG: "FAILED.NOT_SENT 400 413",
        THR: "429",
        ACCT: "401 403",
        TRN: "FAILED.EXPIRED FAILED.HANDSET_ERROR",
        DOUBT: "UNKNOWN.null 500 502 503 504",
    },
    "sns": {
        RCPT: "OptedOut invalid_phone_number EndpointDisabled",
        MSG: "InvalidParameter InvalidParameterValue ParameterValueInvalid ValidationException 400 413",
        THR: "Throttled KMSThrottling Throttling ThrottlingException 429",
        ACCT: "AuthorizationError InvalidSecurity KMSAccessDenied KMSDisabled KMSInvalidState KMSNotFound KMSOptInRequired"
        f" PlatformApplicationDisabled {_AWS_ACCT}",
        TRN: "",
        DOUBT: f"InternalError {_AWS_DOUBT}",
    },
    "onesignal": {
        RCPT: "not_subscribed",
        MSG: "400 413",
        THR: "429",
        ACCT: "401 403",
        TRN: "",
        DOUBT: "500 502 503 504",
    },
    "webpush": {
        RCPT: "404 410",
        MSG: "400 413",
        THR: "406 429",
        ACCT: "401 403",
        TRN: "",
        DOUBT: "500 502 503 504",
    },
}


def test_every_kind_in_the_registry_has_its_table_here_and_is_written_out_a_second_time() -> None:
    kinds = {vendor.kind: vendor.package for vendor in VENDORS}
    assert {kind: import_module(f"{package}.codes").CODES for kind, package in kinds.items()} == TABLES
    assert {*EXPECTED, "smtp", "gmail"} == kinds.keys()


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_row_is_in_its_class(kind: str) -> None:
    rows = TABLES[kind].rows
    actual = {error: {code for code, row in rows.items() if row.error is error} for error in ErrorClass}
    assert actual == {
        error: {c.replace("·", " ") for c in EXPECTED[kind].get(error, "").split()} for error in ErrorClass
    }


@pytest.mark.parametrize("kind", TABLES)
def test_every_table_names_its_source_and_every_row_its_meaning(kind: str) -> None:
    assert re.search(r"RFC \d+|\w+\.com/\w+", TABLES[kind].source)
    assert [code for code, row in TABLES[kind].rows.items() if not row.means] == []


@pytest.mark.parametrize(
    ("code", "text", "phase", "expected", "wait_s"),
    [
        # the recipient's, wherever one was named
        (550, "5.1.1 no such user", "RCPT", RCPT, None),
        (550, "5.1.1 no such user", "DATA", RCPT, None),
        (550, "5.1.1 no such user", "BODY", RCPT, None),
        (550, "5.1.0 address rejected", "RCPT", RCPT, None),
        (550, "5.1.2 bad destination", "RCPT", RCPT, None),
        (501, "5.1.3 bad syntax", "RCPT", RCPT, None),
        (553, "5.1.4 ambiguous", "RCPT", RCPT, None),
        (551, "5.1.6 moved", "RCPT", RCPT, None),
        (556, "5.1.10 null MX", "RCPT", RCPT, None),
        (550, "5.2.1 disabled", "RCPT", RCPT, None),
        (550, "no such user", "RCPT", RCPT, None),
        (551, "not local", "RCPT", RCPT, None),
        (553, "bad mailbox name", "RCPT", RCPT, None),
        (556, "null MX", "RCPT", RCPT, None),
        (550, "5.0.0 other", "RCPT", RCPT, None),
        (550, "mail for 5.1.1.20 is not taken", "BODY", MSG, None),
        # the message's, or a policy: nobody is suppressed
        (552, "5.2.2 over quota", "RCPT", MSG, None),
        (552, "5.2.3 too long", "BODY", MSG, None),
        (552, "5.3.4 too big", "BODY", MSG, None),
        (552, "too big", "BODY", MSG, None),
        (550, "5.4.1 access denied", "RCPT", MSG, None),
        (550, "5.5.1 no", "RCPT", MSG, None),
        (554, "5.6.0 content", "BODY", MSG, None),
        (554, "5.7.1 blocked", "RCPT", MSG, None),
        (550, "5.7.1 policy", "BODY", MSG, None),
        (550, "5.7.26 unauthenticated", "BODY", MSG, None),
        (550, "refused", "BODY", MSG, None),
        (554, "refused", "RCPT", MSG, None),
        (500, "what", "RCPT", MSG, None),
        (501, "what", "RCPT", MSG, None),
        (502, "what", "DATA", MSG, None),
        (503, "no valid recipients", "DATA", MSG, None),
        (504, "what", "DATA", MSG, None),
        (555, "what", "RCPT", MSG, None),
        (551, "x", "BODY", MSG, None),
        (553, "x", "BODY", MSG, None),
        (556, "x", "BODY", MSG, None),
        (550, "5.1.9 relay", "RCPT", MSG, None),
        # the account's
        (530, "5.7.0 authenticate first", "MAIL", ACCT, None),
        (530, "5.7.0 authenticate first", "RCPT", ACCT, None),
        (534, "5.7.9 stronger", "AUTH", ACCT, None),
        (535, "5.7.8 bad credentials", "AUTH", ACCT, None),
        (538, "5.7.11 encrypt", "AUTH", ACCT, None),
        (432, "4.7.12 transition", "AUTH", ACCT, None),
        (535, "no", "AUTH", ACCT, None),
        (550, "5.7.1 sender not authorised", "MAIL", ACCT, None),
        (553, "5.1.8 no such domain", "MAIL", ACCT, None),
        (553, "5.1.7 bad sender", "RCPT", ACCT, None),
        (550, "5.1.1 sender unknown", "MAIL", ACCT, None),
        (550, "sender refused", "MAIL", ACCT, None),
        (554, "5.7.1 your address is listed", "CONNECT", ACCT, None),
        (554, "no service", "CONNECT", ACCT, None),
        (521, "takes no mail", "CONNECT", ACCT, None),
        (550, "5.7.1 go away", "CONNECT", ACCT, None),
        (502, "no AUTH", "AUTH", ACCT, None),
        (550, "5.4.5 Daily user sending limit exceeded.", "RCPT", ACCT, None),
        (550, "5.4.5 Daily user sending quota exceeded", "BODY", ACCT, None),
        (550, "5.7.1 Daily SMTP relay limit exceeded for customer.", "RCPT", ACCT, None),
        (550, "5.7.1 Daily SMTP relay sending limit exceeded for user.", "BODY", ACCT, None),
        (454, "Throttling failure: Daily message quota exceeded.", "BODY", ACCT, None),
        # asked to wait
        (450, "4.2.1 Peak SMTP relay limit exceeded for customer.", "RCPT", THR, None),
        (421, "4.7.0 too many connections", "CONNECT", THR, None),
        (421, "4.7.28 unusual rate", "BODY", THR, None),
        (451, "4.7.1 Rate limited, try again", "RCPT", THR, None),
        (451, "4.7.500 Server busy", "RCPT", THR, None),
        (451, "4.7.1 policy service", "BODY", THR, None),
        (454, "Throttling failure: Maximum sending rate exceeded.", "BODY", THR, None),
        # greylisting
        (450, "4.7.1 Greylisted, come back later", "RCPT", TRN, 60.0),
        (451, "4.7.1 try again later", "RCPT", TRN, 60.0),
        (450, "4.2.0 Gray-Listed, see postgrey", "RCPT", TRN, 60.0),
        (451, "greylisting in action", "BODY", TRN, 60.0),
        # later
        (452, "4.2.2 mailbox full", "RCPT", TRN, 300.0),
        (421, "closing", "MAIL", TRN, None),
        (421, "4.3.2 shutting down", "CONNECT", TRN, None),
        (450, "busy mailbox", "RCPT", TRN, None),
        (451, "4.3.0 try later", "BODY", DOUBT, None),
        (451, "4.3.0 try later", "DATA", TRN, None),
        (452, "4.3.1 no space", "BODY", TRN, None),
        (452, "4.3.1 disk full", "MAIL", TRN, None),
        (455, "not now", "MAIL", TRN, None),
        (454, "4.7.0 temporary authentication failure", "AUTH", TRN, None),
        (454, "not now", "AUTH", TRN, None),
        (450, "4.1.8 sender not found", "RCPT", TRN, None),
        (451, "4.4.1 no answer", "RCPT", TRN, None),
        (451, "4.5.3 too many", "RCPT", TRN, None),
        (451, "4.6.0 conversion", "BODY", TRN, None),
    ],
)
def test_smtp_reply(code: int, text: str, phase: str, expected: ErrorClass, wait_s: float | None) -> None:
    found = smtp_codes.smtp_rule(code, text, phase)
    assert found is not None
    assert (found.error, found.wait_s) == (expected, wait_s)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (450, "4.7.1 greylisted", False),
        (452, "4.2.2 full", False),
        (450, "4.2.1 busy", False),
        (450, "no", False),
        (451, "4.3.0 error", True),
        (421, "closing", True),
        (451, "4.7.1 rate limited", True),
        (450, "4.2.1 Peak SMTP relay limit exceeded for customer.", True),
        (450, "4.2.1 The user you are trying to contact is receiving mail at a rate that", False),
    ],
)
def test_what_one_mailbox_does_says_nothing_of_the_account(code: int, text: str, expected: bool) -> None:
    found = smtp_codes.smtp_rule(code, text, "RCPT")
    assert found is not None
    assert found.account_wide is expected


def test_every_row_of_smtp_can_be_reached() -> None:
    """A key is what a reply makes of itself: a code, an enhanced code, or its subject, perhaps at a phase."""
    form = re.compile(rf"([245]\d\d|([245])\.\d{{1,2}}(\.\d{{1,3}})?)( at ({'|'.join(smtp_codes.PHASES)}))?")
    for key, row in smtp_codes.CODES.rows.items():
        said = form.fullmatch(key)
        assert said, key
        if said[1].isdigit():
            reply = smtp_codes.smtp_rule(int(said[1]), "words", said[5] or "MAIL")
        else:
            enhanced = said[1] if said[3] else f"{said[1]}.999"
            reply = smtp_codes.smtp_rule(int(said[2]) * 100 + 50, f"{enhanced} words", said[5] or "MAIL")
        assert reply is not None, key
        if said[4]:
            assert reply.error is row.error, key


def test_no_reply_before_a_recipient_was_named_is_the_recipients() -> None:
    for phase in ("CONNECT", "AUTH", "MAIL"):
        for code in range(400, 600):
            for text in ("x", *(f"{code // 100}.{subject}.{detail} x" for subject in range(8) for detail in range(12))):
                found = smtp_codes.smtp_rule(code, text, phase)
                assert found is None or found.error is not RCPT, (code, text, phase)


@pytest.mark.parametrize(
    ("code", "text", "phase"),
    [(599, "what", "RCPT"), (499, "what", "RCPT"), (550, "5.9.9 what", "RCPT"), (451, "4.8.1 what", "BODY")],
)
def test_unknown_smtp_reply_has_no_row(code: int, text: str, phase: str) -> None:
    assert smtp_codes.smtp_rule(code, text, phase) is None


def test_enhanced_code_is_read_at_the_head_only_and_must_fit_its_reply() -> None:
    assert smtp_codes.enhanced_code(550, "5.1.1 x") == "5.1.1"
    assert smtp_codes.enhanced_code(550, " 5.1.01 x") == "5.1.1"
    assert smtp_codes.enhanced_code(550, "host 5.1.1 said") is None
    assert smtp_codes.enhanced_code(550, "5.1.1.2 said") is None
    assert smtp_codes.enhanced_code(450, "5.1.1 x") is None
    assert smtp_codes.shown(550, "5.1.1 <a@b.c> unknown") == "550 5.1.1"


# -- what no table knows ----------------------------------------------------------------------------------------------


def counted(provider: str) -> float:
    return REGISTRY.get_sample_value("heliograph_provider_unknown_codes_total", {"provider": provider}) or 0.0


def test_unknown_code_is_counted_each_time_logged_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr(codes.log, "warning", lambda event, **fields: lines.append(fields))
    monkeypatch.setattr(codes, "_logged", set())
    results = [classify_code("unknowing", None, unknown_http(status), f"{status} X") for status in (400, 400, 500)]
    assert results == [Retry(TRN, "400 X"), Retry(TRN, "400 X"), InDoubt("500 X")]
    assert counted("unknowing") == 3
    assert lines == [{"provider": "unknowing", "code": "400 X"}, {"provider": "unknowing", "code": "500 X"}]


def test_words_of_a_server_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr(codes.log, "warning", lambda event, **fields: lines.append(fields["code"]))
    monkeypatch.setattr(codes, "_logged", set())
    classify_code("unknowing", None, unknown_http(400), "400 someone@example.org")
    assert lines == ["unprintable"]


@pytest.mark.parametrize(
    ("status", "expected"), [(400, TRN), (418, TRN), (499, TRN), (0, DOUBT), (302, DOUBT), (599, DOUBT)]
)
def test_only_a_client_error_says_that_nothing_was_sent(status: int, expected: ErrorClass) -> None:
    assert unknown_http(status).error is expected


def test_known_code_is_not_counted() -> None:
    before = counted("knowing")
    assert classify_code("knowing", CodeRule(MSG, "x"), unknown_http(400), "400") == Rejected(MSG, "400")
    assert counted("knowing") == before


def test_wait_is_what_the_provider_asks_for_and_else_the_rows() -> None:
    row = CodeRule(THR, "x", wait_s=60, account_wide=False)
    assert classify_code("p", row, unknown_http(429), "429") == Retry(THR, "429", 60)
    made = classify_code("p", row, unknown_http(429), "429", 2.0)
    assert made == Retry(THR, "429", 2.0)
    assert isinstance(made, Retry)
    assert not made.account_wide


def test_the_most_telling_key_wins() -> None:
    table = Codes("RFC 1", {"a": CodeRule(MSG, "a"), "b": CodeRule(TRN, "b")})
    assert table.find("c", "b", "a") == CodeRule(TRN, "b")
    assert table.find("c") is None

"""SMTP's reply codes and enhanced status codes; data.

A key is an enhanced code (`5.1.1`), its subject (`5.7`) or a reply code (`550`), with ` at PHASE` where it means something
else there. The most specific row wins; an enhanced code that no row knows is unknown, whatever its reply code says.
Only what is about the mailbox is the recipient's, and only once the recipient was named: everything about the sender's
address, at the banner or at MAIL is the account's. A full mailbox, a policy, a size and a route are never a reason to
suppress an address.
May import the shape of a table. Never: a connection.
"""

from __future__ import annotations

import re

from vendors.codes import CodeRule, Codes, same
from vendors.sender import ErrorClass

GREYLIST_WAIT_S = 60.0
"""A greylisting host takes the second try after a minute or more, none before (RFC 6647)."""
FULL_WAIT_S = 300.0
PHASES = ("CONNECT", "AUTH", "MAIL", "RCPT", "DATA", "BODY")
"""CONNECT is banner, EHLO and STARTTLS; DATA the command; BODY the mail and the answer to its final dot."""

GREYLISTED = CodeRule(ErrorClass.TRANSIENT, "greylisted", GREYLIST_WAIT_S, account_wide=False)
_ENHANCED = re.compile(r"\s*([245])\.(\d{1,3})\.(\d{1,3})(?![\d.])")
_GREYLIST = re.compile(r"gr[ae]y-?\s?list|postgrey", re.IGNORECASE)
_RATE = re.compile(r"rate|limit|throttl|too many|too much|slow down|too fast|busy", re.IGNORECASE)

# Words of a server about our EHLO, with blanks that no address of the message can bring into a reply.
_HELO = re.compile(
    r"\b(?:helo|ehlo) (?:(?:command|name|argument|hostname|host) )*(?:rejected|invalid|refused|required)\b"
    r"|\b(?:invalid|bad) (?:helo|ehlo) |fully[- ]qualified (?:hostname|host|domain name)\b",
    re.IGNORECASE,
)
# Limits of the account that come with a code of something else: Gmail's relay and SES say them in words alone.
_DAILY = re.compile(
    r"\bdaily (?:message quota|user sending (?:limit|quota)|smtp relay (?:sending )?limit) exceeded", re.IGNORECASE
)
_PEAK = re.compile(r"\bpeak smtp relay limit exceeded", re.IGNORECASE)
_DAILY_QUOTA = CodeRule(ErrorClass.ACCOUNT, "the account's limit of a day is used up")
_PEAK_LIMIT = CodeRule(ErrorClass.THROTTLED, "over the relay's peak limit, for all of the account")
_HELO_REFUSED = CodeRule(ErrorClass.ACCOUNT, "the server refuses our EHLO name: set local_hostname")
_SENDER = CodeRule(ErrorClass.ACCOUNT, "our address or our right to send is refused")
_NO_SERVICE = CodeRule(ErrorClass.ACCOUNT, "the server does not serve us")

CODES = Codes(
    source="RFC 5321 §4.2.3, RFC 3463 and the IANA registry of SMTP enhanced status codes, RFC 4954 §6, RFC 7504, RFC 7505; "
    "Gmail: support.google.com/a/answer/3726730, SES: docs.aws.amazon.com/ses/latest/dg/manage-sending-quotas-errors.html",
    rows={
        # -- the mailbox: only where a recipient has been named
        **{
            f"{code} at {phase}": CodeRule(ErrorClass.PERMANENT_RECIPIENT, means)
            for phase in ("RCPT", "DATA", "BODY")
            for code, means in {
                "5.1.0": "bad address",
                "5.1.1": "no such mailbox",
                "5.1.2": "no such domain",
                "5.1.3": "bad address syntax",
                "5.1.4": "ambiguous address",
                "5.1.6": "the mailbox has moved",
                "5.1.10": "the domain takes no mail (null MX)",
                "5.2.1": "the mailbox is disabled",
            }.items()
        },
        "550 at RCPT": CodeRule(ErrorClass.PERMANENT_RECIPIENT, "no such mailbox"),
        "551 at RCPT": CodeRule(ErrorClass.PERMANENT_RECIPIENT, "not local"),
        "553 at RCPT": CodeRule(ErrorClass.PERMANENT_RECIPIENT, "bad mailbox name"),
        "556 at RCPT": CodeRule(ErrorClass.PERMANENT_RECIPIENT, "the domain takes no mail"),
        # -- the message, or a policy about it
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                "5.1": "an address of the message",
                "5.2": "the mailbox refuses this message",
                "5.2.2": "the mailbox is full: this may pass, so the address is not suppressed",
                "5.2.3": "too long for the mailbox",
                "5.3": "the system refuses this message",
                "5.3.4": "too large",
                "5.4": "no route",
                "5.5": "protocol error",
                "5.6": "content",
                "5.7": "policy: spam, reputation, authorisation of this message",
                "500": "syntax error",
                "501": "syntax error in an argument",
                "502": "not implemented",
                "503": "bad sequence",
                "504": "argument not implemented",
                "550": "refused",
                "551": "not local",
                "552": "storage exceeded",
                "553": "name not allowed",
                "554": "transaction failed: policy as a rule",
                "555": "argument not recognised",
                "556": "the domain takes no mail",
            },
        ),
        # -- the account
        **same(
            ErrorClass.ACCOUNT,
            {
                "5.1.7": "our address has a bad syntax",
                "5.1.8": "our domain does not exist",
                "5.4.5": "the account's limit of a day (Gmail)",
                "5.7.8": "wrong credentials",
                "5.7.9": "a stronger mechanism is wanted",
                "5.7.11": "encryption is wanted",
                "432": "a password transition is needed",
                "530": "authentication is required",
                "534": "a stronger mechanism is wanted",
                "535": "wrong credentials",
                "538": "encryption is wanted",
                "521": "the host takes no mail",
            },
        ),
        **{
            f"{key} at {phase}": _NO_SERVICE
            for phase in ("CONNECT", "AUTH")
            for key in (
                "5.1",
                "5.2",
                "5.3",
                "5.4",
                "5.5",
                "5.6",
                "5.7",
                "500",
                "501",
                "502",
                "503",
                "504",
                "521",
                "550",
                "554",
            )
        },
        **{
            f"{key} at MAIL": _SENDER
            for key in ("5.1", "5.1.0", "5.1.1", "5.1.2", "5.1.3", "5.7", "550", "551", "553", "554")
        },
        # -- later
        **same(ErrorClass.THROTTLED, {"4.7": "asked to wait, by policy or rate", "454": "throttled (SES, after DATA)"}),
        **same(
            ErrorClass.TRANSIENT,
            {
                "4.1": "an address cannot be checked now",
                "4.3": "the system is not available now",
                "4.4": "the network is not available now",
                "4.5": "protocol error, now",
                "4.6": "content cannot be converted now",
                "454 at AUTH": "authentication is not available now",
                "4.7 at AUTH": "authentication is not available now",
                "421": "the server is going down",
                "450": "the mailbox is not available now",
                "451": "local error",
                "452": "no storage now",
                "455": "argument not taken now",
            },
        ),
        **same(
            ErrorClass.TRANSIENT,
            {"4.2": "the mailbox is not available now", "450 at RCPT": "the mailbox is not available now"},
            account_wide=False,
        ),
        # The server failed by itself once it had the whole mail: like an HTTP 500, it says nothing of what it did before.
        "4.3.0 at BODY": CodeRule(ErrorClass.IN_DOUBT, "the server failed while it took the mail"),
        "4.2.2": CodeRule(ErrorClass.TRANSIENT, "the mailbox is full", FULL_WAIT_S, account_wide=False),
        # Words decide between these two: a rate limit wears the same code.
        "4.7.1 at RCPT": GREYLISTED,
    },
)


def enhanced_code(code: int, text: str) -> str | None:
    """The enhanced status code at the head of a reply's text; None when there is none, or one of another class."""
    found = _ENHANCED.match(text)
    return f"{found[1]}.{int(found[2])}.{int(found[3])}" if found and found[1] == str(code)[:1] else None


def smtp_rule(code: int, text: str, phase: str) -> CodeRule | None:
    """The row of a reply; None when the table does not know it."""
    if _HELO.search(text):
        return _HELO_REFUSED
    if _DAILY.search(text):
        return _DAILY_QUOTA
    if _PEAK.search(text):
        return _PEAK_LIMIT
    if 400 <= code < 500 and phase in ("RCPT", "DATA", "BODY") and _GREYLIST.search(text):
        return GREYLISTED
    enhanced = enhanced_code(code, text)
    if enhanced == "4.7.1" and _RATE.search(text):
        return CODES.find("4.7")
    keys = [str(code)]
    # x.0.0 is "undefined": the reply code says more.
    if enhanced is not None and not enhanced.endswith(".0.0"):
        keys = [enhanced, enhanced.rpartition(".")[0]]
        # Authentication's own reply codes say more than any subject.
        if code in (432, 530, 534, 535, 538):
            keys.insert(0, str(code))
    return CODES.find(*(form for key in keys for form in (f"{key} at {phase}", key)))


def shown(code: int, text: str) -> str:
    """The codes without the server's words, which may repeat the address."""
    enhanced = enhanced_code(code, text)
    return f"{code} {enhanced}" if enhanced else str(code)

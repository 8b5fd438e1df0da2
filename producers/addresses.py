"""What counts as an address: e-mail, E.164 number, device token, a webhook's URL. Whatever passes is safe to hand to a provider.

May import email-validator and phonenumbers. Never: a look-up over the network, an address in a message
of an error.
"""

from __future__ import annotations

import re
from functools import lru_cache

import phonenumbers
from email_validator import EmailNotValidError, validate_email

from runtime.addresses import has_encoded_word
from schemas.channels import CHANNEL_OF_PLATFORM, DEVICE_TOKEN, EMAIL_ADDRESS, HOOK_URL, PHONE_NUMBER, ROWS

MAX_EMAIL_CHARS = 254
MAX_LOCAL_CHARS = 64
MAX_TOKEN_CHARS = 4096
MAX_URL_CHARS = 2048

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LOCAL = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+{_LABEL}")
_PHONE = re.compile(r"\+[0-9][0-9 ().-]{5,30}")


# C0, DEL, C1, line and paragraph separator, bidirectional overrides and isolates, half surrogate pairs. Joiners stay: they
# are part of emoji and of several scripts.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def has_control(text: str) -> bool:
    """Whether the text holds a character that may break a header, a key or the reading direction."""
    return _CONTROL.search(text) is not None


def email_address(text: str) -> str:
    """The address with its domain in lower-case A-labels. Raises ValueError.

    Reserved domains (.test, .invalid) are let through: whether a domain takes mail is known when mail is sent.
    """
    local, at, domain = text.rpartition("@")
    if not at:
        raise ValueError("not an e-mail address: there is no @ in it")
    if has_encoded_word(text):
        raise ValueError(
            "not an e-mail address: =?…?= is an encoded word, which some servers decode to another address"
        )
    if len(local) > MAX_LOCAL_CHARS or not _LOCAL.fullmatch(local):
        raise ValueError("not an e-mail address: quoted, non-ASCII or malformed part before the @")
    if len(domain) > MAX_EMAIL_CHARS:
        raise ValueError(f"not an e-mail address: longer than {MAX_EMAIL_CHARS} characters")
    if not domain.isascii() or "xn--" in domain.lower():
        domain = _a_labels(domain)
    if not _DOMAIN.fullmatch(domain) or domain.rpartition(".")[2].isdigit():
        raise ValueError("not an e-mail address: malformed domain")
    if len(local) + 1 + len(domain) > MAX_EMAIL_CHARS:
        raise ValueError(f"not an e-mail address: longer than {MAX_EMAIL_CHARS} characters")
    return f"{local}@{domain.lower()}"


@lru_cache(maxsize=4096)
def _a_labels(domain: str) -> str:
    try:
        return validate_email(f"a@{domain}", check_deliverability=False, test_environment=True).ascii_domain or ""
    except EmailNotValidError as exc:
        raise ValueError("not an e-mail address: malformed international domain") from exc


def phone_number(text: str) -> str:
    """The number in E.164. Raises ValueError; national forms and extensions are refused."""
    if not _PHONE.fullmatch(text):
        raise ValueError("not a phone number in international form, like +4915112345678")
    try:
        parsed = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException as exc:
        raise ValueError("not a phone number in international form, like +4915112345678") from exc
    if parsed.extension or not phonenumbers.is_valid_number(parsed):
        raise ValueError("no such phone number exists in its country's numbering plan")
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def device_token(text: str) -> str:
    """The token as it is. Raises ValueError."""
    if not DEVICE_TOKEN.pattern.fullmatch(text) or has_encoded_word(text):
        raise ValueError(f"not a device token: 1 to {MAX_TOKEN_CHARS} visible ASCII characters, and no encoded word")
    return text


def hook_url(text: str) -> str:
    """The URL as it is; whether it may be asked for is known when it is (runtime/outbound.py). Raises ValueError."""
    if not HOOK_URL.pattern.fullmatch(text) or has_encoded_word(text):
        raise ValueError(f"not a webhook's URL: https://…, at most {MAX_URL_CHARS} visible ASCII characters")
    return text


def display_name(text: str) -> str:
    """A name that may be used in a header. Raises ValueError."""
    if len(text) > 255 or has_control(text) or "=?" in text:
        raise ValueError("a name has at most 255 characters, none of them a control, and no =?")
    return text


_BY_SHAPE = {
    EMAIL_ADDRESS: email_address,
    PHONE_NUMBER: phone_number,
    DEVICE_TOKEN: device_token,
    HOOK_URL: hook_url,
}
NORMAL_FORMS = {row.name: _BY_SHAPE[row.shape] for row in ROWS.values()}
"""Channel → the function that checks and normalises its addresses."""


def device_address(platform: str, token: str) -> str:
    """The token of a device of the platform: of the shape of its channel. Raises ValueError."""
    return NORMAL_FORMS[CHANNEL_OF_PLATFORM[platform].name](token)

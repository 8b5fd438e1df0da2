"""What the doctor can tell of an account's settings without asking anybody: what is refused, and what can hardly be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from console.commands.doctor_accounts import built_accounts, check_doubts
from console.commands.findings import Level
from runtime.settings import OutboundSettings, Settings
from tests.support.accounts import CANARY, KINDS, account
from vendors.registry import VENDORS, doubts

OPEN = OutboundSettings(allow=("127.0.0.1",))


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_worked_file_are_in_no_doubt(kind: str, tmp_path: Path) -> None:
    assert doubts(account(kind, tmp_path), OPEN) == []


@pytest.mark.parametrize(
    ("kind", "changed", "doubt"),
    [
        ("ses", {"region": "eu-wset-1"}, "region eu-wset-1 is none where botocore"),
        ("sns", {"region": "eu-central-7"}, "region eu-central-7 is none where botocore"),
        ("ses", {"access_key": "ASIAEXAMPLE"}, "access_key is a temporary one"),
        ("onesignal", {"app_id": "shop"}, "app_id is no UUID"),
        ("webpush", {"hosts": ["*.com"]}, "hosts: *.com is whatever a stranger registers"),
        ("webpush", {"hosts": ["10.0.0.7"]}, "hosts: 10.0.0.7: the host is not on a public address"),
        ("webpush", {"hosts": ["2130706433"]}, "hosts: 2130706433: an IPv4 address in a URL has four decimal numbers"),
    ],
)
def test_what_can_hardly_be_right_is_a_warning_that_names_the_account(
    kind: str, changed: dict[str, Any], doubt: str, tmp_path: Path
) -> None:
    provider = account(kind, tmp_path, **changed)
    settings = Settings(providers=(provider,), outbound=OPEN)
    built, refused = built_accounts(settings.providers)
    assert (list(built), refused) == ([provider.name], {})
    (found,) = check_doubts(settings, built)
    assert (found.level, found.check) == (Level.WARNING, "providers")
    assert found.what.startswith(f"{provider.name} ({kind}): {doubt}")
    assert provider.name in (found.fix or "")


def _wrong() -> list[tuple[str, dict[str, Any], str]]:
    """(kind, settings, what is said) of every secret that is not there or cannot be read, and of what else is refused."""
    found: list[tuple[str, dict[str, Any], str]] = []
    for vendor in VENDORS:
        for key in SECRET_FILES.get(vendor.kind, ()):
            found.append((vendor.kind, {key: "/nowhere/at/all"}, "/nowhere/at/all"))
    return [
        *found,
        ("webpush", {"subject": "mailto:root@localhost"}, "a subject is mailto:you@your.domain"),
        ("ses", {"region": "europe"}, "region"),
        ("mailgun", {"region": "mars"}, "region"),
        ("sendgrid", {"api_key_file": None}, "give api_key or api_key_file"),
    ]


SECRET_FILES = {
    "smtp": ("password_file",),
    "gmail": ("credentials_file",),
    "sendgrid": ("api_key_file",),
    "mailgun": ("api_key_file",),
    "ses": ("secret_key_file",),
    "twilio": ("auth_token_file",),
    "vonage": ("secret_file",),
    "bulksms": ("secret_file",),
    "sns": ("secret_key_file",),
    "fcm": ("credentials_file",),
    "apns": ("key_file",),
    "onesignal": ("api_key_file",),
    "webpush": ("private_key_file",),
}
"""Kind → settings that name a file without which it cannot send."""


@pytest.mark.parametrize(("kind", "changed", "said"), _wrong())
def test_what_cannot_be_right_is_refused_and_nothing_else_is_asked_of_it(
    kind: str, changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    provider = account(kind, tmp_path, **changed)
    settings = Settings(providers=(provider,), outbound=OPEN)
    built, refused = built_accounts(settings.providers)
    assert built == {}
    assert said in refused[provider.name]
    assert CANARY not in refused[provider.name]
    assert list(check_doubts(settings, built)) == []

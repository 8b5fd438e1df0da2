"""A mailbox of Gmail by a service account: the token that Google gives is what logs in, against an SMTP server nobody here wrote."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from local.ports import LOOPBACK, PortBook
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from tests.integration.test_one_request import grant, served, started, token_server
from tests.support.accounts import account, sender_of, to_send
from vendors.sender import ErrorClass, ProbeRefusal, Retry, Sent
from vendors.smtp.gmail.sender import GmailKeys


class Mailbox:
    """Takes XOAUTH2 with the token `a`, and keeps what it was given."""

    def __init__(self, token: str) -> None:
        self.logins: list[bytes] = []
        self.mails: list[str] = []
        self._wanted = f"Bearer {token}\1".encode()

    async def auth_XOAUTH2(self, _server: Any, args: list[str]) -> AuthResult:
        self.logins.append(b64decode(args[1]))
        return AuthResult(success=self._wanted in self.logins[-1], handled=False)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.mails += envelope.rcpt_tos
        return "250 2.0.0 OK queued as G1"


@pytest.fixture
def port() -> Iterator[int]:
    book = PortBook()
    yield book.reserve("gmail")
    book.close()


def mailbox_of(port: int, token: str) -> tuple[Mailbox, Controller]:
    mailbox = Mailbox(token)
    return mailbox, Controller(mailbox, LOOPBACK, port, auth_require_tls=False)


def gmail(port: int, tokens: int, tmp_path: Path) -> ProviderSettings:
    token_uri = f"http://{LOOPBACK}:{tokens}/token"
    return account("gmail", tmp_path, port, token_uri=token_uri, tls="none", password_file=None, timeout_s=5)


async def test_token_of_the_service_account_logs_in(port: int, tmp_path: Path) -> None:
    mailbox, server = mailbox_of(port, "a")
    server.start()
    try:
        async with served(grant) as tokens, started(sender_of(gmail(port, tokens.port, tmp_path))) as sender:
            assert [await sender.send(to_send("gmail")) for _ in range(3)] == [Sent("G1")] * 3
            assert await cast(Any, sender).probe() is None
            assert tokens.tokens == 1
    finally:
        server.stop()
    assert len(mailbox.mails) == 3
    assert (
        mailbox.logins == [b"user=notify@shop.example\1auth=Bearer a\1\1"] * 2
    )  # one connection for the mails, one for the probe


async def test_token_that_is_refused_is_the_accounts_fault_and_fetched_again(port: int, tmp_path: Path) -> None:
    mailbox, server = mailbox_of(port, "another")
    server.start()
    try:
        async with served(grant) as tokens, started(sender_of(gmail(port, tokens.port, tmp_path))) as sender:
            for asked in (1, 2):
                made = await sender.send(to_send("gmail"))
                assert isinstance(made, Retry)
                assert made.error is ErrorClass.ACCOUNT
                assert tokens.tokens == asked
    finally:
        server.stop()
    assert mailbox.mails == []


@pytest.mark.parametrize(("fault", "error"), [("refused", ErrorClass.ACCOUNT), ("500", ErrorClass.TRANSIENT)])
async def test_without_a_token_no_mail_is_begun(fault: str, error: ErrorClass, port: int, tmp_path: Path) -> None:
    mailbox, server = mailbox_of(port, "a")
    server.start()
    try:
        async with (
            served(token_server(fault)) as tokens,
            started(sender_of(gmail(port, tokens.port, tmp_path))) as sender,
        ):
            made = await sender.send(to_send("gmail"))
            assert isinstance(made, Retry)
            assert made.error is error
            refusal = await cast(Any, sender).probe()
            assert isinstance(refusal, ProbeRefusal)
            assert refusal.error is error
    finally:
        server.stop()
    assert mailbox.logins == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"password_file": None, "credentials_file": None}, "give a password or credentials_file"),
        ({"username": None}, "credentials_file needs username"),
        ({"credentials_file": "/does/not/exist"}, "is not a service account's key file"),
    ],
)
def test_wrong_settings_say_what_is_wrong(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        sender_of(account("gmail", tmp_path, **changed))


@pytest.mark.parametrize(
    ("relay", "tls", "where"),
    [
        (False, "starttls", ("smtp.gmail.com", 587)),
        (False, "implicit", ("smtp.gmail.com", 465)),
        (True, "starttls", ("smtp-relay.gmail.com", 587)),
    ],
)
def test_preset_says_where(relay: bool, tls: Any, where: tuple[str, int]) -> None:
    made = GmailKeys(from_address="a@shop.example", relay=relay, tls=tls).smtp()
    assert (made.host, made.port) == where

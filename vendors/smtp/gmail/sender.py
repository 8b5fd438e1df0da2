"""E-mail through Gmail's SMTP: a preset of the kind smtp, not Gmail's API, which sends less a second under the same daily limits.

    | settings                          | logs in                                                                    |
    |-----------------------------------|----------------------------------------------------------------------------|
    | username, password                | with an app password: account passwords have not worked since May 2025     |
    | username, credentials_file        | with XOAUTH2: a service account with domain-wide delegation for username   |
    | relay = true, none of these       | not at all: the relay knows our address                                    |

A mailbox sends 500 mails a day (personal) or 2,000 (Workspace), the relay 10,000: docs/providers/gmail.toml. What Gmail says of
its limits is in SMTP's table. May import vendors.smtp. Never: a retry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import aiosmtplib
from google.oauth2 import service_account
from pydantic import SecretStr

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from vendors.bounces import BounceKeys
from vendors.google_token import AccessToken, GoogleAuthError, no_token
from vendors.sender import ProbeRefusal, Retry, SendResult
from vendors.settings import ProviderKeys, parse_keys
from vendors.smtp.sender import AccountError, Envelope, SmtpKeys, SmtpSender

SCOPE = "https://mail.google.com/"
"""What SMTP needs: developers.google.com/gmail/imap/xoauth2-protocol."""
_HOSTS = {False: "smtp.gmail.com", True: "smtp-relay.gmail.com"}
_PORTS = {"implicit": 465, "starttls": 587, "none": 25}


class GmailKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind gmail."""

    from_address: str
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    credentials_file: Path | None = None
    relay: bool = False
    tls: Literal["none", "starttls", "implicit"] = "starttls"
    host: str | None = None
    """A test double's; else Gmail's own. So with port."""
    port: int | None = None
    bounces: BounceKeys | None = None
    """The mailbox to which mails come back: Gmail puts its own envelope sender, so that a header says which it was."""

    def smtp(self) -> SmtpKeys:
        """The same as an account of the kind smtp."""
        return SmtpKeys(
            host=self.host or _HOSTS[self.relay],
            port=self.port or _PORTS[self.tls],
            from_address=self.from_address,
            username=self.username,
            password=self.password,
            password_file=self.password_file,
            tls=self.tls,
            local_hostname=None,
            bounces=self.bounces,
        )


class GmailSender(SmtpSender):
    """One mailbox, or the relay of an organisation."""

    _keeps_sender = False

    def __init__(
        self,
        provider: ProviderSettings,
        keys: GmailKeys,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        super().__init__(provider, keys.smtp(), clock, monotonic)
        self._token: AccessToken | None = None
        if keys.credentials_file is None:
            if not self._password and not (keys.relay and keys.username is None):
                raise SettingsError(
                    f"provider {provider.name}: give a password or credentials_file, or relay = true alone"
                )
            return
        if keys.username is None:
            raise SettingsError(
                f"provider {provider.name}: credentials_file needs username, the mailbox that it sends for"
            )
        try:
            credential = service_account.Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
                str(keys.credentials_file), scopes=[SCOPE], subject=keys.username
            )
        except (OSError, ValueError) as exc:
            raise SettingsError(
                f"provider {provider.name}: credentials_file {keys.credentials_file} is not a service account's key file: {exc}"
            ) from exc
        self._token = AccessToken(credential, provider.timeout_s, clock, monotonic)

    async def _log_in(self, client: aiosmtplib.SMTP, username: str) -> None:
        """Raises AccountError, GoogleAuthError."""
        if self._token is None:
            await super()._log_in(client, username)
            return
        if "xoauth2" not in client.server_auth_methods:
            raise AccountError("the server offers no way to log in with a token (XOAUTH2)")
        try:
            await client.auth_xoauth2(username, await self._token.get())
        except aiosmtplib.SMTPAuthenticationError:
            self._token.expire()  # it may have been taken back
            raise

    async def deliver(self, prepared: Envelope) -> SendResult:
        """One SMTP transaction; without a token none was begun."""
        try:
            return await super().deliver(prepared)
        except GoogleAuthError as exc:
            return Retry(*no_token(exc))

    async def probe(self) -> ProbeRefusal | None:
        """As SMTP's."""
        try:
            return await super().probe()
        except GoogleAuthError as exc:
            return ProbeRefusal(*no_token(exc))


def create(provider: ProviderSettings) -> GmailSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return GmailSender(provider, parse_keys(GmailKeys, provider))

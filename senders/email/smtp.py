"""SMTP through aiosmtplib: kept connections, one transaction per message, the phase of every failure known.

    | answer                                           | reaction                    |
    |--------------------------------------------------|-----------------------------|
    | 5xx with 5.1.x or 5.2.1; 550, 551, 553 without   | permanent_recipient         |
    | 421, 4xx with 4.7.x, 454                         | throttled                   |
    | other 4xx                                        | transient                   |
    | 530, 535, 5.7.8, 5.7.x at MAIL                   | account                     |
    | other 5xx                                        | permanent_message           |
    | connect, EHLO, AUTH, MAIL, RCPT: loss or timeout | transient (not sent)        |
    | DATA: loss or timeout                            | in_doubt (RFC 1047)         |

Codes: RFC 5321 §4.2.3, RFC 3463, RFC 4954. The only module that imports aiosmtplib.
What never enters here: a retry, Kafka.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Literal

import aiosmtplib
from pydantic import Field, SecretStr

from runtime.clock import Clock, system_clock
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from senders.email.mime import MailError, build_mail, parse_from
from senders.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent, classify
from senders.settings import ProviderKeys, parse_keys, read_secret

_IDLE_S = 20.0
"""Servers close idle connections (RFC 5321 §4.5.3.2 allows them after 5 minutes, many do sooner): older ones are renewed."""
_ENHANCED = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b")


class SmtpKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind smtp."""

    host: str
    port: int = Field(ge=1, le=65535)
    from_address: str
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    tls: Literal["none", "starttls", "implicit"] = "starttls"


def smtp_error(code: int, text: str, phase: str) -> ErrorClass:
    """The table of this module's docstring."""
    found = _ENHANCED.search(text)
    enhanced = f"{found[1]}.{found[2]}.{found[3]}" if found else ""
    if code in (530, 534, 535) or enhanced == "5.7.8" or (phase == "MAIL" and enhanced.startswith("5.7.")):
        return ErrorClass.ACCOUNT
    if code == 421 or code == 454 or enhanced.startswith("4.7."):
        return ErrorClass.THROTTLED
    if 400 <= code < 500:
        return ErrorClass.TRANSIENT
    if enhanced:
        permanent = enhanced.startswith("5.1.") or enhanced == "5.2.1"
    else:
        permanent = code in (550, 551, 553) and phase == "RCPT"
    return ErrorClass.PERMANENT_RECIPIENT if permanent else ErrorClass.PERMANENT_MESSAGE


def _code(code: int, text: str) -> str:
    """The code without the server's words, which may repeat the address."""
    found = _ENHANCED.search(text)
    return f"{code} {found[0]}" if found else str(code)


class SmtpSender:
    """One SMTP account."""

    channel = "email"
    platforms: frozenset[str] | None = None

    def __init__(self, provider: ProviderSettings, settings: SmtpKeys, clock: Clock = system_clock) -> None:
        self.name = provider.name
        self.max_in_flight = provider.max_in_flight
        self.rate_per_second = provider.rate_per_second
        self._timeout_s, self._settings, self._clock = provider.timeout_s, settings, clock
        try:
            self._from = parse_from(settings.from_address)
        except MailError as exc:
            raise SettingsError(f"provider {provider.name}: {exc}") from exc
        self._password = read_secret(provider, "password", settings.password, settings.password_file)
        self._idle: list[tuple[float, aiosmtplib.SMTP]] = []

    async def start(self) -> None:
        """Nothing is opened before it is needed: the server may come up later."""

    async def send(self, message: ChannelMessage) -> SendResult:
        """One SMTP transaction."""
        try:
            mail = build_mail(message, self._from, self._clock())
        except MailError as exc:
            return Rejected(ErrorClass.PERMANENT_MESSAGE, str(exc))
        try:
            client = await self._connection()
        except aiosmtplib.SMTPAuthenticationError as exc:
            return Retry(ErrorClass.ACCOUNT, _code(exc.code, exc.message))
        except aiosmtplib.SMTPResponseException as exc:
            return classify(smtp_error(exc.code, exc.message, "EHLO"), _code(exc.code, exc.message))
        except (aiosmtplib.SMTPException, OSError) as exc:
            return Retry(ErrorClass.TRANSIENT, type(exc).__name__)
        result = await self._transaction(client, message["address"], mail)
        if client.is_connected:
            self._idle.append((time.monotonic(), client))
        return result

    async def _transaction(self, client: aiosmtplib.SMTP, recipient: str, mail: bytes) -> SendResult:
        phase = "MAIL"
        try:
            await client.mail(self._from.address)
            phase = "RCPT"
            await client.rcpt(recipient)
            phase = "DATA"
            response = await client.data(mail)
        except aiosmtplib.SMTPResponseException as exc:
            error = smtp_error(exc.code, exc.message, phase)
            await self._reset(client)
            return classify(error, _code(exc.code, exc.message))
        except (aiosmtplib.SMTPException, OSError) as exc:
            client.close()
            code = f"{type(exc).__name__} at {phase}"
            return InDoubt(code) if phase == "DATA" else Retry(ErrorClass.TRANSIENT, code)
        return Sent(_queue_id(response.message))

    async def _connection(self) -> aiosmtplib.SMTP:
        while self._idle:
            since, client = self._idle.pop()
            if client.is_connected and time.monotonic() - since < _IDLE_S:
                return client
            client.close()
        settings = self._settings
        client = aiosmtplib.SMTP(
            hostname=settings.host, port=settings.port, timeout=self._timeout_s, use_tls=settings.tls == "implicit",
            start_tls=settings.tls == "starttls", username=settings.username, password=self._password,
        )  # fmt: skip
        await client.connect()
        return client

    async def _reset(self, client: aiosmtplib.SMTP) -> None:
        """Ready for the next transaction, or closed."""
        try:
            await client.rset()
        except (aiosmtplib.SMTPException, OSError):
            client.close()

    async def close(self) -> None:
        """Close kept connections."""
        for _, client in self._idle:
            client.close()
        self._idle.clear()


def _queue_id(text: str) -> str | None:
    """The server's id in `Ok: queued as 4F2A`, where it says one."""
    found = re.search(r"queued as ([\x21-\x7e]{1,128})", text)
    return found[1] if found else None


def create(provider: ProviderSettings) -> SmtpSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return SmtpSender(provider, parse_keys(SmtpKeys, provider))

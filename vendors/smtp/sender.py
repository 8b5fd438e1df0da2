"""SMTP through aiosmtplib: kept connections, one transaction per message, the phase of every failure known.

    | response                                                    | result                             |
        |-------------------------------------------------------------|------------------------------------|
        | any reply 2xx to the mail (RFC 5321 §4.2: the first digit   | sent                               |
        |     decides where the other two are not known)              |                                    |
        | a reply 4xx or 5xx, before or after the mail                | its row in codes.py                |
        | one that is not in the table                                | transient (not sent), counted      |
        | connect to DATA, and before the mail's end: loss, hang,     | transient (not sent)               |
        |     an invalid reply                                        |                                    |
        | after the final dot: loss, hang, an invalid reply           | in_doubt (RFC 1047)                |

The only module that imports aiosmtplib.
Never: a retry, Kafka.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol
from pydantic import Field, SecretStr

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.codes import CodeRule, classify_code
from vendors.mime import MailError, build_mail, parse_from
from vendors.provider import ProviderAccount, UnsendableError
from vendors.sender import ErrorClass, InDoubt, Retry, SendResult, Sent
from vendors.settings import ProviderKeys, parse_keys, read_secret
from vendors.smtp.codes import shown, smtp_rule

_IDLE_S = 20.0
"""Servers close idle connections (RFC 5321 §4.5.3.2 allows them after 5 minutes, many do sooner): older ones are renewed."""
_ONE_WRITE = 32 << 10
"""A mail up to this goes to the kernel at once, its final dot with it."""
_DRAIN_POLL_S = 0.01
_END = b".\r\n"
_NOT_SENT_UNKNOWN = CodeRule(ErrorClass.TRANSIENT, "not in the table")
"""A reply, whatever it is, says that this server does not take the mail."""


class SmtpKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind smtp."""

    host: str
    port: int = Field(ge=1, le=65535)
    from_address: str
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    tls: Literal["none", "starttls", "implicit"] = "starttls"
    local_hostname: str | None = Field(
        None, pattern=r"^([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+|\[[0-9A-Fa-f:.]+\]|\[IPv6:[0-9A-Fa-f:.]+\])$"
    )
    """Our name in EHLO: a full host name or an address literal (default: the domain of from_address)."""


class _EarlyReplyError(Exception):
    """The server answered before it had the whole mail, which it can therefore not have taken."""

    def __init__(self, reply: aiosmtplib.SMTPResponse) -> None:
        super().__init__(reply.code)
        self.reply = reply


class _NotOutError(Exception):
    """The connection was lost before the final dot was written."""


class _AccountError(Exception):
    """The server and this account's settings do not fit together; the message says how."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A mail and where it goes."""

    recipient: str
    mail: bytes


class SmtpSender(ProviderAccount[Envelope]):
    """One SMTP account."""

    channel = "email"

    def __init__(
        self,
        provider: ProviderSettings,
        settings: SmtpKeys,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        super().__init__(provider)
        self._timeout_s, self._settings = provider.timeout_s, settings
        self._clock, self._monotonic = clock, monotonic
        try:
            self._from = parse_from(settings.from_address)
        except MailError as exc:
            raise SettingsError(f"provider {provider.name}: {exc}") from exc
        self._password = read_secret(provider, "password", settings.password, settings.password_file)
        self._idle: list[tuple[float, aiosmtplib.SMTP]] = []

    async def start(self) -> None:
        """Nothing is opened before it is needed: the server may come up later."""

    def prepare(self, message: ChannelMessage) -> Envelope:
        """The mail and its recipient."""
        try:
            return Envelope(message["address"], build_mail(message, self._from, self._clock()))
        except MailError as exc:
            raise UnsendableError(str(exc)) from exc

    async def deliver(self, prepared: Envelope) -> SendResult:
        """One SMTP transaction."""
        try:
            client = await self._connection()
        except _AccountError as exc:
            return Retry(ErrorClass.ACCOUNT, str(exc))
        except aiosmtplib.SMTPAuthenticationError as exc:
            return self._reply(exc.code, exc.message, "AUTH")
        except aiosmtplib.SMTPResponseException as exc:
            return self._reply(exc.code, exc.message, "CONNECT")
        except (aiosmtplib.SMTPException, OSError) as exc:
            return Retry(ErrorClass.TRANSIENT, type(exc).__name__)
        result = await self._transaction(client, prepared.recipient, prepared.mail)
        if client.is_connected:
            self._idle.append((self._monotonic(), client))
        return result

    def _reply(self, code: int, text: str, phase: str) -> SendResult:
        if not 400 <= code < 600:
            return Retry(ErrorClass.TRANSIENT, f"invalid reply at {phase}")
        return classify_code(self.name, smtp_rule(code, text, phase), _NOT_SENT_UNKNOWN, shown(code, text))

    async def _transaction(self, client: aiosmtplib.SMTP, recipient: str, mail: bytes) -> SendResult:
        phase = "MAIL"
        try:
            await self._command(client, f"MAIL FROM:<{self._from.address}>", 2)
            phase = "RCPT"
            await self._command(client, f"RCPT TO:<{recipient}>", 2)
            phase = "DATA"
            await self._command(client, "DATA", 3)
            phase = "BODY"
            response = await self._mail(client, mail)
        except _EarlyReplyError as exc:
            _abort(client)
            return self._reply(exc.reply.code, exc.reply.message, phase)
        except _NotOutError as exc:
            _abort(client)
            return Retry(ErrorClass.TRANSIENT, f"{exc} at {phase}")
        except aiosmtplib.SMTPResponseException as exc:
            if not 400 <= exc.code < 600:
                _abort(client)  # the next reply could belong to another command
                if phase == "BODY":
                    return InDoubt("invalid reply to the mail")
            elif exc.code == 421:
                client.close()
            else:
                await self._reset(client)
            return self._reply(exc.code, exc.message, phase)
        except (aiosmtplib.SMTPException, OSError) as exc:
            # Not close(): that would first write the waiting data to a server that has failed.
            _abort(client)
            code = f"{type(exc).__name__} at {phase}"
            return InDoubt(code) if phase == "BODY" else Retry(ErrorClass.TRANSIENT, code)
        return Sent(_queue_id(response.message))

    async def _command(self, client: aiosmtplib.SMTP, command: str, expected: int) -> None:
        """Raises SMTPResponseException for a reply of another first digit; the other two digits only refine it."""
        response = await client.execute_command(command.encode("ascii"), timeout=self._timeout_s)
        if response.code // 100 != expected:
            raise aiosmtplib.SMTPResponseException(response.code, response.message)

    async def _mail(self, client: aiosmtplib.SMTP, mail: bytes) -> aiosmtplib.SMTPResponse:
        """Write the mail and read what is said to it.

        Raises _EarlyReplyError and _NotOutError, which say that it is not sent; any other loss leaves that open.
        """
        protocol, transport = _connected(client)
        stuffed = _stuffed(mail)
        if len(mail) <= _ONE_WRITE:
            _write(protocol, stuffed + _END)
            response = await protocol.read_response(timeout=self._timeout_s)
        else:
            # A long mail takes a while to write: its final dot follows only when all of it is written.
            reply = asyncio.ensure_future(protocol.read_response())
            await asyncio.sleep(0)  # it listens
            try:
                await self._drain(protocol, transport, stuffed, reply)
                response = await asyncio.wait_for(reply, self._timeout_s)
            finally:
                if not reply.done():
                    reply.cancel()
                    await asyncio.wait([reply])
        if response.code // 100 != 2:
            raise aiosmtplib.SMTPDataError(response.code, response.message)
        return response

    async def _drain(
        self,
        protocol: SMTPProtocol,
        transport: asyncio.WriteTransport,
        stuffed: bytes,
        reply: asyncio.Future[aiosmtplib.SMTPResponse],
    ) -> None:
        try:
            _write(protocol, stuffed)
            async with asyncio.timeout(self._timeout_s):
                # The transport reports to its protocol, which is aiosmtplib's own: ask it.
                while transport.get_write_buffer_size() and not reply.done():  # noqa: ASYNC110
                    await asyncio.sleep(_DRAIN_POLL_S)
            if reply.done():
                raise _EarlyReplyError(reply.result())
        except (aiosmtplib.SMTPException, OSError) as exc:
            raise _NotOutError(type(exc).__name__) from exc
        _write(protocol, _END)

    async def _connection(self) -> aiosmtplib.SMTP:
        while self._idle:
            since, client = self._idle.pop()
            if client.is_connected and self._monotonic() - since < _IDLE_S:
                return client
            client.close()
        settings = self._settings
        client = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            timeout=self._timeout_s,
            use_tls=settings.tls == "implicit",
            start_tls=False,
            local_hostname=settings.local_hostname or self._from.domain,
        )
        try:
            await client.connect()
            await self._secure_and_log_in(client)
        except (aiosmtplib.SMTPException, OSError) as exc:
            client.close()
            if (refused := _certificate_error(exc)) is not None:
                raise _AccountError(f"the server's certificate is refused: {refused.verify_message}") from exc
            raise
        except BaseException:
            client.close()
            raise
        return client

    async def _secure_and_log_in(self, client: aiosmtplib.SMTP) -> None:
        """Step by step, so that what the server does not offer is said. Raises _AccountError."""
        settings = self._settings
        await _greet(client)
        if settings.tls == "starttls":
            if not client.supports_extension("starttls"):
                raise _AccountError("the server offers no STARTTLS")
            await client.starttls()
            await _greet(client)
        if settings.username is not None:
            if not client.supported_auth_methods:
                offered = ", ".join(client.server_auth_methods)[:100] or "none"
                raise _AccountError(f"the server offers no way to log in with a password (it offers {offered})")
            await client.login(settings.username, self._password or "")

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


def _connected(client: aiosmtplib.SMTP) -> tuple[SMTPProtocol, asyncio.WriteTransport]:
    """Raises _NotOutError."""
    protocol, transport = client.protocol, client.transport
    if protocol is None or transport is None:
        raise _NotOutError("SMTPServerDisconnected")
    return protocol, cast(asyncio.WriteTransport, transport)


def _write(protocol: SMTPProtocol, data: bytes) -> None:
    """Raises _NotOutError when the connection is gone already."""
    try:
        protocol.write(data)
    except aiosmtplib.SMTPException as exc:
        raise _NotOutError(type(exc).__name__) from exc


def _stuffed(mail: bytes) -> bytes:
    """As DATA wants it (RFC 5321 §4.5.2); build_mail's lines end in CRLF and none begins with a dot, but who knows."""
    stuffed = mail.replace(b"\r\n.", b"\r\n..")
    return stuffed if stuffed.endswith(b"\r\n") else stuffed + b"\r\n"


def _abort(client: aiosmtplib.SMTP) -> None:
    """Close without writing what still waits to be written."""
    if client.transport is not None:
        cast(asyncio.WriteTransport, client.transport).abort()
    client.close()


async def _greet(client: aiosmtplib.SMTP) -> None:
    """EHLO, or HELO where the server does not know that (RFC 5321 §3.2)."""
    try:
        await client.ehlo()
    except aiosmtplib.SMTPHeloError as exc:
        if exc.code not in (500, 501, 502, 504, 550):
            raise
        await client.helo()


def _certificate_error(exc: BaseException) -> ssl.SSLCertVerificationError | None:
    """The refusal of a certificate that the client wrapped, None where there is none."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _queue_id(text: str) -> str | None:
    """The server's id in `Ok: queued as 4F2A`, where it says one."""
    found = re.search(r"queued as ([\x21-\x7e]{1,128})", text)
    return found[1] if found else None


def create(provider: ProviderSettings) -> SmtpSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return SmtpSender(provider, parse_keys(SmtpKeys, provider))

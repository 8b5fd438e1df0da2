"""SMTP through aiosmtplib: kept connections, one transaction per message, the phase of every failure known.

    | answer                                                      | reaction                           |
    |-------------------------------------------------------------|------------------------------------|
    | a reply 4xx or 5xx, before or after the mail                | its row in smtp_codes.py           |
    | one no row knows                                            | transient (not sent), counted      |
    | connect to DATA, and while the mail is not out: loss, hang, | transient (not sent)               |
    |     a reply that is none                                    |                                    |
    | the final dot is out: loss, hang, a reply that is none      | in_doubt (RFC 1047)                |

The only module that imports aiosmtplib.
What never enters here: a retry, Kafka.
"""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Literal, cast

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol
from pydantic import Field, SecretStr

from runtime.clock import Clock, system_clock
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from senders.codes import Reaction, react
from senders.email.mime import MailError, build_mail, parse_from
from senders.email.smtp_codes import reaction, shown
from senders.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent
from senders.settings import ProviderKeys, parse_keys, read_secret

_IDLE_S = 20.0
"""Servers close idle connections (RFC 5321 §4.5.3.2 allows them after 5 minutes, many do sooner): older ones are renewed."""
_ONE_WRITE = 32 << 10
"""A mail up to this goes to the kernel at once, its final dot with it."""
_DRAIN_POLL_S = 0.01
_END = b".\r\n"
_NOT_SENT_UNKNOWN = Reaction(ErrorClass.TRANSIENT, "not in the table")
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


class _EarlyReplyError(Exception):
    """The server answered before it had the whole mail, which it can therefore not have taken."""

    def __init__(self, reply: aiosmtplib.SMTPResponse) -> None:
        super().__init__(reply.code)
        self.reply = reply


class _NotOutError(Exception):
    """The connection was lost before the final dot was written."""


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
            return self._reply(exc.code, exc.message, "AUTH")
        except aiosmtplib.SMTPResponseException as exc:
            return self._reply(exc.code, exc.message, "CONNECT")
        except (aiosmtplib.SMTPException, OSError) as exc:
            return Retry(ErrorClass.TRANSIENT, type(exc).__name__)
        result = await self._transaction(client, message["address"], mail)
        if client.is_connected:
            self._idle.append((time.monotonic(), client))
        return result

    def _reply(self, code: int, text: str, phase: str) -> SendResult:
        if not 400 <= code < 600:
            return Retry(ErrorClass.TRANSIENT, f"a reply that is none at {phase}")
        return react(self.name, reaction(code, text, phase), _NOT_SENT_UNKNOWN, shown(code, text))

    async def _transaction(self, client: aiosmtplib.SMTP, recipient: str, mail: bytes) -> SendResult:
        phase = "MAIL"
        try:
            await client.mail(self._from.address)
            phase = "RCPT"
            await client.rcpt(recipient)
            phase = "DATA"
            started = await client.execute_command(b"DATA", timeout=self._timeout_s)
            if started.code != 354:
                raise aiosmtplib.SMTPDataError(started.code, started.message)
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
                _abort(client)  # nobody knows which command the next reply belongs to
                if phase == "BODY":
                    return InDoubt("a reply that is none to the mail")
            elif exc.code == 421:
                client.close()
            else:
                await self._reset(client)
            return self._reply(exc.code, exc.message, phase)
        except (aiosmtplib.SMTPException, OSError) as exc:
            # Not close(): that would go on writing what waits to a server that is given up.
            _abort(client)
            code = f"{type(exc).__name__} at {phase}"
            return InDoubt(code) if phase == "BODY" else Retry(ErrorClass.TRANSIENT, code)
        return Sent(_queue_id(response.message))

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
            # A long mail is on its way for a while: only when all of it is out its final dot follows.
            answer = asyncio.ensure_future(protocol.read_response())
            await asyncio.sleep(0)  # it listens
            try:
                await self._drain(protocol, transport, stuffed, answer)
                response = await asyncio.wait_for(answer, self._timeout_s)
            finally:
                if not answer.done():
                    answer.cancel()
                    await asyncio.wait([answer])
        if response.code != 250:
            raise aiosmtplib.SMTPDataError(response.code, response.message)
        return response

    async def _drain(
        self, protocol: SMTPProtocol, transport: asyncio.WriteTransport, stuffed: bytes,
        answer: asyncio.Future[aiosmtplib.SMTPResponse],
    ) -> None:  # fmt: skip
        try:
            _write(protocol, stuffed)
            async with asyncio.timeout(self._timeout_s):
                # The transport tells its protocol, which is aiosmtplib's own: ask.
                while transport.get_write_buffer_size() and not answer.done():  # noqa: ASYNC110
                    await asyncio.sleep(_DRAIN_POLL_S)
            if answer.done():
                raise _EarlyReplyError(answer.result())
        except (aiosmtplib.SMTPException, OSError) as exc:
            raise _NotOutError(type(exc).__name__) from exc
        _write(protocol, _END)

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


def _queue_id(text: str) -> str | None:
    """The server's id in `Ok: queued as 4F2A`, where it says one."""
    found = re.search(r"queued as ([\x21-\x7e]{1,128})", text)
    return found[1] if found else None


def create(provider: ProviderSettings) -> SmtpSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return SmtpSender(provider, parse_keys(SmtpKeys, provider))

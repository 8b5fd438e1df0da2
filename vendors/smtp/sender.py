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

Only this module and the kind gmail, which is this one with other settings, import aiosmtplib.
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
from pydantic import Field, SecretStr

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.bounces import HEADER, BounceKeys, bounce_account
from vendors.codes import CodeRule, classify_code, refuse_probe
from vendors.mime import MailError, build_mail
from vendors.provider import ProviderAccount, UnsendableError
from vendors.sender import ErrorClass, InDoubt, ProbeRefusal, Retry, SendResult, Sent
from vendors.settings import ProviderKeys, checked_from, parse_keys, read_secret
from vendors.smtp.dialogue import Dialogue, DialogueEnded, InvalidReply, Reply
from vendors.smtp_codes import shown, smtp_rule

_IDLE_S = 20.0
"""Servers close idle connections (RFC 5321 §4.5.3.2 allows them after 5 minutes, many do sooner): older ones are renewed."""
_ONE_WRITE = 32 << 10
"""A mail up to this goes to the kernel at once, its final dot with it."""
_END = b".\r\n"
_PHASES, _EXPECTED = ("MAIL", "RCPT", "DATA"), (2, 2, 3)
"""The commands before a mail, and the first digit of the reply that each needs; the other two digits only refine it."""
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
    bounces: BounceKeys | None = None
    """The mailbox to which mails come back."""


class _EarlyReplyError(Exception):
    """The server answered before it had the whole mail, which it can therefore not have taken."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.code)
        self.reply = reply


class _NotOutError(Exception):
    """The connection was lost before the final dot was written."""


class AccountError(Exception):
    """The server and this account's settings do not fit together; the message says how."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A mail and where it goes."""

    recipient: str
    mail: bytes
    sender: str
    word: str | None = None
    """What its bounce brings back (bounces.py), None where none is read."""


class SmtpSender(ProviderAccount[Envelope]):
    """One SMTP account."""

    channel = "email"
    _keeps_sender = True
    """Whether the server sends on with our envelope sender."""

    def __init__(
        self,
        provider: ProviderSettings,
        settings: SmtpKeys,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        super().__init__(provider)
        self._timeout_s = provider.timeout_s
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._from = checked_from(provider, settings.from_address)
        self._password = read_secret(provider, "password", settings.password, settings.password_file)
        self.bounces = bounce_account(provider, settings.bounces)
        self._idle: list[tuple[float, Dialogue]] = []

    async def start(self) -> None:
        """Nothing is opened before it is needed: the server may come up later."""

    def prepare(self, message: ChannelMessage) -> Envelope:
        """The mail and its recipient."""
        try:
            return self._envelope(message)
        except MailError as exc:
            raise UnsendableError(str(exc)) from exc

    def _envelope(self, message: ChannelMessage) -> Envelope:
        """Raises MailError."""
        bounces, address, now = self.bounces, message["address"], self._clock()
        if bounces is None:
            return Envelope(address, build_mail(message, self._from, now), self._from.address)
        value, word = bounces.header(message), bounces.word(message["message_id"])
        mail = build_mail(message, self._from, now, (HEADER, value) if value else None)
        by_word = self._keeps_sender and word is not None
        return Envelope(address, mail, bounces.envelope_sender(word) if by_word and word else self._from.address, word)

    def reference(self, message: ChannelMessage, provider_message_id: str | None) -> str | None:
        """Its id, which is all that its bounce's address has room for."""
        return message["message_id"] if self.bounces is not None else None

    async def deliver(self, prepared: Envelope) -> SendResult:
        """One SMTP transaction."""
        try:
            dialogue = await self._connection()
        except AccountError as exc:
            return Retry(ErrorClass.ACCOUNT, str(exc))
        except aiosmtplib.SMTPAuthenticationError as exc:
            return self._reply(exc.code, exc.message, "AUTH")
        except aiosmtplib.SMTPResponseException as exc:
            return self._reply(exc.code, exc.message, "CONNECT")
        except (aiosmtplib.SMTPException, OSError) as exc:
            return Retry(ErrorClass.TRANSIENT, type(exc).__name__)
        result = await self._transaction(dialogue, prepared)
        if dialogue.is_open:
            self._idle.append((self._monotonic(), dialogue))
        return result

    async def probe(self) -> ProbeRefusal | None:
        """A connection of its own: greeting, TLS and login as for a mail, then NOOP."""
        try:
            dialogue = await self._connect()
            try:
                dialogue.write(b"NOOP\r\n", replies=1)
                reply = await dialogue.reply()
            finally:
                dialogue.close()
        except AccountError as exc:
            return ProbeRefusal(ErrorClass.ACCOUNT, str(exc))
        except aiosmtplib.SMTPResponseException as exc:
            phase = "AUTH" if isinstance(exc, aiosmtplib.SMTPAuthenticationError) else "CONNECT"
            return _probe_refusal(exc.code, exc.message, phase)
        except (aiosmtplib.SMTPException, OSError) as exc:
            return ProbeRefusal(ErrorClass.TRANSIENT, type(exc).__name__)
        except DialogueEnded as exc:
            return ProbeRefusal(ErrorClass.TRANSIENT, str(exc))
        except InvalidReply:
            return ProbeRefusal(ErrorClass.TRANSIENT, "invalid reply at NOOP")
        return None if reply.code // 100 == 2 else _probe_refusal(reply.code, reply.text, "CONNECT")

    def _reply(self, code: int, text: str, phase: str) -> SendResult:
        if not 400 <= code < 600:
            return _invalid(phase)
        return classify_code(self.name, smtp_rule(code, text, phase), _NOT_SENT_UNKNOWN, shown(code, text))

    async def _transaction(self, dialogue: Dialogue, envelope: Envelope) -> SendResult:
        phase = "MAIL"
        commands = [command.encode("ascii") for command in _commands(envelope, dsn=dialogue.dsn)]
        try:
            if dialogue.pipelining:
                dialogue.write(b"".join(commands), replies=len(commands))
            for phase, command, expected in zip(_PHASES, commands, _EXPECTED, strict=True):
                if not dialogue.pipelining:
                    dialogue.write(command, replies=1)
                reply = await dialogue.reply()
                if reply.code // 100 != expected:
                    return await self._refused(dialogue, reply, phase)
            phase = "BODY"
            reply = await self._mail(dialogue, envelope.mail)
        except _EarlyReplyError as exc:
            dialogue.abort()
            return self._reply(*exc.reply, phase)
        except _NotOutError as exc:
            dialogue.abort()
            return Retry(ErrorClass.TRANSIENT, f"{exc} at {phase}")
        except InvalidReply:
            dialogue.abort()  # the next reply could belong to another command
            return InDoubt("invalid reply to the mail") if phase == "BODY" else _invalid(phase)
        except DialogueEnded as exc:
            # Not close(): that would first write the waiting data to a server that has failed.
            dialogue.abort()
            code = f"{exc} at {phase}"
            return InDoubt(code) if phase == "BODY" else Retry(ErrorClass.TRANSIENT, code)
        if reply.code // 100 == 2:
            return Sent(_queue_id(reply.text))
        if not 400 <= reply.code < 600:
            dialogue.abort()
            return InDoubt("invalid reply to the mail")
        return await self._refused(dialogue, reply, phase)

    async def _refused(self, dialogue: Dialogue, reply: Reply, phase: str) -> SendResult:
        """The result of a reply that ends the transaction; the connection is ready for the next one, or closed."""
        if not 400 <= reply.code < 600:
            dialogue.abort()  # the next reply could belong to another command
        elif reply.code == 421:
            dialogue.close()
        else:
            try:
                ready = await self._reset(dialogue)
            except (DialogueEnded, InvalidReply):
                ready = False
            if not ready:
                dialogue.abort()
        return self._reply(reply.code, reply.text, phase)

    async def _reset(self, dialogue: Dialogue) -> bool:
        """Read what is still to come of the commands that went out together; whether the server takes another transaction."""
        while dialogue.outstanding:
            reply = await dialogue.reply()
            if not dialogue.outstanding and reply.code // 100 == _EXPECTED[-1]:
                # DATA is accepted although no recipient was (RFC 2920 §3.1): end it with no content.
                dialogue.write(_END, replies=1)
                await dialogue.reply()
        dialogue.write(b"RSET\r\n", replies=1)
        return (await dialogue.reply()).code == 250

    async def _mail(self, dialogue: Dialogue, mail: bytes) -> Reply:
        """Write the mail and read what is said to it.

        Raises _EarlyReplyError and _NotOutError, which say that it is not sent; any other loss leaves that open.
        """
        stuffed = _stuffed(mail)
        try:
            if len(mail) <= _ONE_WRITE:
                dialogue.write(stuffed + _END, replies=1)
            else:
                # A long mail takes a while to write: its final dot follows only when all of it is written.
                if await dialogue.write_slowly(stuffed):
                    raise _EarlyReplyError(await dialogue.reply())
                dialogue.write(_END, replies=0)
        except DialogueEnded as exc:
            raise _NotOutError(str(exc)) from exc
        except InvalidReply as exc:
            raise _NotOutError("invalid reply") from exc
        return await dialogue.reply()

    async def _connection(self) -> Dialogue:
        while self._idle:
            since, dialogue = self._idle.pop()
            if dialogue.is_open and self._monotonic() - since < _IDLE_S:
                return dialogue
            dialogue.close()
        return await self._connect()

    async def _connect(self) -> Dialogue:
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
                raise AccountError(f"the server's certificate is refused: {refused.verify_message}") from exc
            raise
        except BaseException:
            client.close()
            raise
        pipelining = client.supports_extension("pipelining")
        dsn = client.supports_extension("dsn")
        return Dialogue(_transport(client), pipelining=pipelining, timeout_s=self._timeout_s, dsn=dsn)

    async def _secure_and_log_in(self, client: aiosmtplib.SMTP) -> None:
        """Step by step, so that what the server does not offer is said. Raises AccountError."""
        settings = self._settings
        await _greet(client)
        if settings.tls == "starttls":
            if not client.supports_extension("starttls"):
                raise AccountError("the server offers no STARTTLS")
            await client.starttls()
            await _greet(client)
        if settings.username is not None:
            await self._log_in(client, settings.username)

    async def _log_in(self, client: aiosmtplib.SMTP, username: str) -> None:
        """With the password. Raises AccountError."""
        if not client.supported_auth_methods:
            offered = ", ".join(client.server_auth_methods)[:100] or "none"
            raise AccountError(f"the server offers no way to log in with a password (it offers {offered})")
        await client.login(username, self._password or "")

    async def close(self) -> None:
        """Close kept connections."""
        for _, dialogue in self._idle:
            dialogue.close()
        self._idle.clear()


def _commands(envelope: Envelope, *, dsn: bool) -> tuple[str, str, str]:
    """What goes before a mail; `dsn`: the server takes parameters of RFC 3461, which ask for a report that comes with headers alone."""
    sender, recipient, word = envelope.sender, envelope.recipient, envelope.word
    mail = f" RET=HDRS ENVID={word}" if dsn and word else ""
    rcpt = f" NOTIFY=FAILURE ORCPT=rfc822;{_xtext(recipient)}" if dsn and word else ""
    return f"MAIL FROM:<{sender}>{mail}\r\n", f"RCPT TO:<{recipient}>{rcpt}\r\n", "DATA\r\n"


def _xtext(text: str) -> str:
    """RFC 3461 §4, of printable ASCII."""
    return "".join(f"+{ord(char):02X}" if char in "+=" else char for char in text)


def _transport(client: aiosmtplib.SMTP) -> asyncio.Transport:
    """Raises SMTPServerDisconnected."""
    if client.transport is None:
        raise aiosmtplib.SMTPServerDisconnected("Connection lost")
    return cast(asyncio.Transport, client.transport)


def _invalid(phase: str) -> SendResult:
    return Retry(ErrorClass.TRANSIENT, f"invalid reply at {phase}")


def _stuffed(mail: bytes) -> bytes:
    """As DATA wants it (RFC 5321 §4.5.2); build_mail's lines end in CRLF and none begins with a dot, but who knows."""
    stuffed = mail.replace(b"\r\n.", b"\r\n..")
    return stuffed if stuffed.endswith(b"\r\n") else stuffed + b"\r\n"


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


def _probe_refusal(code: int, text: str, phase: str) -> ProbeRefusal:
    return refuse_probe(smtp_rule(code, text, phase), _NOT_SENT_UNKNOWN, shown(code, text))


def create(provider: ProviderSettings) -> SmtpSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return SmtpSender(provider, parse_keys(SmtpKeys, provider))

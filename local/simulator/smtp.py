"""An SMTP server (RFC 5321) with PIPELINING, 8BITMIME, SMTPUTF8 and SIZE that accepts every mail for every recipient.

A tight asyncio protocol: the common library for this answers 3,000 mails a second on a core without storing anything,
which would make the simulator, not the sender, what a benchmark measures. A mail is answered when the log has it.

May import the simulator's state and ground_truth. Never: relaying, authentication, TLS, scripted faults' definitions.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, cast

from local.simulator.faults import FINE, FaultDecision, Mode
from local.simulator.ground_truth import Accept
from local.simulator.state import SimulatorState, reset_connection

KIND = "smtp"
HOSTNAME = "simulator.heliograph.test"
MAX_MAIL_BYTES: Final = 25 << 20
MAX_LINE_BYTES: Final = 2048  # 512 by RFC 5321, more for SMTPUTF8 and parameters
MAX_RECIPIENTS: Final = 100
_READ_AHEAD_BYTES: Final = 1 << 20

_GREETING = f"220 {HOSTNAME} ESMTP simulator\r\n".encode()
_EHLO = (
    f"250-{HOSTNAME}\r\n250-PIPELINING\r\n250-SIZE {MAX_MAIL_BYTES}\r\n250-8BITMIME\r\n"
    "250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n"
).encode()
_PATH = re.compile(rb"\s*<([^<>\s]*)>\s*(.*)\Z", re.DOTALL)
_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r\n[ \t]+)?<([^@>\s]+)[@>]", re.IGNORECASE | re.MULTILINE)
_OUR_MESSAGE_ID = re.compile(rb"^x-heliograph-message-id:[ \t]*(?:\r\n[ \t]+)?(\S+)", re.IGNORECASE | re.MULTILINE)


def our_message_id(mail: bytes) -> str | None:
    """Our id out of a mail's headers: X-Heliograph-Message-Id, else the local part of Message-ID."""
    end = mail.find(b"\r\n\r\n")
    headers = mail if end < 0 else mail[: end + 2]
    found = _OUR_MESSAGE_ID.search(headers) or _MESSAGE_ID.search(headers)
    return found.group(1).decode("utf-8", "replace") if found else None


def unstuff(data: bytes) -> bytes:
    """A mail as its author wrote it: one dot less on each line that starts with one (RFC 5321, 4.5.2)."""
    if data.startswith(b"."):
        data = data[1:]
    return data.replace(b"\r\n.", b"\r\n") if b"\r\n." in data else data


class SmtpSession(asyncio.Protocol):
    """One connection. Commands are read ahead, but a mail must be answered before the next command is looked at."""

    def __init__(self, state: SimulatorState) -> None:
        self._state = state
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._replies: list[bytes] = []
        self._receiving = False  # between DATA's 354 and the final dot
        self._scanned = 0  # how far the buffer was searched for the final dot
        self._too_large = False
        self._busy = False  # an answer is outstanding
        self._paused = False
        self._greeted = False
        self._sender: bytes | None = None
        self._utf8 = False
        self._recipients: list[str] = []
        self._verdict = FINE

    # ------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._transport.write(_GREETING)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._work()
        elif not self._paused and len(self._buffer) > _READ_AHEAD_BYTES:
            self._paused = True
            self._transport.pause_reading()

    def _work(self) -> None:
        buffer = self._buffer
        while not self._busy and not self._transport.is_closing():
            if self._receiving:
                if not self._take_mail():
                    break
                continue
            end = buffer.find(b"\r\n")
            if end < 0:
                if len(buffer) > MAX_LINE_BYTES:
                    self._close(b"500 5.5.2 Line too long\r\n")
                break
            line = bytes(buffer[:end])
            del buffer[: end + 2]
            if len(line) > MAX_LINE_BYTES:
                self._replies.append(b"500 5.5.2 Line too long\r\n")
            else:
                self._command(line)
        self._flush()

    def _flush(self) -> None:
        if self._replies and not self._transport.is_closing():
            self._transport.write(b"".join(self._replies))
        self._replies.clear()

    def _close(self, reply: bytes) -> None:
        self._replies.append(reply)
        self._flush()
        self._transport.close()

    def _resume(self) -> None:
        """Go on after an answer was given."""
        self._busy = False
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._work()

    def _answer_later(self, delay_s: float, reply: bytes) -> None:
        self._busy = True
        self._flush()

        def give() -> None:
            self._replies.append(reply)
            self._resume()

        asyncio.get_running_loop().call_later(delay_s, give)

    # ------------------------------------------------------------ commands

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"MAIL":
                self._mail(rest)
            case b"RCPT":
                self._rcpt(rest)
            case b"DATA":
                self._data(rest)
            case b"EHLO" | b"HELO":
                self._reset()
                self._greeted = bool(rest.strip())
                if not self._greeted:
                    self._replies.append(b"501 5.5.4 Domain name required\r\n")
                else:
                    self._replies.append(_EHLO if verb.upper() == b"EHLO" else f"250 {HOSTNAME}\r\n".encode())
            case b"RSET":
                self._reset()
                self._replies.append(b"250 2.0.0 Ok\r\n")
            case b"NOOP":
                self._replies.append(b"250 2.0.0 Ok\r\n")
            case b"VRFY":
                self._replies.append(b"252 2.5.0 Send some mail, it will be accepted\r\n")
            case b"QUIT":
                self._close(b"221 2.0.0 Bye\r\n")
            case _:
                self._replies.append(b"500 5.5.2 Command not recognized\r\n")

    def _reset(self) -> None:
        self._sender = None
        self._utf8 = False
        self._recipients = []
        self._verdict = FINE

    def _mail(self, rest: bytes) -> None:
        if not self._greeted:
            self._replies.append(b"503 5.5.1 Say EHLO first\r\n")
            return
        if self._sender is not None:
            self._replies.append(b"503 5.5.1 Nested MAIL command\r\n")
            return
        path = _PATH.match(rest[5:]) if rest[:5].upper() == b"FROM:" else None
        if path is None:
            self._replies.append(b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n")
            return
        utf8 = False
        for parameter in path.group(2).upper().split():
            name, _, value = parameter.partition(b"=")
            if name == b"SIZE" and value.isdigit():
                if int(value) > MAX_MAIL_BYTES:
                    self._replies.append(b"552 5.3.4 Message too big\r\n")
                    return
            elif name == b"SMTPUTF8" and not value:
                utf8 = True
            elif not (name == b"BODY" and value in (b"7BIT", b"8BITMIME")):
                self._replies.append(b"555 5.5.4 Parameter not recognized\r\n")
                return
        address = path.group(1)
        if not utf8 and not address.isascii():
            self._replies.append(b"553 5.6.7 SMTPUTF8 is required for this address\r\n")
            return
        self._state.seen(KIND)
        self._sender = address
        self._utf8 = utf8
        self._replies.append(b"250 2.1.0 Ok\r\n")

    def _rcpt(self, rest: bytes) -> None:
        if self._sender is None:
            self._replies.append(b"503 5.5.1 Need MAIL first\r\n")
            return
        path = _PATH.match(rest[3:]) if rest[:3].upper() == b"TO:" else None
        if path is None or not path.group(1):
            self._replies.append(b"501 5.5.4 Syntax: RCPT TO:<address>\r\n")
            return
        if path.group(2):
            self._replies.append(b"555 5.5.4 Parameter not recognized\r\n")
            return
        raw = path.group(1)
        if not self._utf8 and not raw.isascii():
            self._replies.append(b"553 5.6.7 SMTPUTF8 is required for this address\r\n")
            return
        address = raw.decode("utf-8", "replace")
        local, at, domain = address.rpartition("@")
        if not at or not local or not domain:
            self._replies.append(b"501 5.1.3 Bad recipient address syntax\r\n")
            return
        if len(self._recipients) >= MAX_RECIPIENTS:
            self._replies.append(b"452 4.5.3 Too many recipients\r\n")
            return
        decision = self._state.faults.decide(KIND, address)
        refusal = _refusal_at_rcpt(decision)
        if refusal is not None:
            if decision.latency_s:
                self._answer_later(decision.latency_s, refusal)
            else:
                self._replies.append(refusal)
            return
        if self._verdict is FINE:
            self._verdict = decision
        self._recipients.append(address)
        self._replies.append(b"250 2.1.5 Ok\r\n")

    def _data(self, rest: bytes) -> None:
        if rest.strip():
            self._replies.append(b"501 5.5.4 Syntax: DATA\r\n")
        elif self._sender is None:
            self._replies.append(b"503 5.5.1 Need MAIL first\r\n")
        elif not self._recipients:
            self._replies.append(b"554 5.5.1 No valid recipients\r\n")
        else:
            self._receiving = True
            self._scanned = 0
            self._too_large = False
            self._replies.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")

    # ------------------------------------------------------------ mail

    def _take_mail(self) -> bool:
        """Take a whole mail from the buffer; False when it has not ended yet. Only CRLF.CRLF ends a mail: taking a bare
        line feed for a line break would let one mail smuggle in another."""
        buffer = self._buffer
        if self._scanned == 0 and not self._too_large and buffer.startswith(b".\r\n"):
            end = 0
            length = 3
        else:
            found = buffer.find(b"\r\n.\r\n", max(0, self._scanned - 4))
            if found < 0:
                self._scanned = len(buffer)
                if len(buffer) > MAX_MAIL_BYTES:
                    self._too_large = True
                    del buffer[:-4]
                    self._scanned = len(buffer)
                return False
            end = found + 2
            length = found + 5
        data = bytes(buffer[:end])
        del buffer[:length]
        self._receiving = False
        if self._too_large or len(data) > MAX_MAIL_BYTES:
            self._reset()
            self._replies.append(b"552 5.3.4 Message too big\r\n")
            return True
        self._busy = True
        self._flush()  # the 354 of a client that sent everything at once
        decision = self._verdict
        recipients = self._recipients
        self._reset()
        if decision.latency_s:
            asyncio.get_running_loop().call_later(decision.latency_s, self._decide, data, recipients, decision)
        else:
            self._decide(data, recipients, decision)
        return True

    def _decide(self, data: bytes, recipients: list[str], decision: FaultDecision) -> None:
        if decision.mode is Mode.RESET:
            reset_connection(self._transport)
            return
        if decision.mode is Mode.FAIL:
            self._replies.append(b"451 4.3.0 Error: queue file write error\r\n")
            self._resume()
            return
        mail = unstuff(data)
        message_id = our_message_id(mail)
        body = mail.decode("utf-8", "surrogateescape")
        for recipient in recipients:
            logged = self._state.accept(Accept(KIND, recipient, message_id, body))
        # lines reach the disk in order: the last one there means all are
        logged.add_done_callback(lambda done: self._accepted(done, decision))

    def _accepted(self, done: asyncio.Future[int], decision: FaultDecision) -> None:
        if done.exception() is not None:
            self._close(b"421 4.3.0 The log of accepts is broken\r\n")
            return
        match decision.mode:
            case Mode.DROP_AFTER_ACCEPT:
                self._transport.abort()
                return
            case Mode.FAIL_AFTER_ACCEPT:
                self._replies.append(b"451 4.3.0 Error: queue file write error\r\n")
            case Mode.BAD_JSON:
                self._replies.append(b"\xff<html>\r\n")
            case _:
                self._replies.append(b"250 2.0.0 Ok: queued as S%d\r\n" % done.result())
        self._resume()


def _refusal_at_rcpt(decision: FaultDecision) -> bytes | None:
    if decision.mode is Mode.THROTTLE:
        wait = "" if decision.retry_after_s is None else f" in {decision.retry_after_s:g} s"
        return f"451 4.7.1 Rate limited, try again{wait}\r\n".encode()
    if decision.mode is Mode.REJECT:
        return b"550 5.1.1 User unknown\r\n"
    return None

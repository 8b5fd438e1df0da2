"""A mailbox by IMAP: mails are looked at without a mark, and only those that were told are moved, and marked where they went.

Every method blocks, for TIMEOUT_S at most between two answers; one thread at a time.
Only this module imports imapclient. Never: what a mail says.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from types import TracebackType

from imapclient import IMAPClient, SocketTimeout
from imapclient.exceptions import IMAPClientError, LoginError

from vendors.bounces import BounceAccount
from vendors.smtp.dsn import MAX_BYTES

CONNECT_S, TIMEOUT_S = 10.0, 60.0
_BODY = f"BODY.PEEK[]<0.{MAX_BYTES}>"
_SEEN, _DELETED = b"\\Seen", b"\\Deleted"


class MailboxError(Exception):
    """The mailbox cannot be used now; says what of it, without a server's words."""


class Mailbox:
    """The folder of bounces of an account, selected. A context manager: it logs out."""

    def __init__(self, account: BounceAccount) -> None:
        """Connect, log in and select. Raises MailboxError."""
        keys = account.keys
        self._done = keys.done_folder
        context = None if keys.tls == "none" else ssl.create_default_context()
        try:
            self._client = IMAPClient(
                keys.host,
                keys.port,
                ssl=keys.tls == "implicit",
                ssl_context=context if keys.tls == "implicit" else None,
                timeout=SocketTimeout(CONNECT_S, TIMEOUT_S),
            )
        except (OSError, IMAPClientError) as exc:
            raise MailboxError(f"cannot connect: {type(exc).__name__}") from exc
        try:
            if keys.tls == "starttls":
                self._client.starttls(context)
            self._client.login(keys.username, account.password)
            if not self._client.folder_exists(self._done):
                self._client.create_folder(self._done)
            selected = self._client.select_folder(keys.folder)
        except LoginError as exc:
            self._hang_up()
            raise MailboxError("the login is refused") from exc
        except (OSError, IMAPClientError, ValueError) as exc:
            self._hang_up()
            raise MailboxError(f"cannot open the folder: {type(exc).__name__}") from exc
        self.validity = int(selected.get(b"UIDVALIDITY", 0))
        """UIDs of another one are other mails."""

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._client.logout()
        except (OSError, IMAPClientError):
            self._hang_up()

    def _hang_up(self) -> None:
        try:
            self._client.shutdown()
        except OSError:
            return  # it is closed already

    def waiting(self) -> list[int]:
        """UIDs of mails that nobody has looked at, the oldest first. Raises MailboxError."""
        try:
            return sorted(self._client.search(["UNSEEN", "UNDELETED"]))
        except (OSError, IMAPClientError, ValueError) as exc:
            raise MailboxError(f"cannot search: {type(exc).__name__}") from exc

    def read(self, uids: Sequence[int]) -> dict[int, bytes]:
        """The first MAX_BYTES of each mail that is still there. Raises MailboxError."""
        try:
            answer = self._client.fetch(uids, [_BODY])
        except (OSError, IMAPClientError, ValueError) as exc:
            raise MailboxError(f"cannot read: {type(exc).__name__}") from exc
        found = {}
        for uid, items in answer.items():
            body = next((value for name, value in items.items() if name.startswith(b"BODY[")), None)
            if isinstance(uid, int) and uid in uids and isinstance(body, bytes):
                found[uid] = body[:MAX_BYTES]
        return found

    def move(self, uids: Iterable[int]) -> None:
        """Move these to the folder of what is done. Raises MailboxError: they may be in both folders then, and in none never."""
        which = list(uids)
        if not which:
            return
        try:
            if self._client.has_capability("MOVE"):
                self._client.move(which, self._done)
                return
            # The copy first: whatever ends this, no mail is lost.
            self._client.copy(which, self._done)
            self._client.add_flags(which, [_DELETED], silent=True)
            if self._client.has_capability("UIDPLUS"):
                self._client.uid_expunge(which)
        except (OSError, IMAPClientError, ValueError) as exc:
            raise MailboxError(f"cannot move: {type(exc).__name__}") from exc

    def mark_done(self) -> None:
        """Mark what is done as seen, also what a process before had moved and not marked; the folder is selected no more. Raises MailboxError.

        Only then: a mail that is marked and not moved would be neither waiting nor done.
        """
        try:
            self._client.select_folder(self._done)
            if moved := self._client.search(["UNSEEN"]):
                self._client.add_flags(moved, [_SEEN], silent=True)
        except (OSError, IMAPClientError, ValueError) as exc:
            raise MailboxError(f"cannot mark: {type(exc).__name__}") from exc


def probe(account: BounceAccount) -> str | None:
    """Log in and open the folder; why that does not work, None where it does."""
    try:
        with Mailbox(account):
            return None
    except MailboxError as exc:
        return str(exc)

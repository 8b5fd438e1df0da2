"""Where bounces of an SMTP account come back, and what proves that a bounce is one of ours.

    envelope sender   bounces+<word>@shop.example   word: the message id (16 bytes) and 10 bytes of HMAC-SHA256, each in base32
    ENVID             <word>                        where the server takes DSN parameters (RFC 3461)
    X-Heliograph-Ref  <token>.<mac>                 runtime/callbacks.py's token and 16 bytes of HMAC-SHA256, in base64url

Anyone can write to the mailbox: a bounce that brings none of them back with a good HMAC says nothing. Whoever got a mail has its
words, and can speak of that mail alone.
May import the shared modules of vendors. Never: IMAP, the parts of a report.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32decode, b32encode, urlsafe_b64encode
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from runtime import ids
from runtime.callbacks import Subject, subject_of_token, subject_token
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.mime import is_plain_address
from vendors.settings import read_secret, required_secret

HEADER = "X-Heliograph-Ref"
_MAC, _HEADER_MAC = 10, 16
_WORD = r"[a-z2-7]{26}[a-z2-7]{16}"
_MAX_LOCAL = 64 - len("+") - 42
_REF = re.compile(r"([A-Za-z0-9_-]{50,256})\.([A-Za-z0-9_-]{22})", re.ASCII)
_MIN_SECRET = 20


class BounceKeys(BaseModel):
    """`bounces` of an account of the kinds smtp and gmail: a mailbox by IMAP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    """Where bounces go. What the server puts into the mailbox of `a@b` for `a+anything@b`, it has to do for this one."""
    host: str = Field(min_length=1)
    port: int = Field(993, ge=1, le=65535)
    tls: Literal["implicit", "starttls", "none"] = "implicit"
    username: str = Field(min_length=1)
    password: SecretStr | None = None
    password_file: Path | None = None
    folder: str = Field("INBOX", min_length=1)
    done_folder: str = Field("Heliograph", min_length=1)
    """Where mails go that were told; made where it is missing."""
    poll_s: Annotated[float, Field(ge=1, le=3_600)] = 30.0
    secret: SecretStr | None = None
    """Of the HMAC: bounces of mails that went out under another one are not believed."""
    secret_file: Path | None = None


class BounceAccount:
    """An account's words, made and checked."""

    def __init__(self, provider: ProviderSettings, keys: BounceKeys) -> None:
        """Raises SettingsError."""
        self.name, self.keys = provider.name, keys
        local, _, domain = keys.address.rpartition("@")
        if not is_plain_address(keys.address) or len(local) > _MAX_LOCAL or "+" in local:
            raise SettingsError(
                f"provider {provider.name}: bounces.address is one address with at most {_MAX_LOCAL} characters and no + before its @"
            )
        if keys.folder == keys.done_folder:
            raise SettingsError(f"provider {provider.name}: bounces.done_folder is another one than bounces.folder")
        secret = required_secret(provider, "bounces.secret", keys.secret, keys.secret_file)
        if len(secret) < _MIN_SECRET:
            raise SettingsError(
                f"provider {provider.name}: bounces.secret has {_MIN_SECRET} characters or more: openssl rand -hex 20"
            )
        self.password = read_secret(provider, "bounces.password", keys.password, keys.password_file) or ""
        self._key = secret.encode()
        self._local, self._domain = local, domain
        self._address = re.compile(rf"(?<![\w.+-]){re.escape(local)}\+({_WORD})@{re.escape(domain)}(?![\w.-])", re.I)
        self._word = re.compile(_WORD)

    def word(self, message_id: str) -> str | None:
        """The word of a message; None for an id that is not ours."""
        try:
            raw = ids.bytes_of(message_id)
        except ValueError:
            return None
        return b32encode(raw).decode().rstrip("=").lower() + b32encode(self._mac("word", raw, _MAC)).decode().lower()

    def envelope_sender(self, word: str) -> str:
        """Where the bounce of a mail with that word goes."""
        return f"{self._local}+{word}@{self._domain}"

    def header(self, message: ChannelMessage) -> str | None:
        """The value of HEADER; None for a message that is not ours."""
        token = subject_token(message, self.name)
        if token is None:
            return None
        mac = self._mac("header", token.encode(), _HEADER_MAC)
        return f"{token}.{urlsafe_b64encode(mac).decode().rstrip('=')}"

    def words_in(self, text: str) -> list[str]:
        """The words of addresses in a text, true ones or not."""
        return [word.lower() for word in self._address.findall(text)]

    def message_of(self, word: str) -> str | None:
        """The message id of a word, None for one that is not ours."""
        word = word.strip().lower()
        if not self._word.fullmatch(word):
            return None
        try:
            message_id = ids.text_of_bytes(b32decode(word[:26].upper() + "======"))
        except ValueError:
            return None
        # As a whole: the last letter of the id has two bits that mean nothing, and one spelling.
        return message_id if hmac.compare_digest((self.word(message_id) or "").encode(), word.encode()) else None

    def subject_of(self, value: str) -> Subject | None:
        """What the value of HEADER is about, None for one that is not ours."""
        found = _REF.fullmatch("".join(value.split()))
        if found is None:
            return None
        mac = urlsafe_b64encode(self._mac("header", found[1].encode(), _HEADER_MAC)).decode().rstrip("=")
        if not hmac.compare_digest(mac.encode(), found[2].encode()):
            return None
        subject = subject_of_token(found[1])
        return subject if subject.attempt_ref is not None and subject.provider == self.name else None

    def _mac(self, purpose: str, of: bytes, length: int) -> bytes:
        # The name of an account has no NUL, so no two inputs are the same bytes.
        return hmac.digest(self._key, b"\0".join((purpose.encode(), self.name.encode(), of)), "sha256")[:length]


def bounce_account(provider: ProviderSettings, keys: BounceKeys | None) -> BounceAccount | None:
    """The account of its keys, None where it has no mailbox for bounces. Raises SettingsError."""
    return None if keys is None else BounceAccount(provider, keys)

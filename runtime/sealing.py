"""Secrets that have to be read again, sealed where they are stored: AES-256-GCM under a key of the settings.

    sealed = Sealer(settings.hooks.key).seal(secret, "tenant:endpoint")      0x01, 12 bytes of nonce, ciphertext and tag
    Sealer(settings.hooks.key).open(sealed, "tenant:endpoint")

What is stored is of no use without the key, and of none in another row: `place` is authenticated with it. Of two keys the first
seals and both open, so that a key can be replaced.
The only module of runtime that imports cryptography. Never: whose secret it is, a key in an error.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from runtime.errors import SettingsError

MIN_KEY_CHARS = 32
_VERSION = b"\x01"
_NONCE_BYTES = 12
_PURPOSE = b"heliograph sealing 1\0"


class SealedError(Exception):
    """It was sealed under another key or for another place, or is damaged."""


class Sealer:
    """Seals and opens. Raises SettingsError for a setting that holds no key, one that is too short, or more than two."""

    def __init__(self, key: SecretStr, setting: str = "HELIOGRAPH_HOOKS__KEY") -> None:
        keys = key.get_secret_value().split()
        if not 1 <= len(keys) <= 2 or any(len(each) < MIN_KEY_CHARS for each in keys):
            raise SettingsError(
                f"{setting} is a random text of at least {MIN_KEY_CHARS} characters, or two of those while they change;"
                " make one with: openssl rand -base64 32"
            )
        self._keys = [AESGCM(hashlib.sha256(_PURPOSE + each.encode()).digest()) for each in keys]

    def seal(self, secret: str, place: str) -> bytes:
        """The secret as it is stored at a place."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._keys[0].encrypt(nonce, secret.encode(), place.encode())

    def open(self, sealed: bytes, place: str) -> str:
        """The secret. Raises SealedError."""
        nonce, held = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if sealed[:1] != _VERSION or len(nonce) < _NONCE_BYTES:
            raise SealedError("not a sealed secret")
        for key in self._keys:
            try:
                return key.decrypt(nonce, held, place.encode()).decode()
            except (InvalidTag, UnicodeDecodeError):
                continue
        raise SealedError("no key of the settings opens it")

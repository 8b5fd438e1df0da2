"""Firebase Cloud Messaging, HTTP v1: the OAuth token endpoint and messages:send, with FCM's errors.

On start it writes a service account file whose RSA key is kept across restarts; access tokens are signed, not stored,
so those handed out before a restart stay good. Our id is read from `message.data.heliograph_message_id`.

May import the simulator's state, aiohttp and cryptography. Never: a decision on scripted faults (faults.py), a Firebase SDK.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from local.simulator.ground_truth import Accept
from local.simulator.state import SimulatorState, answer

KIND = "fcm"
TOKEN_KIND = "fcm_token"
PROJECT_ID = "simulator"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_TOKEN_LIFETIME_S = 3599
_MAX_PAYLOAD_BYTES = 4096
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_TARGETS = ("fid", "token", "topic", "condition")


class CredentialsError(Exception):
    """The service account file cannot be used."""


class Credentials:
    """The service account of the simulator and the access tokens it is given."""

    def __init__(self, key: rsa.RSAPrivateKey, key_id: str) -> None:
        self._key = key
        self._key_id = key_id
        secret = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._secret = hashlib.sha256(secret).digest()

    @classmethod
    def load_or_create(cls, path: Path, token_uri: str) -> Credentials:
        """Read the key of an earlier run or make one; the file is (re)written with the present token_uri, mode 0600."""
        if path.exists():
            try:
                stored = json.loads(path.read_bytes())
                key = serialization.load_pem_private_key(stored["private_key"].encode(), None)
                key_id = stored["private_key_id"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CredentialsError(f"{path} is not a service account file: move it to another place") from error
            if not isinstance(key, rsa.RSAPrivateKey):
                raise CredentialsError(f"{path} holds a key that is not RSA: move it to another place")
        else:
            key = rsa.generate_private_key(65537, 2048)
            key_id = secrets.token_hex(20)
        credentials = cls(key, key_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(credentials.service_account(token_uri), file, indent=2)
        temporary.replace(path)
        return credentials

    def service_account(self, token_uri: str) -> dict[str, str]:
        """The file's content, as Google's console writes it."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        email = f"{PROJECT_ID}@{PROJECT_ID}.iam.gserviceaccount.com"
        return {
            "type": "service_account",
            "project_id": PROJECT_ID,
            "private_key_id": self._key_id,
            "private_key": pem.decode(),
            "client_email": email,
            "client_id": "100000000000000000000",
            "auth_uri": token_uri,
            "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        }

    def is_assertion(self, assertion: str, now: float) -> bool:
        """Whether a JWT was signed with our key and has not expired."""
        try:
            signed, _, signature = assertion.rpartition(".")
            header, payload = (json.loads(_unbase64(part)) for part in signed.split("."))
            self._key.public_key().verify(_unbase64(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            return header.get("alg") == "RS256" and float(payload["exp"]) > now
        except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature):
            return False

    def access_token(self, now: float) -> str:
        """A bearer token that expires by itself."""
        expires = str(int(now) + _TOKEN_LIFETIME_S)
        return f"ya29.{expires}.{self._mac(expires)}"

    def is_access_token(self, token: str, now: float) -> bool:
        """Whether a bearer token is ours and has not expired."""
        prefix, _, mac = token.rpartition(".")
        name, _, expires = prefix.partition(".")
        if name != "ya29" or not expires.isdigit() or not hmac.compare_digest(mac, self._mac(expires)):
            return False
        return int(expires) > now

    def _mac(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def error(
    http_status: int, status: str, message: str, *details: dict[str, Any], retry_after: str | None = None
) -> web.Response:
    """An error as Google's APIs write it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    body: dict[str, Any] = {"code": http_status, "message": message, "status": status}
    if details:
        body["details"] = list(details)
    return web.json_response({"error": body}, status=http_status, headers=headers)


def _fcm_error(code: str) -> dict[str, Any]:
    return {"@type": _FCM_ERROR, "errorCode": code}


def invalid_argument(field: str, description: str) -> web.Response:
    """400 for a payload that is wrong, with the field that is."""
    violation = {"@type": _BAD_REQUEST, "fieldViolations": [{"field": field, "description": description}]}
    return error(400, "INVALID_ARGUMENT", f"Invalid value at '{field}': {description}", violation)


class FcmErrors:
    """FCM's words for scripted faults."""

    def throttled(self, retry_after: str | None) -> web.Response:
        text = "Quota exceeded for quota metric 'Message send requests'."
        return error(429, "RESOURCE_EXHAUSTED", text, _fcm_error("QUOTA_EXCEEDED"), retry_after=retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        if retry_after is not None:  # FCM says when to come back with 503 only
            text = "The service is currently unavailable."
            return error(503, "UNAVAILABLE", text, _fcm_error("UNAVAILABLE"), retry_after=retry_after)
        return error(500, "INTERNAL", "Internal error encountered.", _fcm_error("INTERNAL"))

    def rejected(self, recipient: str) -> web.Response:
        return error(404, "NOT_FOUND", "Requested entity was not found.", _fcm_error("UNREGISTERED"))


def check_message(payload: object) -> web.Response | dict[str, Any]:
    """The message of a request, or why FCM would refuse it."""
    if not isinstance(payload, dict) or not isinstance(payload.get("message"), dict):
        return invalid_argument("message", "a message is required")
    message: dict[str, Any] = payload["message"]
    targets = [name for name in _TARGETS if message.get(name)]
    if len(targets) != 1 or not isinstance(message[targets[0]], str):
        return invalid_argument("message", "exactly one of fid, token, topic or condition is required")
    data = message.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        return invalid_argument("message.data", "every value must be a string")
    reserved = [name for name in data if name in ("from", "message_type") or name.startswith(("google.", "gcm."))]
    if reserved:
        return invalid_argument("message.data", f"the key {reserved[0]} is reserved")
    content = {name: value for name, value in message.items() if name in ("data", "notification")}
    if len(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")) > _MAX_PAYLOAD_BYTES:
        return invalid_argument("message", "Android message is too big")
    return message


def add_fcm_routes(app: web.Application, state: SimulatorState, credentials: Credentials) -> None:
    """Serve the token endpoint and messages:send."""
    errors = FcmErrors()

    async def token(request: web.Request) -> web.Response:
        state.seen(TOKEN_KIND)
        form = dict(parse_qsl((await request.read()).decode("utf-8", "replace")))
        if form.get("grant_type") != _GRANT:
            return web.json_response({"error": "unsupported_grant_type"}, status=400)
        if not credentials.is_assertion(form.get("assertion", ""), time.time()):
            body = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            return web.json_response(body, status=400)
        access_token = credentials.access_token(time.time())
        return web.json_response(
            {"access_token": access_token, "expires_in": _TOKEN_LIFETIME_S, "token_type": "Bearer"}
        )

    async def send(request: web.Request) -> web.Response:
        state.seen(KIND)
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credentials.is_access_token(bearer.strip(), time.time()):
            text = "Request had invalid authentication credentials. Expected OAuth 2 access token."
            return error(401, "UNAUTHENTICATED", text)
        try:
            payload = json.loads(await request.read())
        except ValueError:
            return error(400, "INVALID_ARGUMENT", "Invalid JSON payload received.")
        message = check_message(payload)
        if isinstance(message, web.Response):
            return message
        project = request.match_info["project"]
        if payload.get("validate_only"):
            return web.json_response({"name": f"projects/{project}/messages/fake_message_id"})
        name = f"projects/{project}/messages/0:{time.time_ns() // 1000}%{secrets.token_hex(8)}"
        target = next(message[kind] for kind in _TARGETS if message.get(kind))
        our_id = message.get("data", {}).get("heliograph_message_id")
        accept = Accept(KIND, target, our_id, json.dumps(payload, ensure_ascii=False), name)
        return await answer(state, request, errors, accept, lambda: web.json_response({"name": name}))

    app.router.add_post("/token", token)
    app.router.add_post("/v1/projects/{project}/messages:send", send)

"""Messages that Amazon SNS posts: is one genuine, and of a topic that the settings name.

    | checked, in this order                                      | else                  |
    |-------------------------------------------------------------|-----------------------|
    | TopicArn is listed                                          | unknown account       |
    | headers repeat the fields that they name                    | forged                |
    | SignatureVersion is 2 (RSA PKCS #1 v1.5, SHA-256)           | forged                |
    | SigningCertURL is of SNS in the topic's own region          | forged                |
    | the certificate of that URL, fetched once                   | not now               |
    | the signature over the fields of the message's type         | forged                |
    | Timestamp                                                   | stale                 |

Only what is listed leads to a request, and only to SNS itself, so nobody makes this process call an address of theirs. A
subscription is confirmed by the API of the topic's region, never by following a URL of the message.
docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html
May import the shared modules of vendors and cryptography. Never: what a message says.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate

from vendors.http import HttpResponse, HttpTransport, NotSentError, ResponseLostError
from vendors.reports import (
    CLOCK_SKEW_S,
    ForgedError,
    Intake,
    MalformedError,
    NotNowError,
    Request,
    StaleError,
    UnknownAccountError,
    decoded_signature,
    parse_json,
)

_HEADERS = {
    "x-amz-sns-message-type": "Type",
    "x-amz-sns-message-id": "MessageId",
    "x-amz-sns-topic-arn": "TopicArn",
}
"""Headers that repeat a field; nothing but the body is signed, so none is needed, and one that says something else is not SNS's."""
NOTIFICATION = "Notification"
CONFIRMATION = "SubscriptionConfirmation"
_ABOUT_SUBSCRIPTION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED: Mapping[str, tuple[str, ...]] = {
    NOTIFICATION: ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    CONFIRMATION: _ABOUT_SUBSCRIPTION,
    "UnsubscribeConfirmation": _ABOUT_SUBSCRIPTION,
}
"""The fields of each type that are signed, in their order; one that is absent (Subject) is left out."""
_CERTIFICATE_URL = re.compile(
    r"https://(sns\.[a-z0-9-]+\.amazonaws\.com(?:\.cn)?)(/SimpleNotificationService-[A-Za-z0-9]{1,64}\.pem)"
)
_TOKEN = re.compile(r"[A-Za-z0-9]{1,1024}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)
_MAX_KEYS = 16
_MAX_CERTIFICATE = 16 * 1024
_TIMEOUT_S = 5.0
_FAILED_S = 60.0
"""For so long no certificate is fetched from a URL that had none."""

Fetch = Callable[[str, bytes | None], Awaitable[HttpResponse]]
"""GET a URL, or POST a form to it. Raises NotSentError, ResponseLostError."""


async def fetch(url: str, form: bytes | None) -> HttpResponse:
    """One request on a connection of its own: they are rare."""
    transport = HttpTransport(_TIMEOUT_S, 1, max_response_bytes=_MAX_CERTIFICATE)
    transport.start()
    try:
        if form is None:
            return await transport.get(url, headers={})
        return await transport.post(url, headers={"Content-Type": "application/x-www-form-urlencoded"}, body=form)
    finally:
        await transport.close()


class Topic(NamedTuple):
    """A topic by its ARN: arn:aws:sns:eu-central-1:123456789012:name."""

    arn: str
    double: str | None = None
    """Base URL of a test double of SNS: it is asked in place of SNS, for the same paths."""

    def place(self, path: str) -> str:
        """Where a path of SNS is asked."""
        return f"{self.double or f'https://{self.host}'}{path}"

    @property
    def host(self) -> str:
        """Of SNS in its region."""
        _, partition, _, region, *_ = self.arn.split(":")
        return f"sns.{region}.amazonaws.com" + (".cn" if partition == "aws-cn" else "")


class SnsMessages:
    """Checks messages; keeps the keys of certificates that it fetched."""

    def __init__(self, topics: Iterable[Topic], intake: Intake, fetch: Fetch) -> None:
        self._topics = {topic.arn: topic for topic in topics}
        self._intake, self._fetch = intake, fetch
        self._keys: OrderedDict[str, RSAPublicKey] = OrderedDict()
        self._failed: OrderedDict[str, float] = OrderedDict()
        self._fetching = asyncio.Lock()

    async def genuine(self, request: Request) -> Mapping[str, str]:
        """The message's fields. Raises what ReportReader.read raises."""
        fields = _fields(request)
        topic = self._topics.get(fields["TopicArn"])
        if topic is None:
            raise UnknownAccountError
        if fields.get("SignatureVersion") != "2":
            raise ForgedError
        signature = decoded_signature(fields.get("Signature", ""))
        found = _CERTIFICATE_URL.fullmatch(fields.get("SigningCertURL", ""))
        if found is None or found[1] != topic.host:
            raise ForgedError
        key = await self._key(topic.place(found[2]), request.received_at)
        try:
            key.verify(signature, canonical(fields), PKCS1v15(), SHA256())
        except InvalidSignature:
            raise ForgedError from None
        self._check_age(fields["Timestamp"], request.received_at)
        return fields

    async def confirm(self, fields: Mapping[str, str]) -> None:
        """Confirm a subscription of a genuine message. Raises MalformedError, NotNowError."""
        token = fields.get("Token", "")
        if not _TOKEN.fullmatch(token):
            raise MalformedError("the token is missing")
        topic = self._topics[fields["TopicArn"]]
        form = {"Action": "ConfirmSubscription", "TopicArn": topic.arn, "Token": token, "Version": "2010-03-31"}
        try:
            answer = await self._fetch(topic.place("/"), urlencode(form).encode())
        except (NotSentError, ResponseLostError) as exc:
            raise NotNowError("SNS does not answer") from exc
        if answer.status >= 500:
            raise NotNowError(f"SNS answers {answer.status}")
        if answer.status != 200:
            raise MalformedError(f"SNS does not take the token: {answer.status}")

    async def _key(self, url: str, now: int) -> RSAPublicKey:
        if (key := self._keys.get(url)) is not None:
            return key
        async with self._fetching:  # one at a time, so that a flood of names is a trickle of requests
            if (key := self._keys.get(url)) is not None:
                return key
            if now - self._failed.get(url, -_FAILED_S * 1000) < _FAILED_S * 1000:
                raise NotNowError("its certificate could not be fetched a moment ago")
            try:
                answer = await self._fetch(url, None)
                key = _rsa_key(answer)
            except (NotSentError, ResponseLostError):
                key = None
            if key is None:
                _remember(self._failed, url, float(now))
                raise NotNowError("its certificate cannot be fetched")
            _remember(self._keys, url, key)
            return key

    def _check_age(self, timestamp: str, received_at: int) -> None:
        if not _TIME.fullmatch(timestamp):
            raise MalformedError("Timestamp is no time")
        try:
            age_s = received_at / 1000 - datetime.fromisoformat(timestamp).timestamp()
        except ValueError as exc:
            raise MalformedError("Timestamp is no time") from exc
        if not -CLOCK_SKEW_S <= age_s <= self._intake.retry_window_s + CLOCK_SKEW_S:
            raise StaleError


def canonical(fields: Mapping[str, str]) -> bytes:
    """What is signed: each name and value on a line of its own, the last line too."""
    return "".join(f"{name}\n{fields[name]}\n" for name in _SIGNED[fields["Type"]] if name in fields).encode()


def _fields(request: Request) -> Mapping[str, str]:
    """The message's fields. Raises MalformedError."""
    fields = parse_json(request.body)
    if not isinstance(fields, Mapping) or fields.get("Type") not in _SIGNED:
        raise MalformedError("the body is no message of SNS; raw message delivery must be off")
    text = {name: value for name, value in fields.items() if isinstance(value, str)}
    missing = {*_SIGNED[text["Type"]]} - {"Subject"} - text.keys()
    if missing:
        raise MalformedError(f"{min(missing)} is missing")
    for header, name in _HEADERS.items():
        if request.headers.get(header, text[name]) != text[name]:
            raise ForgedError
    return text


def _rsa_key(answer: HttpResponse) -> RSAPublicKey | None:
    """The key of a certificate, None for an answer that has none."""
    if answer.status != 200:
        return None
    try:
        key = load_pem_x509_certificate(answer.body).public_key()
    except ValueError:
        return None
    return key if isinstance(key, RSAPublicKey) else None


def _remember(kept: OrderedDict[str, Any], name: str, value: Any) -> None:
    kept[name] = value
    kept.move_to_end(name)
    if len(kept) > _MAX_KEYS:
        kept.popitem(last=False)

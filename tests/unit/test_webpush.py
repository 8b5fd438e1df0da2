"""Web Push: what a subscription is, what goes out for it, and to whom nothing goes."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path
from typing import Any

import http_ece
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from py_vapid import Vapid02
from pydantic_core import from_json, to_json

from local.simulator import webpush as simulator
from runtime.errors import SettingsError
from runtime.outbound import OutboundRefusedError, OutboundRules
from runtime.settings import OutboundSettings, ProviderSettings
from runtime.subscriptions import Subscription, read_subscription, subscription_of
from schemas.channels import ROWS
from tests.support.accounts import account, ec_key, rsa_key
from tests.support.made import NOW, message
from vendors.http import HttpResponse
from vendors.http_account import HttpRequest
from vendors.provider import UnsendableError
from vendors.sender import ErrorClass, Rejected, Retry, Sent
from vendors.settings import parse_keys
from vendors.webpush.encryption import MAX_PLAIN_BYTES
from vendors.webpush.keys import WebpushKeys
from vendors.webpush.sender import MAX_TTL_S, WebpushSender
from vendors.webpush.vapid import LIFETIME_S, MAX_KEPT, RENEW_AFTER_S

ORIGIN = "https://updates.push.services.mozilla.com"
BROWSER = simulator.subscription(ORIGIN, "b")
ID = "0190c0de-0000-5000-8000-000000000001"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def made(tmp_path: Path, clock: Clock | None = None, **changed: Any) -> WebpushSender:
    provider = ProviderSettings(**{**account("webpush", tmp_path).model_dump(), "hosts": [*HOSTS], **changed})
    keys = parse_keys(WebpushKeys, provider)
    return WebpushSender(provider, keys, OutboundRules(OutboundSettings()), clock or Clock())


HOSTS = WebpushKeys(subject="mailto:a@b.example").hosts


@pytest.fixture
def sender(tmp_path: Path) -> WebpushSender:
    return made(tmp_path)


def push(address: str = BROWSER.address, **fields: Any) -> Any:
    about = {"channel": "push", "message_id": ID, "address": address, "title": "T", "body": "B"}
    return message(**{**about, **fields})


def prepared(sender: WebpushSender, **fields: Any) -> HttpRequest:
    return sender.prepare(push(**fields))


def read(request: HttpRequest, name: str = "b") -> Any:
    """What the service worker of a browser gets."""
    key, secret = simulator._keys(name)
    return from_json(http_ece.decrypt(request.body, private_key=key, auth_secret=secret, version="aes128gcm"))


# -- subscriptions ----------------------------------------------------------------------------------------------------


def as_given(**changed: Any) -> dict[str, Any]:
    return {
        "endpoint": BROWSER.endpoint,
        "expirationTime": None,
        "keys": {"p256dh": BROWSER.p256dh, "auth": BROWSER.auth},
        **changed,
    }


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_subscription_has_one_address_however_it_is_written(pad: int) -> None:
    keys = {"auth": BROWSER.auth + "=" * pad, "p256dh": BROWSER.p256dh + "=" * pad, "other": 1}
    assert subscription_of(as_given(keys=keys)).address == BROWSER.address
    assert read_subscription(to_json(as_given(), indent=2)) == BROWSER
    assert read_subscription(BROWSER.address) == BROWSER


def test_longest_subscription_is_an_address_of_its_channel() -> None:
    longest = Subscription("https://" + "x" * 2040, BROWSER.auth, BROWSER.p256dh)
    assert ROWS["push"].shape.pattern.fullmatch(subscription_of(from_json(longest.address)).address)


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"endpoint": None}, "endpoint"),
        ({"endpoint": "http://push.example/x"}, "endpoint"),
        ({"endpoint": "https://push.example/x y"}, "endpoint"),
        ({"endpoint": 'https://push.example/"'}, "endpoint"),
        ({"endpoint": "https://push.example/\\"}, "endpoint"),
        ({"endpoint": "https://push.example/é"}, "endpoint"),
        ({"endpoint": "https://" + "x" * 2041}, "endpoint"),
        ({"endpoint": "http://127.0.0.1.example.org/"}, "endpoint"),
        ({"keys": None}, "keys"),
        ({"keys": []}, "keys"),
        ({"keys": {"auth": BROWSER.auth}}, "p256dh"),
        ({"keys": {"auth": 7, "p256dh": BROWSER.p256dh}}, "auth"),
        ({"keys": {"auth": "x" * 22 + "\n", "p256dh": BROWSER.p256dh}}, "auth"),
        ({"keys": {"auth": BROWSER.auth[:-2], "p256dh": BROWSER.p256dh}}, "auth"),
        ({"keys": {"auth": "+" * 22, "p256dh": BROWSER.p256dh}}, "auth"),
        ({"keys": {"auth": BROWSER.auth, "p256dh": "A" * 87}}, "p256dh"),
    ],
)
def test_subscription_that_is_none_says_what_is_wrong(changed: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong) as refused:
        subscription_of(as_given(**changed))
    assert "push.example" not in str(refused.value)


@given(st.text(max_size=80) | st.binary(max_size=80) | st.sampled_from(["[" * 5_000, "{}", "null", '{"endpoint": []}']))
def test_any_text_is_a_subscription_or_none(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="subscription"):
        read_subscription(text)


# -- what goes out ----------------------------------------------------------------------------------------------------


def test_push_is_what_the_service_worker_reads_and_names_its_message(sender: WebpushSender) -> None:
    request = prepared(sender, data=b'{"order": "A1", "n": 2}')
    assert read(request) == {"title": "T", "body": "B", "data": {"order": "A1", "n": 2}, "message_id": ID}
    assert str(request.url) == BROWSER.endpoint
    assert b"A1" not in (request.body or b"")
    topic = request.headers["Topic"]
    assert (len(topic), str(uuid.UUID(bytes=base64.urlsafe_b64decode(topic + "==")))) == (22, ID)
    assert request.headers["Content-Encoding"] == "aes128gcm"


@pytest.mark.parametrize(
    ("expires_in_ms", "ttl"),
    [(None, MAX_TTL_S), (60_000, 60), (1, 1), (0, 1), (-5_000, 1), (10**12, MAX_TTL_S)],
)
def test_push_waits_until_it_expires_and_never_for_no_time(
    sender: WebpushSender, expires_in_ms: int | None, ttl: int
) -> None:
    expires_at = None if expires_in_ms is None else NOW + expires_in_ms
    assert prepared(sender, expires_at=expires_at).headers["TTL"] == str(ttl)


@pytest.mark.parametrize(("lane", "urgency"), [("critical", "high"), ("normal", "normal"), ("bulk", "low")])
def test_urgency_is_the_lanes(sender: WebpushSender, lane: str, urgency: str) -> None:
    assert prepared(sender, lane=lane).headers["Urgency"] == urgency


def test_longest_push_fits_what_every_service_takes(sender: WebpushSender) -> None:
    around = len(to_json({"title": "T", "body": "", "message_id": ID}))
    longest = prepared(sender, body="x" * (MAX_PLAIN_BYTES - around))
    assert len(longest.body or b"") == 4_096
    with pytest.raises(UnsendableError, match="3994 bytes, 3993 are allowed"):
        prepared(sender, body="x" * (MAX_PLAIN_BYTES - around + 1))


def test_key_that_is_no_point_of_the_curve_is_the_messages_fault(sender: WebpushSender) -> None:
    point = base64.urlsafe_b64encode(b"\x04" + b"\xff" * 64).decode().rstrip("=")
    with pytest.raises(UnsendableError, match="nothing can be encrypted"):
        prepared(sender, address=BROWSER._replace(p256dh=point).address)


# -- to whom nothing goes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://push.example/x",
        "https://mozilla.com/x",
        "https://push.apple.com/x",
        "https://evilpush.apple.com.example/x",
        "https://xnotify.windows.com/x",
        "https://fcm.googleapis.com@169.254.169.254/x",
        "https://169.254.169.254/latest",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://2130706433/x",
        "http://127.0.0.1/x",
        "http://localhost:9/x",
    ],
)
def test_endpoint_elsewhere_is_refused_before_a_request(sender: WebpushSender, endpoint: str) -> None:
    with pytest.raises(UnsendableError) as refused:
        prepared(sender, address=BROWSER._replace(endpoint=endpoint).address)
    assert endpoint not in str(refused.value)


@pytest.mark.parametrize("host", ["fcm.googleapis.com", "web.push.apple.com", "WNS2-bl2p.notify.windows.com"])
def test_endpoint_at_a_push_service_is_asked(sender: WebpushSender, host: str) -> None:
    endpoint = f"https://{host}/w/?token=a%2Fb%7e"
    request = prepared(sender, address=BROWSER._replace(endpoint=endpoint).address)
    assert str(request.url).endswith("/w/?token=a%2Fb%7e"), "as it was given"


async def test_service_that_resolves_to_a_private_address_is_no_fault_of_the_subscription(
    sender: WebpushSender,
) -> None:
    class Refusing:
        async def post(self, *_: Any, **__: Any) -> HttpResponse:
            raise OutboundRefusedError("the host is not on a public address")

    sender._http = Refusing()  # type: ignore[assignment]
    made = await sender.send(push())
    assert isinstance(made, Retry)
    assert made.error is ErrorClass.ACCOUNT


async def test_address_that_is_no_subscription_is_rejected_and_not_called_gone(sender: WebpushSender) -> None:
    made = await sender.send(push(address="a-token"))
    assert isinstance(made, Rejected)
    assert made.error is ErrorClass.PERMANENT_MESSAGE


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "given"),
    [
        ({"location": f"{ORIGIN}/m/gAAAAABf"}, "gAAAAABf"),
        ({"location": "gAAAAABf"}, "gAAAAABf"),
        ({"location": f"{ORIGIN}/"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [200, 201, 202])
def test_any_success_is_sent(sender: WebpushSender, status: int, headers: dict[str, str], given: str | None) -> None:
    assert sender.read(HttpResponse(status, headers, b"")) == Sent(given)


# -- VAPID ------------------------------------------------------------------------------------------------------------


def claims(request: HttpRequest) -> dict[str, Any]:
    """Of a token, which has to be signed with the key beside it."""
    header = request.headers["Authorization"]
    assert Vapid02.verify(header)
    token = header.removeprefix("vapid t=").partition(",")[0]
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def test_token_is_signed_for_its_service_and_used_for_hours(tmp_path: Path) -> None:
    clock = Clock()
    sender = made(tmp_path, clock)
    first = prepared(sender)
    assert claims(first) == {"aud": ORIGIN, "sub": "mailto:push@shop.example", "exp": NOW // 1000 + LIFETIME_S}
    clock.now += 1000 * (RENEW_AFTER_S - 1)
    assert prepared(sender).headers["Authorization"] == first.headers["Authorization"]
    clock.now += 1000
    assert claims(prepared(sender))["exp"] == clock.now // 1000 + LIFETIME_S <= clock.now // 1000 + 86_400
    clock.now = NOW - 10_000
    assert claims(prepared(sender))["exp"] == clock.now // 1000 + LIFETIME_S, "a clock that was set back"


def test_tokens_of_services_that_strangers_name_are_bounded(sender: WebpushSender) -> None:
    for n in range(MAX_KEPT + 10):
        prepared(sender, address=BROWSER._replace(endpoint=f"https://w{n}.notify.windows.com/w").address)
    assert len(sender._tokens._signed) == MAX_KEPT


def raw_key() -> str:
    value = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
    return base64.urlsafe_b64encode(value.to_bytes(32)).decode().rstrip("=")


@pytest.mark.parametrize(
    "key",
    [ec_key(), f"\n{ec_key()}", raw_key(), f"{raw_key()}\n"],
    ids=["PEM", "PEM after a line", "raw", "raw and a line"],
)
def test_key_is_read_as_generators_write_it(key: str, tmp_path: Path) -> None:
    sender = made(tmp_path, private_key=key, private_key_file=None)
    public = sender._tokens._vapid.public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert f"k={base64.urlsafe_b64encode(public).decode().rstrip('=')}" in prepared(sender).headers["Authorization"]


@pytest.mark.parametrize(
    "changed",
    [
        {"private_key": "nonsense"},
        {"private_key": "é" * 43},
        {"private_key": rsa_key()},
        {"private_key": "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"},
        {"private_key": ""},
        {"private_key": "A" * 43},
        {"private_key_file": "/nowhere"},
        *(
            {"subject": subject}
            for subject in (
                "push@shop.example",
                "mailto: push@shop.example",
                "mailto:<push@shop.example>",
                "mailto:push@localhost",
                "https://localhost",
                "http://shop.example",
                "mailto:a@b.example\n",
                "",
            )
        ),
        *(
            {"hosts": hosts}
            for hosts in ([], ["*"], ["https://x.example"], ["*.*.example"], ["x.example/"], ["[::1]"], "x.example")
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_and_not_quoted(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        made(tmp_path, **{"private_key_file": None, "private_key": ec_key(), **changed})
    for given_key in ("nonsense", "BEGIN", "AAAA"):
        assert given_key not in str(refused.value)

"""The vendors' own clients against the running simulator, each used as its README shows; accepts are looked up in its log.

Nothing of the vendors package is used, so nothing it does can hide what the simulator gets wrong. Three clients insist on
TLS to a fixed host. The simulator has no TLS, so `Front` ends it; what is overridden to reach it is named at each client.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aioapns
import aiosmtplib
import firebase_admin
import pytest
import pytest_asyncio
from aioapns.connection import APNsProductionClientProtocol
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from firebase_admin import credentials, messaging
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

from local.ports import LOOPBACK, PortBook
from local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC
from tests.integration.conftest import until

HOSTS = ("localhost", "api.twilio.com", "fcm.googleapis.com")
"""Names that the front's certificate is for."""
APNS_PUSHES = 50
"""Pushes at once on one connection of aioapns."""


@dataclass(frozen=True)
class Simulator:
    """A simulator process: its control URL, the ports of its vendors, the folder of its credentials."""

    http_port: int
    smtp_port: int
    apns_port: int
    data: Path

    def request(self, path: str, body: object = None, method: str | None = None) -> Any:
        """The JSON answer of the control interface; a body makes it a POST."""
        sent = None if body is None else json.dumps(body).encode()
        url = f"http://{LOOPBACK}:{self.http_port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, sent, method=method), timeout=10) as response:
            return json.load(response)

    def refuse(self, kind: str, recipient: str) -> None:
        """Let a vendor refuse every message to `recipient` for good."""
        self.request("/faults", {"kind": kind, "mode": "reject", "match": recipient})

    def accepted(self, kind: str, recipient: str) -> list[dict[str, Any]]:
        """What the log has for `recipient`."""
        return [entry for entry in self.request(f"/accepted?kind={kind}") if entry["to"] == recipient]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """A simulator for the module."""
    home = tmp_path_factory.mktemp("simulator")
    book = PortBook()
    made = Simulator(book.reserve("simulator"), book.reserve("smtp"), book.reserve("apns"), home)
    command = [sys.executable, "-m", "local.simulator", "--http-port", str(made.http_port)]
    command += ["--smtp-port", str(made.smtp_port), "--apns-port", str(made.apns_port)]
    command += ["--data-dir", str(home), "--maildir", str(home / "mail")]
    with (home / "simulator.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)

        def is_up() -> bool:
            assert process.poll() is None, "the simulator ended"
            try:
                return bool(made.request("/readyz"))
            except OSError:
                return False

        try:
            until(is_up, 30, "simulator")
            yield made
        finally:
            process.terminate()
            process.wait(10)
            book.close()


@pytest.fixture
def simulator(running: Simulator) -> Iterator[Simulator]:
    """The simulator, without faults afterwards."""
    yield running
    running.request("/faults", method="DELETE")


# -- TLS in front of the simulator ------------------------------------------------------------------------------------


def write_certificate(file: Path) -> None:
    """A self-signed certificate for HOSTS, valid for an hour, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "heliograph tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*form))


class Front:
    """Ends TLS and passes the bytes on: an HTTP proxy (CONNECT) before the HTTP vendors, a port of its own before APNs.

    Runs on the test's event loop; blocking clients belong on a thread.
    """

    def __init__(self, simulator: Simulator, certificate: Path) -> None:
        self._simulator, self._certificate = simulator, certificate
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []
        self.tunnels: list[str] = []
        """Hosts that clients were connected with through the proxy."""

    async def start(self) -> None:
        """Open both ports."""
        self._servers = [
            await asyncio.start_server(self._serve_proxy, LOOPBACK, 0),
            await asyncio.start_server(self._serve_apns, LOOPBACK, 0, ssl=self._tls("h2")),
        ]
        self.proxy_port, self.apns_port = (server.sockets[0].getsockname()[1] for server in self._servers)

    async def close(self) -> None:
        """Close the ports and every connection."""
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._pumps)

    def _tls(self, protocol: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certificate)
        context.set_alpn_protocols([protocol])
        return context

    async def _serve_proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        method, authority, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        host = authority.removesuffix(":443")
        if method != "CONNECT" or host not in HOSTS:
            # Google's library also asks, on a thread of its own, where the account may be used from: not from a test.
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        self.tunnels.append(host)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.start_tls(self._tls("http/1.1"))
        await self._pass_on(reader, writer, self._simulator.http_port)

    async def _serve_apns(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await self._pass_on(reader, writer, self._simulator.apns_port)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        """Copy in both directions from now on."""
        inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, port)
        self._writers.append(inner_writer)
        self._pumps.append(asyncio.create_task(pump(reader, inner_writer)))
        self._pumps.append(asyncio.create_task(pump(inner_reader, writer)))


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copy until the source ends; then close the target."""
    try:
        while piece := await source.read(1 << 16):
            target.write(piece)
            await target.drain()
    except ConnectionError:
        pass  # who hangs up has what it came for: the tests look at the clients' answers
    finally:
        target.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file: certificate and key of the front."""
    file = tmp_path_factory.mktemp("tls") / "front.pem"
    write_certificate(file)
    return file


@pytest_asyncio.fixture
async def front(simulator: Simulator, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    """TLS before the simulator. requests, which firebase-admin and twilio send with, documents the two variables set."""
    made = Front(simulator, certificate)
    await made.start()
    for name in ("https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{LOOPBACK}:{made.proxy_port}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    yield made
    await made.close()


# -- aioapns ----------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def apns(simulator: Simulator, front: Front, certificate: Path) -> AsyncIterator[aioapns.APNs]:
    """aioapns's client with its own pool and provider token."""

    class ToFront(APNsProductionClientProtocol):
        APNS_SERVER, APNS_PORT = "localhost", front.apns_port

    client = aioapns.APNs(
        key=(simulator.data / APNS_KEY_FILE).read_text(),
        key_id=APNS_KEY_ID,
        team_id=APNS_TEAM_ID,
        topic=APNS_TOPIC,
        ssl_context=ssl.create_default_context(cafile=str(certificate)),
    )
    # Its documented way to another address, proxy_host, hangs on Python 3.11: it reads from asyncio's TransportSocket,
    # which lost recv(). The pool's public protocol_class holds host and port.
    client.pool.protocol_class = ToFront
    yield client
    client.pool.close()
    await asyncio.sleep(0)  # the transports close in the loop's next turn


async def test_aioapns_sends_many_pushes_at_once_and_the_log_has_them(simulator: Simulator, apns: aioapns.APNs) -> None:
    device = uuid.uuid4().hex
    requests = [
        aioapns.NotificationRequest(
            device_token=device,
            message={"aps": {"alert": "Grüße from APNs", "badge": "1"}},
            notification_id=str(uuid.uuid4()),
            time_to_live=3,
            push_type=aioapns.PushType.ALERT,
        )
        for _ in range(APNS_PUSHES)
    ]
    results = await asyncio.gather(*(apns.send_notification(request) for request in requests))
    assert all(result.is_successful for result in results)
    entries = simulator.accepted("apns", device)
    assert {entry["message_id"] for entry in entries} == {result.notification_id for result in results}
    assert len(entries) == APNS_PUSHES
    assert json.loads(entries[0]["body"]) == requests[0].message


async def test_aioapns_gets_the_time_since_which_a_device_is_invalid(simulator: Simulator, apns: aioapns.APNs) -> None:
    device = uuid.uuid4().hex
    simulator.refuse("apns", device)
    result = await apns.send_notification(aioapns.NotificationRequest(device, {"aps": {"alert": "x"}}))
    assert (result.is_successful, result.status, result.description) == (False, "410", "Unregistered")
    assert result.timestamp is not None
    assert abs(result.timestamp / 1000 - time.time()) < 60  # Apple's are milliseconds
    assert simulator.accepted("apns", device) == []


async def test_aioapns_is_refused_a_topic_that_is_not_the_keys(simulator: Simulator, apns: aioapns.APNs) -> None:
    device = uuid.uuid4().hex
    request = aioapns.NotificationRequest(device, {"aps": {"alert": "x"}}, apns_topic="com.example.other")
    result = await apns.send_notification(request)
    assert (result.status, result.description) == ("400", "DeviceTokenNotForTopic")
    assert simulator.accepted("apns", device) == []


# -- firebase-admin ---------------------------------------------------------------------------------------------------


@pytest.fixture
def firebase(simulator: Simulator, front: Front) -> Iterator[firebase_admin.App]:
    """The SDK's app on the simulator's key file, whose token_uri is the simulator's."""
    app = firebase_admin.initialize_app(
        credentials.Certificate(str(simulator.data / "fcm-credentials.json")), name=uuid.uuid4().hex
    )
    yield app
    firebase_admin.delete_app(app)


async def test_firebase_admin_sends_and_the_log_has_it(
    simulator: Simulator, front: Front, firebase: firebase_admin.App
) -> None:
    token = uuid.uuid4().hex
    message = messaging.Message(
        notification=messaging.Notification(title="Grüße", body="from FCM"), data={"score": "850"}, token=token
    )
    name = await asyncio.to_thread(messaging.send, message, app=firebase)
    assert "fcm.googleapis.com" in front.tunnels
    (entry,) = simulator.accepted("fcm", token)
    assert entry["provider_message_id"] == name
    sent = json.loads(entry["body"])["message"]
    assert sent["notification"] == {"title": "Grüße", "body": "from FCM"}
    assert sent["data"] == {"score": "850"}


async def test_firebase_admin_sends_to_many_and_reports_each_refusal(
    simulator: Simulator, front: Front, firebase: firebase_admin.App
) -> None:
    good, dead = uuid.uuid4().hex, uuid.uuid4().hex
    simulator.refuse("fcm", dead)
    many = messaging.MulticastMessage(fids=[good, dead], data={"score": "850"})
    batch = await asyncio.to_thread(messaging.send_each_for_multicast, many, app=firebase)
    assert (batch.success_count, batch.failure_count) == (1, 1)
    assert [response.success for response in batch.responses] == [True, False]
    assert isinstance(batch.responses[1].exception, messaging.UnregisteredError)
    (entry,) = simulator.accepted("fcm", good)
    assert entry["provider_message_id"] == batch.responses[0].message_id
    assert simulator.accepted("fcm", dead) == []


# -- twilio -----------------------------------------------------------------------------------------------------------


async def test_twilio_sends_and_the_log_has_it(simulator: Simulator, front: Front) -> None:
    client = Client("AC" + "0" * 32, "auth token")
    message = await asyncio.to_thread(
        client.messages.create, to="+4915112345671", from_="+15005550006", body="Grüße from Twilio"
    )
    assert front.tunnels == ["api.twilio.com"]
    (entry,) = simulator.accepted("twilio", "+4915112345671")
    assert (entry["body"], entry["provider_message_id"]) == ("Grüße from Twilio", message.sid)
    assert (message.status, message.error_code, message.direction) == ("queued", None, "outbound-api")
    assert message.date_created is not None
    assert abs((message.date_created - datetime.now(UTC)).total_seconds()) < 60


async def test_twilio_gets_the_number_that_is_invalid(simulator: Simulator, front: Front) -> None:
    client = Client("AC" + "0" * 32, "auth token")
    with pytest.raises(TwilioRestException, match="Invalid 'To' Phone Number") as refused:
        await asyncio.to_thread(client.messages.create, to="+15005550001", from_="+15005550006", body="x")
    assert (refused.value.status, refused.value.code) == (400, 21211)
    assert simulator.accepted("twilio", "+15005550001") == []


# -- aiosmtplib -------------------------------------------------------------------------------------------------------


def mail(to: str) -> EmailMessage:
    """A mail as aiosmtplib's README writes it, with what a plain one lacks: an umlaut and a line that starts with a dot."""
    message = EmailMessage()
    message["From"] = "root@localhost.test"
    message["To"] = to
    message["Subject"] = "Grüße, World!"
    message.set_content("Sent via aiosmtplib\n.dot\n")
    return message


async def test_aiosmtplib_sends_and_the_log_has_it(simulator: Simulator) -> None:
    to = f"{uuid.uuid4().hex}@example.test"
    errors, answer = await aiosmtplib.send(mail(to), hostname=LOOPBACK, port=simulator.smtp_port)
    assert errors == {}
    assert answer.startswith("2.0.0 Ok: queued as S")
    (entry,) = simulator.accepted("smtp", to)
    assert entry["body"].endswith("Sent via aiosmtplib\r\n.dot\r\n")


async def test_aiosmtplib_gets_the_recipient_that_is_refused(simulator: Simulator) -> None:
    to = f"{uuid.uuid4().hex}@example.test"
    simulator.refuse("smtp", to)
    with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as refused:
        await aiosmtplib.send(mail(to), hostname=LOOPBACK, port=simulator.smtp_port)
    (recipient,) = refused.value.recipients
    assert (recipient.code, recipient.message, recipient.recipient) == (550, "5.1.1 User unknown", to)
    assert simulator.accepted("smtp", to) == []

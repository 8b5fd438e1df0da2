"""The simulator over its wire formats, with the vendors' own client libraries where there are any."""

from __future__ import annotations

import asyncio
import email.message
import json
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import aiosmtplib
import pytest
import requests
import twilio.http.http_client
import twilio.rest
from google.auth.transport.requests import Request as GoogleRequest
from google.oauth2 import service_account
from twilio.base.exceptions import TwilioRestException

MAIL = b"From: a@b.test\r\nTo: %b\r\nSubject: hi\r\nMessage-ID: <%b@heliograph>\r\n\r\nline\r\n.dot\r\n"
MESSAGING_SCOPE = "https://www.googleapis.com/auth/firebase.messaging"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Simulator:
    """One simulator process."""

    def __init__(self, home: Path) -> None:
        self.data, self.maildir = home / "data", home / "mail"
        self.http_port, self.smtp_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.process: subprocess.Popen[bytes]

    def start(self) -> Simulator:
        command = [sys.executable, "-m", "local.simulator", "--http-port", str(self.http_port)]
        command += ["--smtp-port", str(self.smtp_port), "--data-dir", str(self.data), "--maildir", str(self.maildir)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.process.poll() is not None or self.is_up())
        assert self.process.poll() is None
        return self

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/readyz", timeout=1).status_code == 200
        except requests.ConnectionError:
            return False

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(30)

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def put(self, path: str, body: Any) -> Any:
        answer = requests.put(self.url + path, json=body, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def fault(self, **fault: Any) -> requests.Response:
        return requests.post(f"{self.url}/faults", json=fault, timeout=10)

    def accepted(self, message_id: str) -> list[dict[str, Any]]:
        return [entry for entry in self.get("/accepted") if entry["message_id"] == message_id]

    def seen(self, kind: str) -> int:
        return int(self.get("/requests")[kind])

    def send(self, to: str, message_id: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=10) as client:
            client.sendmail("a@b.test", [to], MAIL % (to.encode(), message_id.encode()))

    def talk(self) -> Conversation:
        return Conversation(self.smtp_port)


class Conversation:
    """Raw SMTP, for what no library would send."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self.socket.makefile("rb")
        assert self.reply().startswith(b"220")
        assert self.say(b"EHLO test").startswith(b"250")

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> bytes:
        while (line := self._file.readline())[3:4] == b"-":
            pass
        return line

    def say(self, line: bytes) -> bytes:
        self.write(line + b"\r\n")
        return self.reply()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator")).start()
    yield simulator
    assert simulator.stop() == 0


@pytest.fixture
def simulator(running: Simulator) -> Iterator[Simulator]:
    yield running
    requests.delete(f"{running.url}/faults", timeout=10)


# ---------------------------------------------------------------- SMTP


def test_mail_is_logged_and_delivered_as_it_was_written(simulator: Simulator) -> None:
    simulator.send("u1@x.test", "plain-1")
    (entry,) = simulator.accepted("plain-1")
    assert (entry["kind"], entry["to"]) == ("smtp", "u1@x.test")
    assert entry["body"] == (MAIL % (b"u1@x.test", b"plain-1")).decode()
    pattern = f"*.S{entry['seq']}.*"
    wait_until(lambda: any((simulator.maildir / "new").glob(pattern)))
    (file,) = (simulator.maildir / "new").glob(pattern)
    assert file.read_bytes().decode() == entry["body"]


async def test_aiosmtplib_sends_many_mails_on_one_connection(simulator: Simulator) -> None:
    before = simulator.get("/accepted/count?kind=smtp")["count"]
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=simulator.smtp_port, use_tls=False, start_tls=False)
    async with client:
        await client.ehlo()
        for extension in ("pipelining", "8bitmime", "smtputf8", "size"):
            assert client.supports_extension(extension)
        for number in range(20):
            mail = email.message.EmailMessage()
            mail["From"], mail["To"], mail["Subject"] = "a@b.test", f"ü{number}@x.test", "Grüße"
            mail["Message-ID"] = f"<many-{number}@heliograph>"
            mail.set_content("Zeile\n.\n..\nEnde\n")
            await client.send_message(mail)
    assert simulator.get("/accepted/count?kind=smtp")["count"] == before + 20
    assert simulator.accepted("many-3")[0]["to"] == "ü3@x.test"


def test_pipelined_transactions_are_answered_in_order(simulator: Simulator) -> None:
    begin = b"MAIL FROM:<a@b.test> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<p%d@x.test>\r\nDATA\r\n"
    with simulator.talk() as talk:
        talk.write(begin % 1)
        assert [talk.reply()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
        talk.write(b"Message-ID: <pipe-1@h>\r\n\r\nx\r\n.\r\n" + begin % 2)
        assert [talk.reply()[:3] for _ in range(4)] == [b"250", b"250", b"250", b"354"]
        talk.write(b".\r\n")
        assert talk.reply().startswith(b"250")
        assert talk.say(b"QUIT").startswith(b"221")
    assert len(simulator.accepted("pipe-1")) == 1


def test_mail_in_single_bytes_is_taken_whole(simulator: Simulator) -> None:
    with simulator.talk() as talk:
        talk.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"MAIL FROM:<>\r\nRCPT TO:<s@x.test>\r\nDATA\r\n":
            talk.write(bytes([byte]))
        assert [talk.reply()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
        for byte in b"Message-ID: <bytes@h>\r\n\r\n.\n.\r\n..\r\n.\r\n":
            talk.write(bytes([byte]))
        assert talk.reply().startswith(b"250")
    assert simulator.accepted("bytes")[0]["body"].endswith("\r\n\r\n\n.\r\n.\r\n")


@pytest.mark.parametrize("end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n"])
def test_bare_line_feed_cannot_end_a_mail(simulator: Simulator, end: bytes) -> None:
    before = simulator.get("/accepted/count?kind=smtp")["count"]
    smuggled = b"x" + end + b"MAIL FROM:<evil@b.test>\r\nRCPT TO:<evil@x.test>\r\nDATA\r\ny\r\n.\r\n"
    with simulator.talk() as talk:
        talk.write(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<s@x.test>\r\nDATA\r\n" + smuggled)
        assert [talk.reply()[:3] for _ in range(4)] == [b"250", b"250", b"354", b"250"]
        assert talk.say(b"NOOP").startswith(b"250")
    assert simulator.get("/accepted/count?kind=smtp")["count"] == before + 1


def test_one_mail_to_two_recipients_is_two_accepts(simulator: Simulator) -> None:
    with smtplib.SMTP("127.0.0.1", simulator.smtp_port) as client:
        client.sendmail("a@b.test", ["r1@x.test", "r2@x.test"], MAIL % (b"r1@x.test", b"two"))
    assert [entry["to"] for entry in simulator.accepted("two")] == ["r1@x.test", "r2@x.test"]


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"RCPT TO:<a@x.test>", b"503 5.5.1"),
        (b"DATA", b"503 5.5.1"),
        (b"MAIL FROM:a@b.test", b"501 5.5.4"),
        (b"MAIL FROM:<a@b.test> SIZE=99999999999", b"552 5.3.4"),
        (b"MAIL FROM:<a@b.test> RET=FULL", b"555 5.5.4"),
        ("MAIL FROM:<ü@b.test>".encode(), b"553 5.6.7"),
        (b"BDAT 5", b"500 5.5.2"),
        (b"NOOP " + b"x" * 3000, b"500 5.5.2"),
        (b"EHLO ", b"501 5.5.4"),
        (b"VRFY a", b"252"),
        (b"RSET", b"250"),
    ],
)
def test_command_gets_its_reply(simulator: Simulator, line: bytes, reply: bytes) -> None:
    with simulator.talk() as talk:
        assert talk.say(line).startswith(reply)


@pytest.mark.parametrize("address", [b"<>", b"<nobody>", b"<@x.test>", b"<a@>"])
def test_recipient_that_is_no_address_is_refused_and_data_then_fails(simulator: Simulator, address: bytes) -> None:
    with simulator.talk() as talk:
        talk.say(b"MAIL FROM:<a@b.test>")
        assert talk.say(b"RCPT TO:" + address).startswith(b"501")
        assert talk.say(b"DATA").startswith(b"554")


def test_mail_over_the_size_limit_is_refused_and_the_session_continues(simulator: Simulator) -> None:
    with simulator.talk() as talk:
        talk.write(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<big@x.test>\r\nDATA\r\n")
        assert [talk.reply()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
        line = b"x" * 1022 + b"\r\n"
        for _ in range(27):
            talk.write(line * 1024)
        talk.write(b".\r\n")
        assert talk.reply().startswith(b"552 5.3.4")
        assert talk.say(b"MAIL FROM:<a@b.test>").startswith(b"250")


async def test_hundreds_of_connections_send_at_once(simulator: Simulator) -> None:
    before = simulator.get("/accepted/count?kind=smtp")["count"]

    async def one(number: int) -> None:
        await aiosmtplib.send(
            MAIL % (b"c@x.test", b"conn-%d" % number),
            sender="a@b.test",
            recipients=["c@x.test"],
            hostname="127.0.0.1",
            port=simulator.smtp_port,
        )

    await asyncio.gather(*(one(number) for number in range(200)))
    assert simulator.get("/accepted/count?kind=smtp")["count"] == before + 200


# ---------------------------------------------------------------- SMTP faults


@pytest.mark.parametrize(
    ("mode", "error", "code", "accepts"),
    [
        ("429", smtplib.SMTPRecipientsRefused, 451, 0),
        ("reject", smtplib.SMTPRecipientsRefused, 550, 0),
        ("500", smtplib.SMTPDataError, 451, 0),
        ("500_after_accept", smtplib.SMTPDataError, 451, 1),
        ("drop_after_accept", smtplib.SMTPServerDisconnected, None, 1),
        ("reset", ConnectionResetError, None, 0),
        ("bad_json", smtplib.SMTPException, None, 1),
    ],
)
def test_smtp_fault_is_shown_and_the_log_of_accepts_is_right(
    simulator: Simulator, mode: str, error: type[Exception], code: int | None, accepts: int
) -> None:
    assert simulator.fault(kind="smtp", mode=mode, match=f"{mode}@", retry_after_s=3).status_code == 201
    before = simulator.seen("smtp")
    with pytest.raises((error, smtplib.SMTPServerDisconnected) if mode in ("reset", "bad_json") else error) as raised:
        simulator.send(f"{mode}@x.test", f"fault-{mode}")
    if isinstance(raised.value, smtplib.SMTPRecipientsRefused):
        reply = raised.value.recipients[f"{mode}@x.test"]
        assert reply[0] == code
        assert reply[1].startswith(b"4.7.1" if code == 451 else b"5.1.1")
    elif isinstance(raised.value, smtplib.SMTPResponseException) and code:
        assert (raised.value.smtp_code, raised.value.smtp_error[:5]) == (code, b"4.3.0")
    assert len(simulator.accepted(f"fault-{mode}")) == accepts
    assert simulator.seen("smtp") == before + 1
    simulator.send("other@x.test", f"fine-{mode}")
    assert len(simulator.accepted(f"fine-{mode}")) == 1


def test_slow_smtp_answers_late_and_correctly(simulator: Simulator) -> None:
    simulator.fault(kind="smtp", mode="slow", latency_ms=400, match="slow@")
    started = time.monotonic()
    simulator.send("slow@x.test", "slow-1")
    assert time.monotonic() - started >= 0.4
    assert len(simulator.accepted("slow-1")) == 1


# ---------------------------------------------------------------- Twilio


class ToSimulator(twilio.http.http_client.TwilioHttpClient):  # type: ignore[misc] # untyped
    """The SDK's transport, pointed at the simulator."""

    def __init__(self, url: str) -> None:
        super().__init__(max_retries=0)
        self._url = url

    def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        return super().request(method, url.replace("https://api.twilio.com", self._url), *args, **options)


def twilio_client(simulator: Simulator, user: str = "AC1", account: str = "AC1") -> twilio.rest.Client:
    return twilio.rest.Client(user, "secret", account, http_client=ToSimulator(simulator.url))


def test_twilio_sdk_sends_and_the_accept_is_logged(simulator: Simulator) -> None:
    message = twilio_client(simulator).messages.create(
        to="+4915112345678", from_="+15005550006", body="Grüße", status_callback="https://x.test/cb?message_id=sms-1"
    )
    assert message.sid is not None
    assert (message.status, message.sid[:2], len(message.sid)) == ("queued", "SM", 34)
    (entry,) = simulator.accepted("sms-1")
    assert (entry["kind"], entry["to"], entry["body"]) == ("twilio", "+4915112345678", "Grüße")
    assert entry["provider_message_id"] == message.sid


@pytest.mark.parametrize(
    ("to", "account", "status", "code"),
    [("12", "AC1", 400, 21211), ("+15005550004", "AC1", 400, 21610), ("+4915112345678", "AC2", 401, 20003)],
)
def test_twilio_sdk_sees_twilios_errors(simulator: Simulator, to: str, account: str, status: int, code: int) -> None:
    before = simulator.seen("twilio")
    with pytest.raises(TwilioRestException) as raised:
        twilio_client(simulator, account=account).messages.create(to=to, from_="+15005550006", body="x")
    assert (raised.value.status, raised.value.code) == (status, code)
    assert simulator.seen("twilio") == before + 1


# ---------------------------------------------------------------- FCM


def fcm_token(simulator: Simulator) -> str:
    path = simulator.data / "fcm-credentials.json"
    credentials = service_account.Credentials.from_service_account_file(str(path), scopes=[MESSAGING_SCOPE])  # type: ignore[no-untyped-call]
    session = requests.Session()
    with session:
        credentials.refresh(GoogleRequest(session))
    return str(credentials.token)


def push(simulator: Simulator, message: dict[str, Any], bearer: str | None = None) -> requests.Response:
    return requests.post(
        f"{simulator.url}/v1/projects/simulator/messages:send",
        json={"message": message},
        headers={"Authorization": f"Bearer {bearer or fcm_token(simulator)}"},
        timeout=10,
    )


def test_google_credentials_get_a_token_and_send(simulator: Simulator) -> None:
    answer = push(
        simulator, {"token": "t1", "notification": {"title": "Grüße"}, "data": {"heliograph_message_id": "p1"}}
    )
    assert answer.status_code == 200
    assert answer.json()["name"].startswith("projects/simulator/messages/")
    (entry,) = simulator.accepted("p1")
    assert (entry["kind"], entry["to"]) == ("fcm", "t1")
    assert "Grüße" in entry["body"]
    assert json.loads(entry["body"])["message"]["token"] == "t1"


def test_push_without_a_good_token_is_unauthenticated(simulator: Simulator) -> None:
    answer = push(simulator, {"token": "t1"}, bearer="made-up")
    assert (answer.status_code, answer.json()["error"]["status"]) == (401, "UNAUTHENTICATED")


def test_assertion_signed_with_another_key_is_refused(simulator: Simulator) -> None:
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "e30.e30.e30"}
    answer = requests.post(f"{simulator.url}/token", data=form, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


# ---------------------------------------------------------------- HTTP faults


@pytest.mark.parametrize(
    ("mode", "status", "accepts"),
    [
        ("429", 429, 0),
        ("500", 503, 0),
        ("reject", 404, 0),
        ("500_after_accept", 503, 1),
        ("bad_json", 200, 1),
        ("drop_after_accept", None, 1),
        ("reset", None, 0),
    ],
)
def test_http_fault_is_shown_and_the_log_of_accepts_is_right(
    simulator: Simulator, mode: str, status: int | None, accepts: int
) -> None:
    bearer = fcm_token(simulator)
    simulator.fault(kind="fcm", mode=mode, retry_after_s=60, times=1)
    message = {"token": "t", "data": {"heliograph_message_id": f"push-{mode}"}}
    before = simulator.seen("fcm")
    if status is None:
        with pytest.raises(requests.ConnectionError):
            push(simulator, message, bearer)
    else:
        answer = push(simulator, message, bearer)
        assert answer.status_code == status
        if mode == "bad_json":
            with pytest.raises(ValueError):
                answer.json()
        elif mode != "reject":
            assert answer.headers["Retry-After"] == "60"
    assert simulator.seen("fcm") == before + 1
    assert len(simulator.accepted(f"push-{mode}")) == accepts
    assert push(simulator, message, bearer).status_code == 200  # the fault was for one request


async def test_reset_is_a_reset_on_the_wire(simulator: Simulator) -> None:
    simulator.fault(kind="twilio", mode="reset")
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.http_port)
    form = b"To=%2B4915112345678&From=%2B1&Body=x"
    writer.write(
        b"POST /2010-04-01/Accounts/AC1/Messages.json HTTP/1.1\r\nHost: x\r\nAuthorization: Basic QUMxOng=\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(form), form)
    )
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


# ---------------------------------------------------------------- control


def test_faults_are_listed_and_cleared(simulator: Simulator) -> None:
    simulator.fault(kind="smtp", mode="slow", latency_ms=10)
    (listed,) = simulator.get("/faults")
    assert (listed["kind"], listed["mode"], listed["applied"]) == ("smtp", "slow", 0)
    assert requests.delete(f"{simulator.url}/faults", timeout=10).status_code == 200
    assert simulator.get("/faults") == []


def test_bad_fault_is_a_400_that_says_why(simulator: Simulator) -> None:
    answer = simulator.fault(kind="smtp", mode="explode")
    assert answer.status_code == 400
    assert "mode must be one of" in answer.json()["error"]
    assert requests.post(f"{simulator.url}/faults", data="{", timeout=10).status_code == 400


def test_log_of_accepts_is_paged_and_cannot_be_deleted(simulator: Simulator) -> None:
    for number in range(3):
        simulator.send("page@x.test", f"page-{number}")
    entries = simulator.get("/accepted?kind=smtp")
    assert [entry["seq"] for entry in entries] == sorted(entry["seq"] for entry in entries)
    last = entries[-1]["seq"]
    assert [entry["seq"] for entry in simulator.get(f"/accepted?since_seq={last - 2}")] == [last - 1, last]
    assert len(simulator.get("/accepted?kind=smtp&limit=1")) == 1
    assert simulator.get("/accepted?kind=apns") == []
    assert requests.delete(f"{simulator.url}/accepted", timeout=10).status_code == 405
    assert requests.get(f"{simulator.url}/accepted?limit=x", timeout=10).status_code == 400


def test_health_and_metrics_are_served(simulator: Simulator) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert requests.get(simulator.url + path, timeout=10).status_code == 200
    assert "heliograph_simulator_requests_total" in requests.get(f"{simulator.url}/metrics", timeout=10).text


# ---------------------------------------------------------------- crashes


@pytest.mark.faults
async def test_kill_9_under_load_loses_and_duplicates_no_answered_mail(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path).start()
    answered: list[str] = []

    async def sender(connection: int) -> None:
        client = aiosmtplib.SMTP(
            hostname="127.0.0.1", port=simulator.smtp_port, use_tls=False, start_tls=False, timeout=5
        )
        try:
            await client.connect()
            for number in range(100_000):
                name = f"k{connection}-{number}"
                await client.sendmail("a@b.test", ["k@x.test"], MAIL % (b"k@x.test", name.encode()))
                answered.append(name)
        except (aiosmtplib.SMTPException, OSError):
            client.close()  # the simulator is gone

    senders = [asyncio.create_task(sender(number)) for number in range(10)]
    await asyncio.sleep(1)
    simulator.stop(signal.SIGKILL)
    await asyncio.gather(*senders)
    with (simulator.data / "accepted.jsonl").open("ab") as log:
        log.write(b'{"seq": 99999')  # a torn write
    simulator.start()
    async with aiohttp.ClientSession() as session, session.get(f"{simulator.url}/accepted") as response:
        entries = await response.json()
    names = [entry["message_id"] for entry in entries]
    assert len(answered) > 100
    assert set(answered) <= set(names)
    assert len(set(names)) == len(names) <= len(answered) + 10
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert len(list((simulator.maildir / "new").iterdir())) == len(entries)
    simulator.send("k@x.test", "after")
    assert simulator.accepted("after")[0]["seq"] == len(entries) + 1
    assert simulator.stop() == 0

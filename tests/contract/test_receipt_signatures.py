"""Signatures of callbacks, judged by the vendors' own code: SDKs of SendGrid, Mailgun and Vonage, and SNS posts of moto.

What an SDK takes, the desk takes; what it refuses, the desk refuses. What a test or the simulator signs is held against the SDK as
well, so that the two halves of our own code cannot agree on something else.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import pytest
import uvicorn

from local.ports import LOOPBACK, PortBook
from local.simulator.callbacks import Post, Target
from local.simulator.reports import EventsKey, mailgun_posts, sendgrid_posts, vonage_posts
from runtime.callbacks import subject_token
from tests.contract.test_foreign_doubles import listening
from tests.support.receipts import (
    MAIL,
    SENDGRID_KEY,
    SIGNING_KEY,
    TEXT,
    VONAGE_SECRET,
    Callback,
    Desk,
    mailgun,
    mailgun_account,
    mailgun_event,
    sendgrid,
    sendgrid_account,
    sendgrid_event,
    ses_account,
    ses_event,
    spki,
    vonage,
    vonage_account,
    vonage_receipt,
)
from tests.support.toolchains import python_environment
from vendors.http import HttpResponse
from vendors.ses import reports as ses_reports
from vendors.sigv4 import Signer

pytestmark = [pytest.mark.doubles, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
FLIPS = 150


@pytest.fixture(scope="module")
def judge() -> Callable[[Sequence[dict[str, Any]]], list[Any]]:
    """The SDKs' verdicts on questions (verifiers/judge.py)."""
    python = python_environment(HERE / "verifiers") / "python"

    def ask(questions: Sequence[dict[str, Any]]) -> list[Any]:
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        command = [python, HERE / "verifiers" / "judge.py"]
        answered = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=True)
        return [json.loads(line) for line in answered.stdout.splitlines()]

    return ask


def question(callback: Callback) -> dict[str, Any]:
    keys: dict[str, dict[str, Any]] = {
        "sendgrid": {"key": spki(SENDGRID_KEY)},
        "mailgun": {"key": SIGNING_KEY},
        "vonage": {"key": VONAGE_SECRET, "method": "sha256"},
    }
    body = callback.body.decode("utf-8", "surrogateescape")
    return {"kind": callback.kind, "body": body, "headers": dict(callback.headers), **keys[callback.kind]}


GENUINE = {
    "sendgrid": sendgrid(b"[" + json.dumps(sendgrid_event("delivered")).encode() + b',\r\n{"event":"open"}]\r\n'),
    "mailgun": mailgun(mailgun_event("delivered")),
    "vonage": vonage(vonage_receipt("delivered", odd="a&b=c \u00e4")),
}
ACCOUNTS = {"sendgrid": sendgrid_account, "mailgun": mailgun_account, "vonage": vonage_account}


def mutations(callback: Callback) -> Iterator[Callback]:
    """The request, and what is left of it with one byte changed, added or taken away, one header changed or gone."""
    rng = random.Random(callback.kind)
    yield callback
    body = callback.body
    for at in rng.sample(range(len(body)), min(FLIPS, len(body))):
        if (changed := body[at] ^ rng.choice([1, 2, 4])) < 128:
            yield callback.changed(body=body[:at] + bytes([changed]) + body[at + 1 :])
    yield callback.changed(body=body + b"\n")
    yield callback.changed(body=body.replace(b"\r\n", b"\n"))
    for name, value in callback.headers.items():
        if name == "Content-Type":
            continue
        yield callback.changed(headers={other: said for other, said in callback.headers.items() if other != name})
        for at in range(0, len(value), 5):
            wrong = value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :]
            yield callback.changed(headers={**callback.headers, name: wrong})


@pytest.mark.parametrize("kind", GENUINE)
async def test_the_desk_believes_what_the_vendors_code_believes(kind: str, judge: Any) -> None:
    asked = list(mutations(GENUINE[kind]))
    verdicts = judge([question(callback) for callback in asked])
    assert verdicts[0] is True and len(verdicts) == len(asked) > 60
    believed = refused = 0
    for callback, verdict in zip(asked, verdicts, strict=True):
        at = Desk([ACCOUNTS[kind]()])
        answer = await at.post(callback)
        if verdict is True:
            # It may say something else by now, or have a signature of another age: Mailgun signs no body.
            assert answer.status_code != 403 or answer.json()["code"] == "stale_callback", callback
            believed += 1
        else:
            assert answer.status_code in (400, 403), (verdict, callback)
            assert at.broker.records == []
            refused += 1
    assert believed and refused


@pytest.mark.parametrize("method", ["md5", "sha1", "sha256", "sha512"])
async def test_what_vonages_code_signs_is_taken(method: str, judge: Any) -> None:
    fields = vonage_receipt("delivered", odd="a&b=c")
    (signature,) = judge([{"kind": "vonage", "key": VONAGE_SECRET, "method": method, "sign": fields}])
    at = Desk([vonage_account(method=method)])
    assert (await at.post(vonage({**fields, "sig": signature}, None))).status_code == 204
    assert [status["state"] for status in at.broker.statuses] == ["delivered"]


def simulated(kind: str, key: EventsKey) -> list[Post]:
    token = {"heliograph": subject_token(MAIL, "p") or ""}
    target = Target("http://127.0.0.1:9/", "a secret")
    match kind:
        case "sendgrid":
            return list(sendgrid_posts(target, key, "click+1@example.org", "id", token))
        case "mailgun":
            return list(mailgun_posts(target, "click+1@example.org", "<id@mg>", token))
        case _:
            return list(vonage_posts(target, "k", TEXT["address"], "Shop", "id", token["heliograph"]))


@pytest.mark.parametrize("kind", GENUINE)
def test_the_simulator_signs_as_the_vendor_does(kind: str, judge: Any, tmp_path: Path) -> None:
    key = EventsKey.load_or_create(tmp_path / "key.pem")
    posts = simulated(kind, key)
    secret = key.public if kind == "sendgrid" else "a secret"
    questions = [
        {"kind": kind, "key": secret, "method": "sha256", "body": post.body.decode(), "headers": post.headers}
        for post in posts
    ]
    assert len(posts) >= 2
    assert judge(questions) == [True] * len(posts)


# -- SNS, as moto plays it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    command = [python_environment(HERE / "moto") / "moto_server", "-H", LOOPBACK, "-p", "PORT"]
    with listening(command, tmp_path_factory.mktemp("moto")) as port:
        yield f"http://{LOOPBACK}:{port}"


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application behind a socket; its URL."""
    book = PortBook()
    port = book.reserve("callbacks")
    server = uvicorn.Server(uvicorn.Config(app, host=LOOPBACK, port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the callbacks desk does not listen"
            time.sleep(0.05)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        book.close()


SNS = Signer("AKIA0000000000000000", "s", "sns", "eu-central-1")


async def ask(moto: str, **form: str) -> str:
    """An action of SNS, signed as our senders sign; its answer."""
    body = urlencode({"Version": "2010-03-31", **form}).encode()
    headers = SNS.sign("POST", f"{moto}/", {"Content-Type": "application/x-www-form-urlencoded"}, body)
    async with aiohttp.ClientSession() as session, session.post(f"{moto}/", data=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


async def test_motos_signed_posts_end_in_bounced_complained_delivered(
    moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    async def fetch(url: str, form: bytes | None) -> HttpResponse:
        """Of moto, which knows by the signature alone that SNS is asked."""
        fetched.append(url)
        here = f"{moto}{urlsplit(url).path}"
        async with (
            aiohttp.ClientSession() as session,
            session.get(here, headers=SNS.sign("GET", here, {}, None)) as answer,
        ):
            return HttpResponse(answer.status, {}, await answer.read())

    monkeypatch.setattr(ses_reports, "fetch", fetch)
    arns = {}
    for name in ("ours", "theirs"):
        arns[name] = (await ask(moto, Action="CreateTopic", Name=name)).partition("<TopicArn>")[2].partition("<")[0]
    at = Desk([ses_account(topics=[arns["ours"]])], now=int(time.time() * 1000))
    events = {
        "bounced": ses_event("Bounce", own={"bounceType": "Permanent", "feedbackId": "f1"}),
        "complained": ses_event("Complaint", own={"complaintFeedbackType": "abuse", "feedbackId": "f2"}),
        "delivered": ses_event("Delivery", own={}),
    }
    with served(at.app) as url:
        for arn in arns.values():
            await ask(moto, Action="Subscribe", TopicArn=arn, Protocol="http", Endpoint=f"{url}/callbacks/ses")
        for event in events.values():
            await ask(moto, Action="Publish", TopicArn=arns["theirs"], Message=json.dumps(event))
        assert (fetched, at.broker.records) == (
            [],
            [],
        )  # nobody asked for the certificate of a topic that is not listed
        for event in events.values():
            await ask(moto, Action="Publish", TopicArn=arns["ours"], Message=json.dumps(event))
    assert [status["state"] for status in at.broker.statuses] == list(events)
    assert len(fetched) == len(events)  # moto makes a certificate for each
    assert all(each.startswith("https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-") for each in fetched)

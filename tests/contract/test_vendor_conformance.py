"""Every kind of account in the registry against the running simulator: every fault, one request, the right class, no secret shown.

A kind joins by its row, its worked file and its simulator. What each fault has to come to is written here once for all kinds.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from local.simulator.faults import Mode
from runtime.errors import SettingsError
from runtime.logs import configure_logs
from runtime.settings import ProviderSettings
from schemas.topics import STATUS
from senders.outcomes import Attempt, from_result
from tests.contract.test_vendor_clients import Simulator, running, simulator
from tests.support.accounts import (
    BY_STATUS,
    CANARY,
    GIVEN_URL_KINDS,
    HOOK_KINDS,
    KINDS,
    SPEAKS,
    account,
    given_address,
    hook_at,
    port_of,
    sender_of,
    simulated,
    to_send,
)
from tests.support.made import NOW, RECORD
from vendors.registry import VENDORS, create_look_ups
from vendors.sender import CANNOT_ASK, NOT_FOUND, Doubt, ErrorClass, InDoubt, Rejected, Retry, Sent

__all__ = ["running", "simulator"]

ASKED_S = 7.0
"""The wait of a throttled answer."""

EXTRA: dict[Mode, dict[str, Any]] = {Mode.SLOW: {"latency_ms": 50}, Mode.THROTTLE: {"retry_after_s": ASKED_S}}
"""What a fault needs beside its mode."""


def recipient(kind: str, simulator: Simulator) -> str:
    """An address that no other test sends to."""
    if kind in GIVEN_URL_KINDS:
        return given_address(kind, f"http://127.0.0.1:{simulator.http_port}", uuid.uuid4().hex)
    match KINDS[kind]:
        case "email":
            return f"{uuid.uuid4().hex}@example.test"
        case "sms":
            return f"+49151{uuid.uuid4().int % 10**8:08d}"
        case _:
            return uuid.uuid4().hex * 2


def expected(kind: str, mode: Mode) -> tuple[type, int]:
    """Class of the result, and how many messages the vendor has taken."""
    match mode:
        case Mode.SLOW:
            return Sent, 1
        case Mode.THROTTLE:
            return Retry, 0
        case Mode.FAIL | Mode.RESET:
            return InDoubt, 0
        case Mode.REJECT:
            return Rejected, 0
        case Mode.BAD_JSON if kind in BY_STATUS:
            return Sent, 1
        case _:
            return InDoubt, 1


def seen(simulator: Simulator, kind: str) -> int:
    """Requests of a kind since the start, refused ones too."""
    return int(simulator.request("/requests").get(SPEAKS.get(kind, kind), 0))


@pytest.mark.parametrize("mode", [None, *Mode])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_fault_is_one_request_and_the_right_class(
    simulator: Simulator, kind: str, mode: Mode | None, tmp_path: Path
) -> None:
    address = recipient(kind, simulator)
    message = to_send(kind, address=address, message_id=str(uuid.uuid4()))
    result, taken = (Sent, 1) if mode is None else expected(kind, mode)
    if mode is not None:
        simulator.request(
            "/faults", {"kind": SPEAKS.get(kind, kind), "mode": mode.value, "match": address, **EXTRA.get(mode, {})}
        )
    before = seen(simulator, kind)
    sender = sender_of(simulated(kind, simulator, tmp_path))
    await sender.start()
    try:
        made = await sender.send(message)
    finally:
        await sender.close()
    assert type(made) is result, made
    assert seen(simulator, kind) == before + 1
    entries = simulator.accepted(SPEAKS.get(kind, kind), address)
    assert [entry["message_id"] for entry in entries] == [message["message_id"]] * taken
    if isinstance(made, Retry):
        assert made.error is ErrorClass.THROTTLED
        assert SPEAKS.get(kind, kind) == "smtp" or made.retry_after_s == pytest.approx(ASKED_S, abs=2)
    if mode is None:
        assert isinstance(made, Sent)
        # A mail's is the place of its accept in the log; a webhook's receiver gives none.
        given = None if kind in HOOK_KINDS else entries[0]["provider_message_id"] or f"S{entries[0]['seq']}"
        assert made.provider_message_id == given


# -- look-ups ---------------------------------------------------------------------------------------------------------

LOOK_UP_KINDS = [vendor.kind for vendor in VENDORS if vendor.can_look_up]
ANSWERS: dict[Mode, Any] = {Mode.SLOW: Sent, Mode.REJECT: NOT_FOUND, Mode.BAD_JSON: NOT_FOUND}
"""What each fault of a look-up comes to; the others say nothing of the message, and it is asked after again."""


def doubt_of(message: Any, since: int) -> Doubt:
    return Doubt(message["message_id"], since, message["address"], message["text"])


@pytest.mark.parametrize("mode", [None, *Mode])
@pytest.mark.parametrize("kind", LOOK_UP_KINDS)
async def test_message_whose_answer_was_lost_is_found_by_its_look_up(
    simulator: Simulator, kind: str, mode: Mode | None, tmp_path: Path
) -> None:
    address, since = recipient(kind, simulator), int(time.time() * 1000)
    message = to_send(kind, address=address, message_id=str(uuid.uuid4()))
    simulator.request("/faults", {"kind": kind, "mode": "drop_after_accept", "match": address})
    if mode is not None:
        simulator.request(
            "/faults", {"kind": kind, "mode": mode.value, "match": address, "of": "look_up", **EXTRA.get(mode, {})}
        )
    provider = simulated(kind, simulator, tmp_path)
    sender = create_look_ups([provider])[provider.name]
    await sender.start()
    try:
        assert isinstance(await sender.send(message), InDoubt)
        before = seen(simulator, kind)
        made = await sender.look_up(doubt_of(message, since))
        other = await sender.look_up(doubt_of({**message, "message_id": str(uuid.uuid4()), "text": "other"}, since))
    finally:
        await sender.close()
    assert seen(simulator, kind) == before, "nothing is sent"
    assert len(simulator.accepted(kind, address)) == 1
    assert mode is not None or other == NOT_FOUND
    expected = Sent if mode is None else ANSWERS.get(mode, Retry)
    if isinstance(expected, type):
        assert type(made) is expected, made
    else:
        assert made == expected
    if isinstance(made, Sent) and kind != "mailgun":  # there it is the mail's own Message-ID
        assert made.provider_message_id == simulator.accepted(kind, address)[0]["provider_message_id"]
    if isinstance(made, Retry):
        assert not made.account_wide, "a look-up says nothing of an account"


@pytest.mark.parametrize("kind", KINDS)
async def test_kind_that_cannot_be_asked_refuses_reconcile_and_says_so(kind: str, tmp_path: Path) -> None:
    if kind in LOOK_UP_KINDS:
        assert sender_of(account(kind, tmp_path, reconcile=True)).reconcile_after_s is not None
        return
    with pytest.raises(
        SettingsError, match="reconcile = true is for kinds that can be asked after a message: sendgrid"
    ):
        sender_of(account(kind, tmp_path, reconcile=True))
    assert await sender_of(account(kind, tmp_path)).look_up(Doubt("m", 0)) == CANNOT_ASK


# -- secrets ----------------------------------------------------------------------------------------------------------


def secrets_of(provider: ProviderSettings) -> list[str]:
    """What must not be shown: the canary, and the lines of keys."""
    files = [Path(v) for k, v in (provider.model_extra or {}).items() if k.endswith("_file") and isinstance(v, str)]
    lines = [line for file in files for line in file.read_text().replace("\\n", "\n").splitlines()]
    return [CANARY, *(line for line in lines if len(line) > 40 and " " not in line)]


@pytest.fixture
def every_line(capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Everything that is logged at the lowest level, as a process logs it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logs("test", "debug")
    yield lambda: "".join(capfd.readouterr())
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_secret_is_shown(simulator: Simulator, kind: str, tmp_path: Path, every_line: Any) -> None:
    shown: list[str] = []
    for provider in (
        simulated(kind, simulator, tmp_path),
        account(kind, tmp_path, port_of(kind, simulator), timeout_s=1),
        account(kind, tmp_path, 9, timeout_s=1),
    ):
        hidden = secrets_of(provider)
        sender = sender_of(provider)
        await sender.start()
        made = await sender.send(to_send(kind, address=recipient(kind, simulator)))
        shown += [repr(made), repr(await sender.probe()), repr(sender), repr(provider), str(vars(sender).keys())]
        await sender.close()
        outcome = from_result(Attempt(to_send(kind), RECORD, NOW, "p", 1), made, jitter=0.5, max_retries=5)
        shown += [repr(record.value) for record in outcome.records]
        with pytest.raises(SettingsError) as wrong:
            sender_of(ProviderSettings(**{**provider.model_dump(), "no_such_key": CANARY}))
        shown.append(str(wrong.value))
    shown += [generate_latest(REGISTRY).decode(), every_line()]
    for text in shown:
        for secret in hidden:
            assert secret not in text, text[:500]


@pytest.mark.parametrize("mode", [None, *Mode])
@pytest.mark.parametrize("kind", HOOK_KINDS)
async def test_address_of_a_webhook_is_a_secret(
    simulator: Simulator, kind: str, mode: Mode | None, tmp_path: Path, every_line: Any
) -> None:
    for address in (
        hook_at(kind, f"http://127.0.0.1:{simulator.http_port}", f"{CANARY}-{uuid.uuid4().hex}"),
        hook_at(kind, "http://127.0.0.1:9", CANARY),
        f"https://10.0.0.1/{CANARY}",
        f"https://{CANARY}@example.com/",
        f"https://{CANARY}.invalid/",
        f"no url {CANARY}",
    ):
        if mode is not None:
            fault = {"kind": kind, "mode": mode.value, "match": address, **EXTRA.get(mode, {})}
            simulator.request("/faults", fault)
        message = to_send(kind, address=address, user_id=None)
        sender = sender_of(simulated(kind, simulator, tmp_path, timeout_s=1))
        await sender.start()
        made = await sender.send(message)
        again = await sender.send(message)
        shown = [repr(made), repr(again), repr(sender), repr(sender.prepare), every_line()]
        await sender.close()
        for result in (made, again):
            outcome = from_result(Attempt(message, RECORD, NOW, "p", 1), result, jitter=0.5, max_retries=5)
            # A timer brings the message back, and so has to hold where it goes.
            shown += [repr(record.value) for record in outcome.records if record.topic == STATUS]
        shown.append(generate_latest(REGISTRY).decode())
        for text in shown:
            assert CANARY not in text, text[:500]


def test_canary_is_found_where_it_is_shown(tmp_path: Path) -> None:
    provider = account("twilio", tmp_path)
    (secret,) = secrets_of(provider)
    assert secret in Path((provider.model_extra or {})["auth_token_file"]).read_text()
    assert "auth_token" not in repr(provider)
    plain = ProviderSettings(**{**provider.model_dump(), "auth_token": CANARY})
    assert CANARY in str(plain.model_dump())
    assert CANARY not in repr(plain)

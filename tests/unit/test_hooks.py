"""What goes out to webhooks, Slack and Teams, and what their receivers' answers lead to."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json, to_json
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from runtime.clock import system_clock
from runtime.errors import SettingsError
from runtime.logs import redact_text
from runtime.settings import OutboundSettings
from tests.support.accounts import HOOK_KINDS, account, sender_of, to_send, webhook_secret
from tests.support.made import NOW
from vendors.hook_account import MAX_PAUSE_S, MAX_PAUSES, Pauses
from vendors.http import HttpResponse
from vendors.http_account import UNREADABLE
from vendors.registry import create_senders
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent
from vendors.teams.sender import MAX_BODY_BYTES

RCPT, MSG, THR, TRN = (
    ErrorClass.PERMANENT_RECIPIENT,
    ErrorClass.PERMANENT_MESSAGE,
    ErrorClass.THROTTLED,
    ErrorClass.TRANSIENT,
)
BLOCKS = {
    "blocks": [
        {"type": "section", "text": {"type": "mrkdwn", "text": "<https://a.example|Order> & <!here> <@U1> <#C1>"}}
    ]
}
CARD = {"type": "AdaptiveCard", "version": "1.5", "body": [{"type": "TextBlock", "text": "**Order**"}]}


def body_of(kind: str, folder: Path, **fields: Any) -> Any:
    return from_json(sender_of(account(kind, folder)).prepare(to_send(kind, **fields)).body)


class Receiver:
    """A transport with one answer; counts the requests."""

    def __init__(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.answer = HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
        self.asked = 0

    async def post(self, *_: Any, **__: Any) -> HttpResponse:
        self.asked += 1
        return self.answer


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "receiver", "expected"),
    [
        *(("webhook", Receiver(status), Sent()) for status in (200, 201, 202, 204, 299)),
        ("webhook", Receiver(410), Rejected(RCPT, "410")),
        ("webhook", Receiver(413), Rejected(MSG, "413")),
        ("webhook", Receiver(429, retry_after="7"), Retry(THR, "429", 7.0)),
        ("webhook", Receiver(503), Retry(THR, "503")),
        *(("webhook", Receiver(status), Retry(TRN, str(status))) for status in (301, 304, 308, 400, 401, 404, 405, 408, 422, 499)),
        *(("webhook", Receiver(status), InDoubt(str(status))) for status in (500, 502, 504, 520)),
        ("slack", Receiver(200, b"ok"), Sent()),
        ("slack", Receiver(200, b""), UNREADABLE),
        ("slack", Receiver(200, b"no_service"), UNREADABLE),
        ("slack", Receiver(200, b'{"ok": true}'), UNREADABLE),
        *(("slack", Receiver(404, word), Rejected(RCPT, f"404 {word.decode()}")) for word in (b"no_service", b"channel_not_found", b"no_team")),
        ("slack", Receiver(410, b"channel_is_archived"), Rejected(RCPT, "410 channel_is_archived")),
        *(("slack", Receiver(403, word), Rejected(RCPT, f"403 {word.decode()}")) for word in (b"action_prohibited", b"invalid_token")),
        ("slack", Receiver(404, b"<html>not found"), Rejected(RCPT, "404")),
        ("slack", Receiver(403, b"<html>a proxy"), Retry(TRN, "403")),
        *(("slack", Receiver(400, word), Rejected(MSG, f"400 {word.decode()}")) for word in (b"invalid_payload", b"no_text")),
        ("slack", Receiver(429, b"rate_limited", retry_after="30"), Retry(THR, "429 rate_limited", 30.0)),
        ("slack", Receiver(500, b"rollup_error"), InDoubt("500 rollup_error")),
        ("teams", Receiver(202), Sent()),
        ("teams", Receiver(200, b"Webhook message delivery failed with error"), InDoubt("200 own_reply")),
        *(("teams", Receiver(status), Rejected(RCPT, str(status))) for status in (401, 403, 404, 410)),
        ("teams", Receiver(400), Rejected(MSG, "400")),
        ("teams", Receiver(429, retry_after="5"), Retry(THR, "429", 5.0)),
        ("teams", Receiver(502), InDoubt("502")),
    ],
)  # fmt: skip
async def test_answer_is_about_its_address_alone(
    kind: str, receiver: Receiver, expected: SendResult, tmp_path: Path
) -> None:
    sender = sender_of(account(kind, tmp_path))
    sender._http = receiver
    made = await sender.send(to_send(kind))
    assert made == expected
    assert not (isinstance(made, Retry | InDoubt) and made.account_wide)


# -- webhook ----------------------------------------------------------------------------------------------------------


def verified(secret: str, request: Any) -> Any:
    return Webhook(secret).verify(request.body, dict(request.headers))


def test_webhook_is_signed_as_the_specification_says(tmp_path: Path) -> None:
    message = to_send("webhook", text="Zoë & <b>", data=None)
    request = sender_of(account("webhook", tmp_path)).prepare(message)
    assert request.headers["webhook-id"] == message["message_id"]
    assert abs(int(request.headers["webhook-timestamp"]) * 1000 - system_clock()) < 10_000
    assert verified(webhook_secret(), request) == {"text": "Zoë & <b>"}
    with pytest.raises(WebhookVerificationError):
        verified(f"whsec_{base64.b64encode(bytes(32)).decode()}", request)


def test_webhook_of_a_doubt_carries_the_same_id_under_a_new_time(tmp_path: Path) -> None:
    sender = sender_of(account("webhook", tmp_path))
    sender._clock = lambda: NOW
    first = sender.prepare(to_send("webhook"))
    sender._clock = lambda: NOW + 60_000
    again = sender.prepare(to_send("webhook", attempt=2, possible_duplicate=True))
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    assert first.body == again.body
    assert first.headers["webhook-signature"] != again.headers["webhook-signature"]
    assert int(first.headers["webhook-timestamp"]) == datetime.fromtimestamp(NOW / 1000, UTC).timestamp()


def test_json_of_a_webhook_is_posted_as_it_is(tmp_path: Path) -> None:
    posted = {"type": "order.shipped", "data": {"n": 1.5, "none": None, "list": ["<&>", "\u2028"]}}
    assert body_of("webhook", tmp_path, text="T", data=to_json(posted)) == posted


def test_while_a_secret_changes_both_sign(tmp_path: Path) -> None:
    new = f"whsec_{base64.b64encode(b'n' * 24).decode()}"
    (tmp_path / "both").write_text(f"{new}\n{webhook_secret()}\n")
    request = sender_of(account("webhook", tmp_path, secret_file=str(tmp_path / "both"))).prepare(to_send("webhook"))
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    for secret in (new, webhook_secret()):
        assert verified(secret, request)


@pytest.mark.parametrize(
    "secret",
    [
        "secret",
        "whsec_",
        "whsec_!!!!",
        f"whsec_{base64.b64encode(bytes(23)).decode()}",
        f"whsec_{base64.b64encode(bytes(65)).decode()}",
        base64.b64encode(bytes(32)).decode(),
        " ".join([webhook_secret()] * 3),
    ],
)
def test_secret_of_another_form_is_refused_without_being_shown(secret: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="whsec_ and 24 to 64 bytes") as refused:
        sender_of(account("webhook", tmp_path, secret_file=None, secret=secret))
    assert len(secret) < 10 or secret not in str(refused.value)


# -- Slack ------------------------------------------------------------------------------------------------------------


def test_text_for_slack_is_shown_as_it_is(tmp_path: Path) -> None:
    assert body_of("slack", tmp_path, text="<!everyone> & <https://a.example|b>\n*x*") == {
        "text": "&lt;!everyone&gt; &amp; &lt;https://a.example|b&gt;\n*x*"
    }


def test_blocks_for_slack_keep_their_links_and_call_nobody(tmp_path: Path) -> None:
    posted = body_of("slack", tmp_path, text="a < b", data=to_json(BLOCKS))
    assert posted["text"] == "a &lt; b"
    assert posted["blocks"][0]["text"]["text"] == "<https://a.example|Order> & &lt;!here> &lt;@U1> <#C1>"


# -- Teams ------------------------------------------------------------------------------------------------------------


def card_in(posted: Any) -> Any:
    assert posted["type"] == "message"
    (attachment,) = posted["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    return attachment["content"]


def test_text_for_teams_is_a_card_without_markdown(tmp_path: Path) -> None:
    card = card_in(body_of("teams", tmp_path, text="[x](https://a.example)\n\n**y**"))
    assert card["type"] == "AdaptiveCard"
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}
    assert [block["inlines"][0]["text"] for block in card["body"]] == ["[x](https://a.example)", " ", "**y**"]


def test_card_for_teams_is_its_authors(tmp_path: Path) -> None:
    assert card_in(body_of("teams", tmp_path, text="T", data=to_json(CARD))) == CARD


def test_card_over_28_kb_is_rejected_before_the_request(tmp_path: Path) -> None:
    sender = sender_of(account("teams", tmp_path))
    assert len(sender.prepare(to_send("teams", text="x" * (MAX_BODY_BYTES - 600))).body) <= MAX_BODY_BYTES


@pytest.mark.parametrize(
    "address",
    [
        "https://shop.webhook.office.com/webhookb2/x",
        "https://SHOP.Webhook.Office.com./webhookb2/x",
        "https://outlook.office.com/webhook/x",
        "https://outlook.office365.com/webhook/x",
    ],
)
async def test_connector_is_refused_with_what_replaced_it(address: str, tmp_path: Path) -> None:
    sender = sender_of(account("teams", tmp_path))
    sender._http = receiver = Receiver(200)
    made = await sender.send(to_send("teams", address=address))
    assert isinstance(made, Rejected)
    assert "Workflows" in made.code
    assert receiver.asked == 0


# -- what cannot be sent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        *((kind, {"text": None, "data": None}, "need") for kind in HOOK_KINDS),
        *((kind, {"text": "", "data": None}, "need") for kind in HOOK_KINDS),
        *((kind, {"data": b"[1]"}, "object") for kind in HOOK_KINDS),
        *((kind, {"data": b"{}"}, "object") for kind in HOOK_KINDS),
        *((kind, {"data": b"{"}, "not JSON") for kind in HOOK_KINDS),
        *((kind, {"data": b'{"a": NaN}'}, "not JSON") for kind in HOOK_KINDS),
        *((kind, {"data": b'{"a":' * 5_000}, "not JSON") for kind in HOOK_KINDS),
        *((kind, {"address": "https://10.0.0.1/x"}, "OUTBOUND__ALLOW") for kind in HOOK_KINDS),
        *((kind, {"address": "https://127.0.0.1.nip\\@x/"}, "URL") for kind in HOOK_KINDS),
        *((kind, {"address": "http://example.com/x"}, "https") for kind in HOOK_KINDS),
        *((kind, {"address": ""}, "URL") for kind in HOOK_KINDS),
        ("teams", {"text": "x" * MAX_BODY_BYTES}, "28672"),
        ("teams", {"data": to_json({"type": "message"})}, "AdaptiveCard"),
        ("teams", {"data": to_json({"type": "AdaptiveCard", "body": []})}, "AdaptiveCard"),
    ],
)
async def test_what_cannot_be_sent_is_rejected_without_a_request(
    kind: str, fields: dict[str, Any], why: str, tmp_path: Path
) -> None:
    sender = sender_of(account(kind, tmp_path))
    sender._http = receiver = Receiver(200, b"ok")
    made = await sender.send(to_send(kind, **fields))
    assert isinstance(made, Rejected), made
    assert made.error is MSG
    assert why in made.code
    assert receiver.asked == 0


@pytest.mark.parametrize("kind", HOOK_KINDS)
async def test_this_machine_is_asked_only_where_settings_allow_it(kind: str, tmp_path: Path) -> None:
    (strict,) = create_senders("webhook", [account(kind, tmp_path)])
    (local,) = create_senders("webhook", [account(kind, tmp_path)], OutboundSettings(allow=("127.0.0.1",)))
    message = to_send(kind, address="http://127.0.0.1:9/x")
    assert isinstance(await strict.send(message), Rejected)
    assert local.prepare(message)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", HOOK_KINDS)
async def test_probe_asks_nobody(kind: str, tmp_path: Path) -> None:
    sender = sender_of(account(kind, tmp_path))
    sender._http = receiver = Receiver(500)
    assert await sender.probe() is None
    assert receiver.asked == 0


# -- pauses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOOK_KINDS)
async def test_throttled_address_is_left_alone_and_another_is_not(kind: str, tmp_path: Path) -> None:
    sender = sender_of(account(kind, tmp_path))
    now = [0.0]
    sender._pauses = Pauses(lambda: now[0])
    sender._http = receiver = Receiver(429, retry_after="30")
    mine, other = (to_send(kind, address=f"https://hooks.example/{name}") for name in ("mine", "other"))
    assert await sender.send(mine) == Retry(THR, "429", 30.0)
    now[0] = 29.0
    made = await sender.send(mine)
    assert isinstance(made, Retry)
    assert (made.error, made.retry_after_s, made.account_wide, receiver.asked) == (THR, 1.0, False, 1)
    await sender.send(other)
    assert receiver.asked == 2
    now[0] = 30.0
    await sender.send(mine)
    assert receiver.asked == 3


def test_pause_without_a_time_doubles_and_ends_with_an_answer() -> None:
    now = [0.0]
    pauses = Pauses(lambda: now[0])
    waits = []
    for _ in range(9):
        pauses.note("a", InDoubt("502"))
        waits.append(pauses.left_s("a"))
        now[0] += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]
    pauses.note("a", Sent())
    assert pauses.left_s("a") == 0
    pauses.note("a", Retry(THR, "429", 1e9))
    assert pauses.left_s("a") == 3_600
    pauses.note("b", Retry(TRN, "404"))
    assert pauses.left_s("b") == 0


def test_burst_that_is_throttled_together_counts_once() -> None:
    pauses = Pauses(lambda: 0.0)
    for _ in range(64):
        pauses.note("a", Retry(THR, "429"))
    assert pauses.left_s("a") == 1
    pauses.note("a", Retry(THR, "429", 9.0))
    pauses.note("a", Retry(THR, "429", 5.0))
    assert pauses.left_s("a") == 9


def test_pauses_are_bounded() -> None:
    pauses = Pauses(lambda: 0.0)
    for n in range(MAX_PAUSES + 5):
        pauses.note(str(n), InDoubt("502"))
    assert pauses.left_s("4") == 0
    assert pauses.left_s(str(MAX_PAUSES + 4)) == 1


# -- limits and logs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_request_has_fifteen_seconds_and_its_answer_64_kib_whatever_settings_say(kind: str, tmp_path: Path) -> None:
    patient, hasty = (sender_of(account(kind, tmp_path, timeout_s=timeout_s))._http for timeout_s in (300, 2))
    assert (patient._timeout.total, hasty._timeout.total) == (15, 2)
    assert patient._max_response_bytes == 64 << 10


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("to https://hooks.slack.com/services/T0/B0/s3cret!", "to https://hooks.slack.com/[secret]"),
        ("https://x.logic.azure.com/w?sp=%2Fa&sig=s3cret&x=1", "https://x.logic.azure.com/w?sp=%2Fa&sig=[secret]&x=1"),
        ("'https://h.example/?Token=s3cret'", "'https://h.example/?Token=[secret]'"),
        ("http://127.0.0.1:8123/?query=SELECT", "http://127.0.0.1:8123/?query=SELECT"),
    ],
)
def test_log_hides_what_a_webhooks_url_is_worth(said: str, shown: str) -> None:
    assert redact_text(said) == shown

"""Callbacks of providers: signatures, what a report becomes, every answer, and the same end in any order of arrival."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator

from local.simulator.callbacks import Callbacks
from local.simulator.reports import Accepted, end_of, signature, twilio_posts
from producers.callbacks import app as callbacks_app
from producers.callbacks.app import CallbackEndpoint, create_app
from producers.callbacks.records import status_of
from producers.callbacks.role import misdirected, public_url
from runtime import ids
from runtime.callbacks import AttemptRef, attempt_ref_of, callback_url, message_id_of
from runtime.errors import SettingsError
from runtime.metrics import CALLBACKS
from runtime.records import ProducerRecord
from runtime.settings import CallbackSettings, ProviderSettings, Settings
from schemas.events import states
from schemas.topics import RECEIPTS, STATUS
from tests.support.made import NOW, message
from tests.support.receipts import Broker
from tracking.status import rollup
from vendors.registry import create_report_readers
from vendors.reports import MAX_BODY, DeliveryReport
from vendors.twilio.reports import _Form

PUBLIC = "https://notify.shop.example"
SID, OTHER_SID = "AC" + "1" * 32, "AC" + "2" * 32
TOKEN, NEXT_TOKEN, OTHER_TOKEN = "first-token", "next-token", "other-token"


def account(name: str, **keys: Any) -> ProviderSettings:
    made: dict[str, Any] = {
        "name": name,
        "channel": "sms",
        "kind": "twilio",
        "account_sid": SID,
        "from": "+15005550006",
        **keys,
    }
    return ProviderSettings(**made)


PROVIDERS = (
    account("tw", auth_token=TOKEN),
    account("tw-next", auth_token=NEXT_TOKEN),
    account("tw-other", account_sid=OTHER_SID, auth_token=OTHER_TOKEN),
    account("mail", channel="email", kind="smtp"),
)
MESSAGE = message(channel="sms", address="+4915112345678", notification_id=ids.notification_id(NOW - 100, "t"))
URL = callback_url(f"{PUBLIC}/callbacks/twilio", MESSAGE, "tw")


def fields(status: str = "delivered", **more: str) -> dict[str, str]:
    return {"AccountSid": SID, "MessageSid": "SM1", "MessageStatus": status, "To": "+4915112345678", **more}


def signed(form: Mapping[str, str], url: str = URL, token: str = TOKEN) -> dict[str, str]:
    """Headers, by the vendor's own implementation."""
    return {
        "X-Twilio-Signature": RequestValidator(token).compute_signature(url, dict(form)),
        "Content-Type": "application/x-www-form-urlencoded",
    }


class CallbackClient:
    """The application with a broker of ours; the request calls its host something else than the public one."""

    def __init__(self, broker: Broker | None = None, **more: Any) -> None:
        self.broker = broker or Broker()
        self._now = NOW
        self.app = create_app(
            create_report_readers(PROVIDERS), CallbackEndpoint(self.broker, PUBLIC + "/", self.clock, **more)
        )

    def clock(self) -> int:
        self._now += 1
        return self._now

    async def post(
        self, form: Mapping[str, str] | bytes, headers: Mapping[str, str], url: str = URL, method: str = "POST"
    ) -> httpx.Response:
        body = form if isinstance(form, bytes) else urlencode(form).encode()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7:8088") as client:
            return await client.request(
                method, urlsplit(url)._replace(scheme="", netloc="").geturl(), content=body, headers=dict(headers)
            )

    async def tell(self, status: str = "delivered", url: str = URL, token: str = TOKEN, **more: str) -> httpx.Response:
        form = fields(status, **more)
        return await self.post(form, signed(form, url, token), url)


def counted(outcome: str) -> float:
    return float(CALLBACKS.labels("twilio", outcome)._value.get())


# ---------------------------------------------------------------- the URL


def test_the_url_says_what_a_receipt_is_about_and_keeps_the_vendors_options() -> None:
    url = callback_url("https://x.example/cb?a=1#rc=5&rp=all", MESSAGE, "tw")
    query, _, fragment = url.partition("?")[2].partition("#")
    assert fragment == "rc=5&rp=all"
    assert attempt_ref_of(dict(parse_qsl(query))) == AttemptRef(
        MESSAGE["notification_id"], MESSAGE["message_id"], MESSAGE["tenant"], MESSAGE["lane"], MESSAGE["attempt"]
    )
    assert "49151" not in url


@pytest.mark.parametrize(
    "wrong",
    [
        {"message_id": "x"},
        {"message_id": MESSAGE["message_id"].upper()},
        {"notification_id": MESSAGE["message_id"]},
        {"notification_id": ""},
        {"tenant": "a:b"},
        {"tenant": ""},
        {"lane": "slow"},
        {"attempt": "-1"},
        {"attempt": "٣"},
        {"attempt": "12345"},
    ],
)
def test_a_query_that_cannot_be_ours_is_about_nothing(wrong: dict[str, str]) -> None:
    query = dict(parse_qsl(urlsplit(URL).query))
    assert attempt_ref_of(query) is not None
    assert attempt_ref_of({**query, **wrong}) is None
    assert attempt_ref_of({name: value for name, value in query.items() if name not in wrong}) is None
    assert message_id_of({}) is None


# ---------------------------------------------------------------- what becomes of it


async def test_a_delivery_is_a_receipt_with_its_bytes_and_a_fact_about_the_message() -> None:
    client = CallbackClient()
    answer = await client.tell()
    assert (answer.status_code, answer.content) == (204, b"")
    (receipt,), (status,) = client.broker.values(RECEIPTS), client.broker.values(STATUS)
    assert receipt["raw"] == urlencode(fields()).encode()
    assert (receipt["provider"], receipt["provider_message_id"], receipt["state"]) == ("tw", "SM1", "delivered")
    assert receipt["message_id"] == MESSAGE["message_id"]
    assert [record.key for record in client.broker.records] == [b"tw:SM1", MESSAGE["notification_id"].encode()]
    assert status["event_id"] == ids.event_id(MESSAGE["message_id"], "delivered", 1, "SM1:delivered")
    assert (status["state"], status["reason"], status["attempt"], status["channel"]) == ("delivered", None, 1, "sms")
    assert (status["tenant"], status["lane"], status["notification_id"]) == ("t", "normal", MESSAGE["notification_id"])
    assert status["recipient"] == "addr:" + ids.address_hash("sms", "+4915112345678")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("undelivered", "30003", ("undelivered", "carrier", "30003")),
        ("failed", "30008", ("undelivered", "carrier", "30008")),
        ("failed", "", ("undelivered", "carrier", "failed")),
        ("undelivered", "30005", ("bounced", "invalid_number", "30005")),
        ("failed", "21614", ("bounced", "invalid_number", "21614")),
        ("read", "", ("read", None, None)),
    ],
)
async def test_an_end_is_a_state_with_a_reason_of_the_closed_list(
    status: str, code: str, expected: tuple[str, str | None, str | None]
) -> None:
    client = CallbackClient()
    assert (await client.tell(status, ErrorCode=code)).status_code == 204
    (fact,) = client.broker.values(STATUS)
    assert (fact["state"], fact["reason"], fact["detail"]) == expected
    assert fact["reason"] is None or fact["reason"] in states().reasons[fact["state"]]


async def test_a_stop_at_the_provider_says_that_it_was_one() -> None:
    client = CallbackClient()
    await client.tell("undelivered", ErrorCode="21610")
    (fact,) = client.broker.values(STATUS)
    assert (fact["state"], fact["reason"], fact["opted_out"]) == ("bounced", "invalid_number", True)


@pytest.mark.parametrize("status", ["queued", "sent", "canceled", "a-word-of-next-year"])
async def test_news_on_the_way_is_kept_and_makes_no_status(status: str) -> None:
    client, before = CallbackClient(), counted("noted")
    assert (await client.tell(status)).status_code == 204
    assert (len(client.broker.values(RECEIPTS)), client.broker.values(STATUS)) == (1, [])
    assert client.broker.values(RECEIPTS)[0]["state"] in states().all
    assert counted("noted") == before + 1


@pytest.mark.parametrize(
    "url", [f"{PUBLIC}/callbacks/twilio", f"{PUBLIC}/callbacks/twilio?message_id={MESSAGE['message_id']}"]
)
async def test_a_delivery_of_nothing_we_can_name_is_kept_and_counted(url: str) -> None:
    client, before = CallbackClient(), counted("no_message")
    assert (await client.tell(url=url)).status_code == 204
    assert (len(client.broker.values(RECEIPTS)), client.broker.values(STATUS)) == (1, [])
    assert counted("no_message") == before + 1


async def test_the_same_news_again_is_answered_and_not_published_again() -> None:
    client, before = CallbackClient(), counted("repeated")
    assert [(await client.tell()).status_code for _ in range(3)] == [204] * 3
    assert len(client.broker.records) == 2
    assert counted("repeated") == before + 2
    await client.tell("undelivered", ErrorCode="30003")
    assert len(client.broker.records) == 4


async def test_what_is_forgotten_is_published_again_under_its_ids() -> None:
    client = CallbackClient(remembered=1)
    for sid in ("SM1", "SM2", "SM1"):
        await client.tell(MessageSid=sid)
    statuses = [status["event_id"] for status in client.broker.values(STATUS)]
    receipts = [receipt["event_id"] for receipt in client.broker.values(RECEIPTS)]
    assert (statuses[0], receipts[0]) == (statuses[2], receipts[2])
    assert (len(set(statuses)), len(set(receipts))) == (2, 2)


@pytest.mark.parametrize(
    ("more", "stops"),
    [({"Body": "Stop"}, True), ({"Body": "AUS", "OptOutType": "STOP"}, True), ({"Body": "Hi, stop by at 5?"}, False)],
)
async def test_an_incoming_stop_is_about_its_number_and_nothing_of_other_messages_is_kept(
    more: dict[str, str], stops: bool
) -> None:
    client, form = CallbackClient(), {**fields(), "SmsStatus": "received", "From": "+4915112345678", **more}
    del form["MessageStatus"]
    url = f"{PUBLIC}/callbacks/twilio"
    assert (await client.post(form, signed(form, url), url)).status_code == 204
    receipts = client.broker.values(RECEIPTS)
    assert [(r["state"], r["message_id"], r["raw"], r["channel"]) for r in receipts] == [
        ("unsubscribed", None, b"", "sms")
    ] * stops
    assert client.broker.values(STATUS) == []


# ---------------------------------------------------------------- who may tell


@pytest.mark.parametrize("token", [TOKEN, NEXT_TOKEN])
async def test_either_token_of_an_account_is_good(token: str) -> None:
    client = CallbackClient()
    assert (await client.tell(token=token)).status_code == 204
    assert client.broker.values(RECEIPTS)[0]["provider"] == "tw"  # whoever signed: the account that sent it


@pytest.mark.parametrize("url", [URL.replace(PUBLIC, PUBLIC + ":443"), URL])
async def test_the_port_of_the_scheme_may_be_signed_or_not(url: str) -> None:
    form = fields()
    assert (await CallbackClient().post(form, signed(form, url))).status_code == 204


async def test_a_fragment_may_be_signed_or_not() -> None:
    base = f"{PUBLIC}/callbacks/twilio#rc=5"
    vendors = create_report_readers([account("tw", auth_token=TOKEN, callback_url=base)])
    client, form = CallbackClient(), fields()
    client.app = create_app(vendors, CallbackEndpoint(client.broker, PUBLIC, client.clock))
    for url in (URL, URL + "#rc=5"):
        assert (await client.post(form, signed(form, url))).status_code == 204
    assert (await client.post(form, signed(form, URL + "#rc=1"))).status_code == 403


@pytest.mark.parametrize(
    ("headers", "form", "url"),
    [
        ({"X-Twilio-Signature": "wrong"}, {}, URL),
        ({"X-Twilio-Signature": ""}, {}, URL),
        ({"X-Twilio-Signature": "\u00e9"}, {}, URL),
        (signed(fields(), token=OTHER_TOKEN), {}, URL),
        (signed(fields(), token="revoked"), {}, URL),
        (signed(fields("sent")), {}, URL),
        (signed(fields()), {"ErrorCode": "30003"}, URL),
        (signed(fields()), {}, URL.replace("tenant=t", "tenant=u")),
        (signed(fields(), URL.replace(PUBLIC, "http://10.0.0.7:8088")), {}, URL),
        (signed(fields(), URL.replace("https", "http")), {}, URL),
    ],
    ids=[
        "made up",
        "empty",
        "not ASCII",
        "another account's token",
        "a stale token",
        "of another status",
        "a field added",
        "another tenant",
        "over the Host header",
        "over another scheme",
    ],
)
async def test_what_the_account_did_not_sign_is_refused_and_counted(
    headers: dict[str, str], form: dict[str, str], url: str
) -> None:
    client, before = CallbackClient(), counted("forged")
    given = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    raw = {name: value.encode("latin-1") for name, value in given.items()}
    answer = await client.post({**fields(), **form}, raw, url)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (403, "wrong_signature")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (client.broker.records, counted("forged")) == ([], before + 1)


async def test_another_accounts_word_about_itself_is_its_own() -> None:
    client = CallbackClient()
    assert (await client.tell(token=OTHER_TOKEN, AccountSid=OTHER_SID)).status_code == 204
    assert client.broker.values(RECEIPTS)[0]["provider"] == "tw-other"  # though the URL names tw


async def test_account_that_is_not_configured_is_refused() -> None:
    client, before = CallbackClient(), counted("unknown_account")
    answer = await client.tell(AccountSid="AC" + "9" * 32)
    assert (answer.status_code, answer.json()["code"]) == (403, "unknown_account")
    assert counted("unknown_account") == before + 1


# ---------------------------------------------------------------- what cannot be read

FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"AccountSid=%ff", {}, 400),
        (b"MessageSid=SM1", {}, 400),
        (b"a=1&" * 201, {}, 400),
        (f"AccountSid={SID}&AccountSid={SID}".encode(), {}, 400),
        (b"x" * (MAX_BODY + 1), {}, 413),
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"", {"Content-Type": ""}, 415),
        (b"", {"Content-Encoding": "gzip"}, 415),
    ],
)
async def test_what_cannot_be_read_is_a_problem_and_never_ours(
    body: bytes, headers: dict[str, str], status: int
) -> None:
    client, before = CallbackClient(), counted("malformed")
    answer = await client.post(body, {"Content-Type": FORM, **headers})
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert (client.broker.records, counted("malformed")) == ([], before + 1)


@pytest.mark.parametrize("gone", [{"MessageSid": ""}, {"MessageStatus": ""}, {"MessageSid": "S" * 65}])
async def test_signed_but_without_its_words_is_malformed(gone: dict[str, str]) -> None:
    assert (
        await CallbackClient().tell(**{**fields(), **gone, "status": gone.get("MessageStatus", "sent")})
    ).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", URL, 405), ("POST", "/callbacks/pigeon", 404), ("POST", "/callbacks/twilio/", 404), ("POST", "/", 404)],
)
async def test_elsewhere_there_is_nothing(method: str, path: str, status: int) -> None:
    answer = await CallbackClient().post({}, {"Content-Type": FORM}, path, method)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


@given(st.binary(max_size=300), st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=4))
def test_no_body_makes_it_stumble(body: bytes, form: dict[str, str]) -> None:
    client = CallbackClient()
    for given_body in (body, urlencode({**form, "AccountSid": SID}, errors="replace").encode()):
        answer = asyncio.run(client.post(given_body, {"Content-Type": FORM, "X-Twilio-Signature": "x"}))
        assert answer.status_code in (400, 403)
    assert not client.broker.records


# ---------------------------------------------------------------- the broker


async def test_nothing_is_confirmed_that_the_broker_does_not_have_and_the_retry_lands() -> None:
    client, before = CallbackClient(), counted("unavailable")
    client.broker.away = True
    answer = await client.tell()
    assert (answer.status_code, answer.json()["code"]) == (503, "broker_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert counted("unavailable") == before + 1
    client.broker.away = False
    assert (await client.tell()).status_code == 204
    assert (len(client.broker.values(RECEIPTS)), len(client.broker.values(STATUS))) == (1, 1)


async def test_callback_whose_status_failed_is_repeated_with_the_same_ids() -> None:
    class Half(Broker):
        async def send(self, records: Sequence[ProducerRecord]) -> None:
            await super().send(records)
            self.away = records[0].topic == RECEIPTS and len(self.records) == 1

    client = CallbackClient(Half())
    assert (await client.tell()).status_code == 503
    client.broker.away = False
    assert (await client.tell()).status_code == 204
    first, second = client.broker.values(RECEIPTS)
    assert first["event_id"] == second["event_id"]
    assert len(client.broker.values(STATUS)) == 1


async def test_too_many_waiting_callbacks_are_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks_app, "MAX_WAITING", 1)
    release = asyncio.Event()

    class Slow(Broker):
        async def send(self, records: Sequence[ProducerRecord]) -> None:
            await release.wait()
            await super().send(records)

    client = CallbackClient(Slow())
    first = asyncio.create_task(client.tell())
    await asyncio.sleep(0.05)
    assert (await client.tell(MessageSid="SM2")).status_code == 503
    release.set()
    assert (await first).status_code == 204
    assert (await client.tell(MessageSid="SM2")).status_code == 204


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "url", [None, "", "notify.shop.example", "ftp://x", "https://", "https://x:y", "https://x/#a", "https://x/?a=1"]
)
def test_invalid_public_url_is_refused_with_an_example(url: str | None) -> None:
    with pytest.raises(SettingsError, match="HELIOGRAPH_CALLBACKS__PUBLIC_URL"):
        public_url(CallbackSettings(public_url=url))


def test_a_public_url_may_have_a_prefix() -> None:
    assert public_url(CallbackSettings(public_url="https://x.example/notify/")) == "https://x.example/notify"


def test_an_account_that_reports_elsewhere_is_named() -> None:
    urls = [f"{PUBLIC}/callbacks/twilio#rc=5", f"{PUBLIC}/elsewhere", None]
    providers = tuple(account(f"p{n}", callback_url=url) for n, url in enumerate(urls))
    assert misdirected(Settings(providers=providers), PUBLIC) == ["p1"]


def test_a_token_comes_from_its_file_or_the_role_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(SettingsError, match="provider p: cannot read auth_token_file"):
        create_report_readers([account("p", auth_token_file=str(file))])
    file.write_text("secret\n")
    assert "twilio" in create_report_readers([account("p", auth_token_file=str(file))])
    with pytest.raises(SettingsError, match="provider p: give auth_token or auth_token_file"):
        create_report_readers([account("p")])
    with pytest.raises(SettingsError, match="provider p: account_sid: "):
        create_report_readers([account("p", account_sid=None, auth_token="x")])


# ---------------------------------------------------------------- the simulator's side


def test_the_simulator_signs_as_the_vendors_library_does() -> None:
    form = {**fields(), "Body": "ä b", "A": ""}
    assert signature(TOKEN, URL, form) == RequestValidator(TOKEN).compute_signature(URL, form)


def test_numbers_that_are_not_reached() -> None:
    assert end_of("+4915112345678") == {"MessageStatus": "delivered"}
    assert end_of("+15005553003") == {"MessageStatus": "undelivered", "ErrorCode": "30003"}
    assert end_of("+15005550006") == {"MessageStatus": "delivered"}


async def test_simulator_repeats_a_callback_until_it_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.simulator.reports.SENT_AFTER_S", 0.0)
    monkeypatch.setattr("local.simulator.reports.END_AFTER_S", 0.0)
    monkeypatch.setattr("local.simulator.callbacks._FIRST_WAIT_S", 0.01)
    client, answers = CallbackClient(), iter([0, 503, 503, 0])

    async def post(_: Callbacks, url: str, body: bytes, headers: dict[str, str]) -> int:
        trouble = next(answers, None)
        return trouble if trouble is not None else (await client.post(body, headers, url)).status_code

    monkeypatch.setattr(Callbacks, "_post", post)
    callbacks = Callbacks()
    callbacks.report(twilio_posts(Accepted(SID, TOKEN, "SM1", "+4915112345678", "+1500", URL + "#rc=5")))
    assert callbacks.pending == 2
    await asyncio.wait_for(asyncio.gather(*callbacks._tasks), 10)
    await callbacks.close()
    assert callbacks.answers == {("sent", 204): 1, ("delivered", 204): 1}
    assert [status["state"] for status in client.broker.values(STATUS)] == ["delivered"]


# ---------------------------------------------------------------- any order

STATES = st.sampled_from(["delivered", "undelivered", "bounced", "read"])


def event(state: str, attempt: int, at: int, sid: str) -> dict[str, Any]:
    """A fact as the store shows it: ours for the way there, receipts for the end."""
    ours = state in ("routed", "sending", "sent", "retrying", "unknown")
    attempt_ref = AttemptRef(MESSAGE["notification_id"], MESSAGE["message_id"], "t", "normal", attempt)
    reasons = states().reasons.get(state, ())
    report = DeliveryReport("tw", sid, f"{sid}:{state}", "sms", state, reasons[0] if reasons else None)
    fact = status_of(report, attempt_ref, NOW + at)
    if ours:
        fact["event_id"] = ids.event_id(MESSAGE["message_id"], state, attempt)
    return {
        **fact,
        "reason": fact["reason"] or "",
        "rank": states().rank.get(state, -1),
        "detail": fact["detail"] or "",
    }


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["routed", "sending", "sent", "retrying", "unknown"]), st.integers(1, 2), st.integers(0, 5)
        ),
        max_size=6,
    ),
    st.lists(st.tuples(STATES, st.integers(1, 2), st.integers(-3, 9), st.sampled_from(["SM1", "SM2"])), max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_order_and_any_repetition_of_receipts_ends_the_same(
    way: list[tuple[str, int, int]], ends: list[tuple[str, int, int, str]], rng: random.Random
) -> None:
    events = [event(state, attempt, at, "SM1") for state, attempt, at in way] + [event(*end) for end in ends]
    once = list({fact["event_id"]: fact for fact in events}.values())
    expected = rollup(MESSAGE["notification_id"], NOW, sorted(once, key=lambda fact: fact["occurred_at"]))
    shuffled = [*once, *(rng.choices(once, k=4) if once else [])]
    rng.shuffle(shuffled)
    assert rollup(MESSAGE["notification_id"], NOW, shuffled) == expected
    if once:
        (shown,) = expected["messages"]
        ranks = [fact["rank"] for fact in once if fact["rank"] >= 0]
        assert states().rank[shown["status"]] == max(ranks, default=states().rank["routed"])


# ---------------------------------------------------------------- hostile callbacks

_TEXT = st.text(max_size=30) | st.sampled_from(
    ["", "\0", "9" * 5_000, "-1", "1e999", "\u202e", "x" * 70, "delivered", "failed", SID]
)
_NAMES = (
    st.sampled_from(
        ["AccountSid", "MessageSid", "SmsSid", "MessageStatus", "SmsStatus", "ErrorCode", "To", "MessagePrice"]
    )
    | _TEXT
)
_FORMS = st.lists(st.tuples(_NAMES, _TEXT), max_size=12)
_QUERIES = st.dictionaries(
    st.sampled_from(["message_id", "notification_id", "tenant", "lane", "attempt", "provider"]) | _TEXT,
    _TEXT,
    max_size=8,
)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@given(_FORMS, _QUERIES, st.booleans())
@settings(deadline=None, max_examples=200)
def test_whatever_a_signed_callback_says_it_is_recorded_or_refused(
    form: list[tuple[str, str]], query: dict[str, str], known: bool
) -> None:
    pairs = [(_utf8(name), _utf8(value)) for name, value in form]
    if known:
        pairs = [*fields().items(), *(pair for pair in pairs if pair[0] not in fields())]
    url = f"{URL.partition('?')[0]}?{urlencode({_utf8(n): _utf8(v) for n, v in query.items()})}" if query else URL
    many = _Form()
    for name, value in pairs:
        many.setdefault(name, []).append(value)
    headers = {**signed({}), "X-Twilio-Signature": RequestValidator(TOKEN).compute_signature(url, many)}
    client = CallbackClient()
    answer = asyncio.run(client.post(urlencode(pairs).encode(), headers, url))
    assert answer.status_code == 204 or 400 <= answer.status_code < 500
    assert len(client.broker.values(RECEIPTS)) == (answer.status_code == 204)


@given(
    st.binary(max_size=300),
    st.dictionaries(
        st.sampled_from(["x-twilio-signature", "content-type", "content-encoding", "host"]),
        st.text("abc/;=\t é\xff", max_size=20)
        | st.sampled_from(["application/x-www-form-urlencoded", "application/json"]),
    ),
)
@settings(deadline=None, max_examples=200)
def test_invalid_callback_is_refused_and_never_a_500(body: bytes, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1").strip() for name, value in headers.items()}
    client = CallbackClient()
    answer = asyncio.run(client.post(body, raw))  # type: ignore[arg-type]
    assert 400 <= answer.status_code < 500
    assert client.broker.records == []


async def test_slow_body_is_408_and_its_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks_app, "BODY_TIMEOUT_S", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/callbacks/twilio",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
    }
    await asyncio.wait_for(CallbackClient().app(scope, receive, send), 5)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]

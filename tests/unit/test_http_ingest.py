"""Ingest without sockets: the ASGI endpoint on a broker, a store and keys that do as they are told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import pytest

from api.ingest import Ingest
from api.requests import MAX_BODY_BYTES, Authenticator
from producers.acceptance import ITEMS_A_TURN, MAX_REMEMBERED, REMEMBER_S, Acceptance, RecentAcceptances
from producers.reference.catalogue import Known, TemplateCatalogue
from producers.reference.idempotency import KeyRecord, KeyReservation
from producers.reference.keys import Caller, Keys
from producers.reference.store import ReferenceStore
from runtime.errors import PublishError, UnavailableError
from runtime.http.outages import Outages
from runtime.records import ProducerRecord
from schemas.codec import codec

_BODY: dict[str, Any] = {"to": {"user_id": "u1"}, "content": {"text": "hello"}, "channels": ["sms"]}


class FakeKeys:
    async def find(self, text: str) -> Caller | None:
        if text == "unknown-store-down":
            raise UnavailableError("PostgreSQL does not answer")
        return Caller(text.removeprefix("key-of-"), "id") if text.startswith("key-of-") else None


class FakeBroker:
    def __init__(self) -> None:
        self.records: list[ProducerRecord] = []
        self.batches = 0
        self.failures = 0
        self.hang = False

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        await asyncio.sleep(0)
        if self.hang:
            await asyncio.sleep(3600)
        if self.failures:
            self.failures -= 1
            raise PublishError("the broker did not acknowledge")
        self.batches += 1
        self.records += records


class FakeClaims:
    """A table of keys; rows stay although the process that wrote them fails."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], KeyRecord] = {}
        self.down = False
        self.claimed = 0

    async def reserve(self, claim: KeyReservation) -> KeyRecord:
        await asyncio.sleep(0)
        if self.down:
            raise UnavailableError("PostgreSQL does not answer")
        self.claimed += 1
        name = (claim.tenant, claim.key)
        if name in self.rows:
            return self.rows[name]
        self.rows[name] = KeyRecord(False, claim.notification_id, claim.body_hash, claim.accepted_at, False)
        return self.rows[name]._replace(won=True)

    async def find(self, tenant: str, key: str) -> KeyRecord | None:
        return self.rows.get((tenant, key))

    def confirm(self, tenant: str, key: str) -> None:
        self.rows[tenant, key] = self.rows[tenant, key]._replace(confirmed=True)


class FakeStore:
    """Templates of PostgreSQL."""

    def __init__(self) -> None:
        self.templates: dict[str, list[str]] = {}
        self.down = False
        self.asked = 0

    async def find_template(self, tenant: str, template_id: str, version: int | None) -> dict[str, Any] | None:
        self.asked += 1
        if self.down:
            raise UnavailableError("PostgreSQL does not answer")
        variables = self.templates.get(f"{tenant}:{template_id}")
        return None if variables is None else {"variables": variables, "updated_at": 1}


class FakeView:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def raw(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, tenant: str, template_id: str, variables: list[str], updated_at: int) -> None:
        record = {
            "tenant": tenant,
            "template_id": template_id,
            "version": 1,
            "category": "default",
            "channels": b"{}",
            "locales": b"{}",
            "variables": variables,
            "updated_at": updated_at,
        }
        self.values[f"{tenant}:{template_id}"] = codec("Template").encode(record)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


class World:
    def __init__(self) -> None:
        self.broker, self.claims, self.store, self.view = FakeBroker(), FakeClaims(), FakeStore(), FakeView()
        self.now, self.seconds = 1_767_225_600_000, 0.0
        self.templates = TemplateCatalogue(self.view, cast(ReferenceStore, self.store))
        self.recent = RecentAcceptances(lambda: self.now)
        outages = Outages(lambda: self.seconds)
        self.acceptance = Acceptance(
            broker=self.broker,
            idempotency=self.claims,
            templates=self.templates,
            recent=self.recent,
            publish_timeout_s=0.2,
            recovered=outages.over,
            clock=self.tick,
        )
        self.ingest = Ingest(Authenticator(cast(Keys, FakeKeys())), self.acceptance, outages)

    def tick(self) -> int:
        self.now += 1
        return self.now

    async def post(
        self, body: Any, *, raw: list[bytes] | None = None, path: str = "/v1/notifications", **headers: str
    ) -> Answer:
        chunks = raw if raw is not None else [json.dumps(body).encode()]
        messages = [{"type": "http.request", "body": c, "more_body": i < len(chunks)} for i, c in enumerate(chunks, 1)]
        wanted = {"authorization": "Bearer key-of-shop", "content-type": "application/json"}
        wanted |= {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {"type": "http", "path": path, "headers": [(n.encode(), v.encode()) for n, v in wanted.items()]}
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.ingest(scope, receive, send)
        start, end = sent
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], found, json.loads(end["body"]))

    def published(self) -> list[str]:
        return [codec("NotificationRequest").decode(record.value)["notification_id"] for record in self.broker.records]


@pytest.fixture
def world() -> World:
    return World()


async def test_acknowledged_request_is_202_and_remembered(world: World) -> None:
    answer = await world.post(_BODY)
    assert answer.status == 202
    assert world.published() == [answer.body["id"]]
    remembered = world.recent.find(answer.body["id"])
    assert remembered is not None
    assert remembered["tenant"] == "shop"


async def test_unacknowledged_request_is_503_and_not_remembered(world: World) -> None:
    world.broker.failures = 1
    answer = await world.post(_BODY)
    assert (answer.status, answer.body["code"], answer.headers["retry-after"]) == (503, "kafka_unavailable", "1")
    assert not world.recent._entries


async def test_broker_that_never_answers_is_503(world: World) -> None:
    world.broker.hang = True
    world.acceptance._batcher._timeout_s = 0.05
    assert (await world.post(_BODY)).status == 503


async def test_race_of_one_key_publishes_once_and_all_get_the_same_id(world: World) -> None:
    answers = await asyncio.gather(*(world.post(_BODY, idempotency_key="k") for _ in range(50)))
    assert {a.status for a in answers} == {202}
    assert len({a.body["id"] for a in answers}) == 1
    assert Counter("idempotent-replayed" in a.headers for a in answers) == {True: 49, False: 1}
    assert len(world.broker.records) == world.claims.claimed == 1


async def test_race_of_two_bodies_gives_one_of_them_the_key(world: World) -> None:
    other = {**_BODY, "content": {"text": "other"}}
    answers = await asyncio.gather(*(world.post(body, idempotency_key="k") for body in [_BODY, other] * 10))
    assert sorted(a.status for a in answers) == [202] * 10 + [409] * 10
    assert len(world.broker.records) == 1


async def test_row_without_a_confirmation_is_published_again_with_its_id(world: World) -> None:
    world.broker.failures = 1
    assert (await world.post(_BODY, idempotency_key="k")).status == 503
    again = await world.post(_BODY, idempotency_key="k")
    assert again.status == 202
    assert world.published() == [again.body["id"]] == [world.claims.rows["shop", "k"].notification_id]
    third = await world.post(_BODY, idempotency_key="k")
    assert third.body == again.body
    assert len(world.broker.records) == 1


async def test_failed_flight_fails_those_who_waited_for_it_and_frees_the_key(world: World) -> None:
    world.broker.failures = 1
    answers = await asyncio.gather(*(world.post(_BODY, idempotency_key="k") for _ in range(5)))
    assert {a.status for a in answers} == {503}
    assert (await world.post(_BODY, idempotency_key="k")).status == 202


async def test_keyed_request_without_postgres_is_503_and_nothing_is_published(world: World) -> None:
    world.claims.down = True
    answer = await world.post(_BODY, idempotency_key="k")
    assert (answer.status, answer.body["code"]) == (503, "store_unavailable")
    assert world.broker.records == []
    assert (await world.post(_BODY)).status == 202


async def test_retry_after_grows_while_postgres_is_away_and_not_afterwards(world: World) -> None:
    async def asked() -> str:
        return (await world.post(_BODY, idempotency_key="k")).headers["retry-after"]

    world.claims.down = True
    waits = []
    for world.seconds in (0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 350.0):
        waits.append(int(await asked()))
    assert waits == [1, 5, 10, 15, 20, 25, 30, 30]
    world.claims.down = False
    assert (await world.post(_BODY, idempotency_key="k")).status == 202
    world.claims.down = True
    assert await asked() == "1"


async def test_key_in_the_body_is_the_key_in_the_header_and_a_different_one_is_refused(world: World) -> None:
    first = await world.post(_BODY, idempotency_key="k")
    assert (await world.post({**_BODY, "request_id": "k"})).body["id"] == first.body["id"]
    assert (await world.post({**_BODY, "request_id": "k"}, idempotency_key="k")).body["id"] == first.body["id"]
    assert (await world.post({**_BODY, "request_id": "j"}, idempotency_key="k")).status == 400


async def test_number_of_another_spelling_is_the_same_body(world: World) -> None:
    texts = [b'{"to":{"user_id":"u"},"content":{"text":"x"},"data":{"n":%s}}' % n for n in (b"1", b"1.0", b"1e0")]
    answers = [await world.post(None, raw=[text], idempotency_key="k") for text in texts]
    assert len({a.body["id"] for a in answers}) == 1


async def test_template_unknown_to_the_view_is_looked_up_in_postgres(world: World) -> None:
    body = {"to": {"user_id": "u"}, "template": {"id": "t"}, "data": {"a": 1}}
    unknown = await world.post(body)
    assert (unknown.status, unknown.body["code"]) == (400, "unknown_template")
    world.store.templates["shop:t"] = ["a"]
    assert (await world.post(body)).status == 202
    assert (await world.post({**body, "data": {}})).body["code"] == "missing_variable"
    assert (await world.post(body, authorization="Bearer key-of-other")).status == 400


async def test_template_of_the_view_needs_no_postgres(world: World) -> None:
    world.store.down = True
    world.view.put("shop", "t", [], 5)
    assert (await world.post({"to": {"user_id": "u"}, "template": {"id": "t"}})).status == 202
    assert (await world.post({"to": {"user_id": "u"}, "template": {"id": "unseen"}})).status == 503


async def test_own_write_counts_until_the_view_has_it(world: World) -> None:
    world.view.put("shop", "t", ["old"], 5)
    row = {"tenant": "shop", "template_id": "t", "version": 2, "variables": ["new"], "updated_at": 7}
    world.templates.wrote(row, published=True)
    assert world.templates.find("shop:t") == Known(("new",), 7)
    world.view.put("shop", "t", ["later"], 8)
    assert world.templates.find("shop:t") == Known(("later",), 8)


async def test_accepted_key_is_answered_although_its_template_changed_since(world: World) -> None:
    world.store.templates["shop:t"] = []
    body = {"to": {"user_id": "u"}, "template": {"id": "t"}}
    first = await world.post(body, idempotency_key="k")
    world.store.templates["shop:t"] = ["more"]
    again = await world.post(body, idempotency_key="k")
    assert (again.status, again.body["id"]) == (202, first.body["id"])
    assert (await world.post(body, idempotency_key="another")).status == 400


async def test_refused_template_does_not_use_up_the_key(world: World) -> None:
    body = {"to": {"user_id": "u"}, "template": {"id": "t"}}
    assert (await world.post(body, idempotency_key="k")).status == 400
    assert (await world.post(_BODY, idempotency_key="k")).status == 202


async def test_key_that_nobody_can_check_is_503(world: World) -> None:
    assert (await world.post(_BODY, authorization="Bearer unknown-store-down")).status == 503


async def test_body_in_pieces_is_limited_as_a_whole(world: World) -> None:
    text = json.dumps(_BODY).encode()
    assert (await world.post(None, raw=[text[:10], text[10:20], text[20:]])).status == 202
    too_large = await world.post(None, raw=[b" " * 200_000, b" " * (MAX_BODY_BYTES - 200_000 + 1)])
    assert too_large.status == 413
    assert (await world.post(None, raw=[b" "], content_length=str(MAX_BODY_BYTES + 1))).status == 413


@pytest.mark.parametrize("header", ["", "00-zz-1-01", "00-" + "A" * 32 + "-" + "b" * 16 + "-01"])
async def test_malformed_traceparent_is_dropped(world: World, header: str) -> None:
    assert (await world.post(_BODY, traceparent=header)).status == 202
    assert "traceparent" not in dict(world.broker.records[0].headers)


def test_acceptances_are_forgotten_by_age_and_by_number() -> None:
    now = [0]
    recent = RecentAcceptances(lambda: now[0])
    recent.add("old", "t", 0, "normal")
    now[0] = REMEMBER_S * 1_000 + 1
    assert recent.find("old") is None
    for number in range(MAX_REMEMBERED + 10):
        recent.add(str(number), "t", 0, "normal")
    assert len(recent._entries) == MAX_REMEMBERED
    assert recent.find("9") is None
    assert recent.find("10") is not None


BULK = "/v1/notifications/bulk"


async def test_bulk_answers_each_item_and_publishes_one_batch(world: World) -> None:
    items = [_BODY, {**_BODY, "to": {"email": "nobody"}}, 7, {**_BODY, "template": {"id": "t"}}, _BODY]
    answer = await world.post({"notifications": items}, path=BULK)
    results = answer.body["results"]
    assert answer.status == 202
    assert [(r["index"], r["status"]) for r in results] == list(
        enumerate(["accepted", "refused", "refused", "refused", "accepted"])
    )
    assert world.published() == [results[0]["id"], results[4]["id"]]
    assert world.broker.batches == 1
    assert results[1]["error"]["errors"][0]["pointer"] == "/notifications/1/to/email"
    assert results[2]["error"]["errors"][0]["pointer"] == "/notifications/2"
    assert {r["error"]["status"] for r in results[1:4]} == {400}


async def test_thousand_items_are_a_batch_a_turn_and_one_more_is_refused(world: World) -> None:
    item = {"to": {"user_id": "u"}, "content": {"text": "x"}, "channels": ["sms"]}
    answer = await world.post({"notifications": [item] * 1000}, path=BULK)
    assert len({r["id"] for r in answer.body["results"]}) == 1000
    assert world.broker.batches <= 1000 / ITEMS_A_TURN
    too_many = await world.post({"notifications": [item] * 1001}, path=BULK)
    assert (too_many.status, too_many.body["errors"][0]["pointer"]) == (400, "/notifications")
    assert (await world.post({"notifications": []}, path=BULK)).status == 400


@pytest.mark.parametrize("body", [{}, [], {"notifications": [], "colour": 1}, {"notifications": {}}])
async def test_bulk_of_another_shape_is_400(world: World, body: Any) -> None:
    assert (await world.post(body, path=BULK)).status == 400


async def test_bulk_again_with_request_ids_gives_the_same_ids(world: World) -> None:
    bulk = {"notifications": [{**_BODY, "request_id": f"r{n}"} for n in range(3)]}
    first, again = [(await world.post(bulk, path=BULK)).body["results"] for _ in range(2)]
    assert first == again
    assert len(world.broker.records) == 3
    assert (await world.post(_BODY, idempotency_key="r1")).body["id"] == first[1]["id"]
    changed = {"notifications": [{**_BODY, "content": {"text": "other"}, "request_id": "r1"}]}
    (conflict,) = (await world.post(changed, path=BULK)).body["results"]
    assert (conflict["error"]["status"], conflict["error"]["code"]) == (409, "idempotency_conflict")


async def test_request_id_twice_in_a_bulk_is_one_notification(world: World) -> None:
    item = {**_BODY, "request_id": "same"}
    results = (await world.post({"notifications": [item, item]}, path=BULK)).body["results"]
    assert results[0]["id"] == results[1]["id"]
    assert len(world.broker.records) == 1


async def test_idempotency_key_of_several_notifications_is_refused(world: World) -> None:
    assert (await world.post({"notifications": [_BODY]}, path=BULK, idempotency_key="k")).status == 400
    assert (await world.post({**_BODY, "to": [_BODY["to"]]}, idempotency_key="k")).status == 400
    shared = await world.post({**_BODY, "to": [_BODY["to"]], "request_id": "k"})
    assert (shared.status, shared.body["errors"][0]["pointer"]) == (400, "/request_id")
    assert world.broker.records == []


async def test_array_of_recipients_is_one_notification_each(world: World) -> None:
    answer = await world.post({**_BODY, "to": [{"user_id": "a"}, {"email": "nobody"}, {"phone": "+4915112345678"}]})
    results = answer.body["results"]
    assert (answer.status, [r["status"] for r in results]) == (202, ["accepted", "refused", "accepted"])
    assert results[1]["error"]["errors"][0]["pointer"] == "/to/1/email"
    users = [codec("NotificationRequest").decode(record.value)["user_id"] for record in world.broker.records]
    assert (users, world.broker.batches) == (["a", None], 1)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"category": "a b"}, "/category"),
        ({"to": []}, "/to"),
        ({"content": {"title": "x"}}, ""),
        ({"colour": 1}, "/colour"),
    ],
)
async def test_what_recipients_share_is_wrong_for_the_whole_call(
    world: World, change: dict[str, Any], pointer: str
) -> None:
    answer = await world.post({**_BODY, "to": [{"user_id": "a"}, {"email": "nobody"}], **change})
    assert (answer.status, [e["pointer"] for e in answer.body["errors"]]) == (400, [pointer])
    assert world.broker.records == []


async def test_bulk_that_the_broker_does_not_confirm_is_503_as_a_whole(world: World) -> None:
    world.broker.failures = 1
    answer = await world.post({"notifications": [_BODY, _BODY]}, path=BULK)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    world.broker.failures = 1
    mixed = await world.post({"notifications": [_BODY, 7]}, path=BULK)
    assert (mixed.status, [r["error"]["status"] for r in mixed.body["results"]]) == (202, [503, 400])


async def test_items_of_one_unknown_template_ask_the_store_once_a_turn(world: World) -> None:
    world.store.templates["shop:t"] = []
    item = {"to": {"user_id": "u"}, "template": {"id": "t"}}
    results = (await world.post({"notifications": [item] * 200}, path=BULK)).body["results"]
    assert {r["status"] for r in results} == {"accepted"}
    assert world.store.asked <= 200 / ITEMS_A_TURN


async def test_large_body_for_many_recipients_is_refused_before_it_is_copied(world: World) -> None:
    body = {**_BODY, "content": {"text": "x" * 200_000}, "to": [{"user_id": "u"}] * 500}
    answer = await world.post(body)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (413, "/to")
    assert (await world.post({**body, "to": [{"user_id": "u"}] * 100})).status == 202


@pytest.mark.parametrize("written", ["k-1", " k-1", "k-1 ", "\t k-1 \t"])
async def test_blanks_around_a_key_are_none_of_it(written: str) -> None:
    world = World()
    first = await world.post(_BODY, idempotency_key="k-1")
    again = await world.post(_BODY, idempotency_key=written)
    assert (again.status, again.body["id"]) == (202, first.body["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert (await world.post({**_BODY, "request_id": "k-1"}, idempotency_key=written)).status == 202, "the same key"
    assert (await world.post(_BODY, idempotency_key=written.replace("-", " "))).status == 400, "a blank within is"

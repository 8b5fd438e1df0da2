"""Pure parts of the reference data: records, keys, what the relay publishes of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from pydantic_core import from_json

from local.simulator import webpush
from producers.reference.inputs import NewSuppression, NewUser
from producers.reference.keys import hash_secret, parse_key
from producers.reference.propagation import Propagation
from producers.reference.records import profile_row, suppression_row, template_rows
from producers.reference.relay import Relay, last_per_key
from producers.reference.schema import _yoyo_uri
from producers.reference.set_aside import RETRY_S, OutboxEntry, SetAside
from runtime.errors import SettingsError, TooLargeError
from runtime.records import ProducerRecord
from runtime.settings import Settings
from schemas.codec import codec
from schemas.topics import RECIPIENTS, SUPPRESSIONS, TEMPLATES

_ENTRIES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.binary(max_size=2) | st.none()))


@given(_ENTRIES)
def test_batch_leaves_every_key_at_its_last_value_and_shows_no_other(rows: list[tuple[str, str, bytes | None]]) -> None:
    entries = [OutboxEntry(number, *row) for number, row in enumerate(rows)]
    published = last_per_key(entries)
    wanted = {(topic, key.encode()): value for topic, key, value in rows}
    assert {(r.topic, r.key): r.value for r in published} == wanted
    assert len(published) == len(wanted)


class FakeTopic:
    """Takes what is not larger than its limit, as the producer tells it."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, list[ProducerRecord]()

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        refused = [r for r in records if len(r.value or b"") > self.limit]
        self.taken += [r for r in records if r not in refused]
        if refused:
            raise TooLargeError("too large", refused)


class FakeTables:
    """Remembers what is asked of it; every table is empty."""

    rowcount = 0

    def __init__(self) -> None:
        self.statements = list[str]()

    def cursor(self, **_: Any) -> FakeTables:
        return self

    async def execute(self, statement: str, _: Sequence[Any] = ()) -> FakeTables:
        self.statements.append(statement)
        return self

    async def fetchone(self) -> int:
        return 0


def test_old_keys_are_forgotten_at_the_start_and_every_hour_however_young_the_machine_is() -> None:
    now, tables = [1.0], FakeTables()
    relay = Relay(Settings(), asyncio.Event(), FakeTopic(1), monotonic=lambda: now[0])

    def purged() -> int:
        tables.statements.clear()
        asyncio.run(relay._look_after(tables))  # type: ignore[arg-type]
        return sum(statement.startswith("DELETE FROM idempotency_keys") for statement in tables.statements)

    assert purged() == 1
    assert purged() == 0
    now[0] += 3_601
    assert purged() == 1


class FakeOutbox:
    """The two statements of the relay on a list."""

    def __init__(self, rows: Iterable[OutboxEntry], batch: int) -> None:
        self.rows, self.batch, self._found = list(rows), batch, list[OutboxEntry]()

    async def execute(self, statement: str, values: Sequence[Any]) -> FakeOutbox:
        if statement.startswith("DELETE"):
            self.rows = [row for row in self.rows if row.id not in values[0]]
        else:
            assert "id <> ALL" in statement
            self._found = [row for row in self.rows if row.id not in values[0]][: self.batch]
        return self

    async def fetchall(self) -> list[OutboxEntry]:
        return self._found


_SIZED = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9) | st.none()), max_size=40)


def _row(id_: int, key: str, size: int | None) -> OutboxEntry:
    return OutboxEntry(id_, RECIPIENTS, key, None if size is None else id_.to_bytes(1, "big") + b"v" * size)


@given(first=_SIZED, later=_SIZED, limit=st.integers(1, 10), batch=st.integers(1, 7))
async def test_row_that_kafka_refuses_for_its_size_holds_up_no_other_and_follows_when_it_may(
    first: list[tuple[str, int | None]], later: list[tuple[str, int | None]], limit: int, batch: int
) -> None:
    topic, now = FakeTopic(limit), [100.0]
    relay = Relay(Settings(), asyncio.Event(), topic, monotonic=lambda: now[0])
    made = [_row(id_, *each) for id_, each in enumerate([*first, *later], 1)]
    outbox = FakeOutbox([], batch)

    async def publish(rows: Sequence[OutboxEntry]) -> dict[str, bytes | None]:
        outbox.rows += rows
        for _ in range(2 * len(made) + 2):
            await relay._publish_batch(outbox)  # type: ignore[arg-type]
        assert relay.set_aside.count() == len(outbox.rows)
        assert (relay.set_aside.trouble() is None) == (not outbox.rows)
        return {(record.key or b"").decode(): record.value for record in topic.taken}

    def newest(rows: Sequence[OutboxEntry]) -> dict[str, bytes | None]:
        return {row.key: row.value for row in rows if len(row.value or b"") <= topic.limit}

    assert await publish(made[: len(first)]) == newest(made[: len(first)]), "what fits is out"
    assert await publish(made[len(first) :]) == newest(made)
    assert all(len(row.value or b"") > limit for row in outbox.rows), "and nothing else waits"
    topic.limit = 10
    now[0] += RETRY_S
    assert await publish([]) == newest(made)
    assert outbox.rows == [], "all follow at once"
    for key in "abcd":
        values = [record.value for record in topic.taken if record.key == key.encode() and record.value is not None]
        assert [value[0] for value in values] == sorted(value[0] for value in values), (
            "never an older after a newer one"
        )


def test_many_rows_that_are_set_aside_are_tried_again_by_the_smallest() -> None:
    aside = SetAside()
    rows = [_row(id_, f"k{id_}", 300 - id_) for id_ in range(1, 200)]
    assert aside.refused(rows, now_s=0) == rows
    assert len(aside.ids_to_skip(RETRY_S - 1)) == 199
    tried = {row.id for row in rows} - set(aside.ids_to_skip(RETRY_S))
    assert tried == set(range(180, 200)), "a request each, the smallest first"
    assert aside.refused([rows[-1]], RETRY_S) == [], "told once"
    aside.forget(aside.done(rows[-3:-1]))
    assert aside.count() == 197, "the limit is still too low for others"
    tried = {row.id for row in rows} - set(aside.ids_to_skip(2 * RETRY_S))
    aside.forget(aside.done([row for row in rows if row.id in tried]))
    assert aside.count() == 0, "all that were tried went out: so may the rest"


def test_profile_has_the_keys_of_the_contract() -> None:
    user = {
        "tenant": "shop",
        "user_id": "u1",
        "name": None,
        "email": "a@x.de",
        "phone": None,
        "locale": "de",
        "time_zone": None,
        "devices": [{"platform": "webpush", "subscription": {"endpoint": "https://x"}}],
        "version": 3,
        "updated_at": 5,
    }
    row = profile_row(user, {"channels": {"sms": False}, "categories": {"ads": {"email": False}}})
    assert (row.topic, row.key) == (RECIPIENTS, "shop:u1")
    record = codec("RecipientProfile").decode(row.value)
    assert record["devices"] == [{"platform": "webpush", "token": None, "subscription": b'{"endpoint":"https://x"}'}]
    assert record["categories"] == {"ads": {"email": False}}


def test_template_stands_under_its_version_and_published_under_its_id() -> None:
    version = {
        "tenant": "shop",
        "template_id": "t",
        "version": 2,
        "category": "c",
        "variables": ["a"],
        "channels": {"sms": {"text": "é"}},
        "locales": {},
    }

    def keys(new: bool, published: bool) -> list[str]:
        rows = template_rows(version, new=new, published=published, updated_at=1)
        assert {row.topic for row in rows} <= {TEMPLATES}
        return [row.key for row in rows]

    assert keys(True, True) == ["shop:t:2", "shop:t"]
    assert keys(True, False) == ["shop:t:2"]
    assert keys(False, True) == ["shop:t"]


def test_suppression_is_published_without_its_address() -> None:
    row = suppression_row(
        {
            "suppression_id": "0193e7a0-0000-7000-8000-000000000000",
            "tenant": "shop",
            "channel": "email",
            "address_hash": "ab",
            "address": "secret@x.de",
            "reason": "manual",
            "expires_at": None,
            "created_at": 1,
        }
    )
    assert (row.topic, row.key) == (SUPPRESSIONS, "shop:email:ab")
    assert row.value is not None
    assert b"secret" not in row.value


@pytest.mark.parametrize(
    "text", ["", "hg_", "hg_abc_def", "hg_" + "a" * 16 + "_" + "b" * 42, "xx_" + "a" * 16 + "_" + "b" * 43]
)
def test_text_without_the_form_of_a_key_is_none(text: str) -> None:
    assert parse_key(text) is None


def test_secret_is_stored_under_the_pepper_and_a_missing_pepper_is_refused() -> None:
    assert hash_secret(SecretStr("p"), "s") != hash_secret(SecretStr("q"), "s")
    with pytest.raises(SettingsError, match="KEY_PEPPER"):
        hash_secret(SecretStr(""), "s")


@pytest.mark.parametrize(
    ("dsn", "uri"),
    [
        ("postgresql://u:p%40ss@h:5/d?sslmode=require", "postgresql+psycopg://u:p%40ss@h:5/d?sslmode=require"),
        ("host=/run/pg user=u dbname=d", "postgresql+psycopg://u:@/d?host=%2Frun%2Fpg"),
    ],
)
def test_any_connection_string_becomes_the_url_of_the_migrations(dsn: str, uri: str) -> None:
    assert _yoyo_uri(dsn) == uri


@pytest.mark.parametrize(
    "devices",
    [
        [{"platform": "fcm"}],
        [{"platform": "webpush", "token": "t"}],
        [{"platform": "webpush", "subscription": {"endpoint": "http://plain", "keys": {}}}],
        [{"platform": "webpush", "subscription": {"endpoint": "https://push.example/x", "keys": {}}}],
        [{"platform": "fcm", "token": "t", "subscription": {}}],
    ],
)
def test_device_without_its_address_is_refused(devices: list[object]) -> None:
    with pytest.raises(ValidationError):
        NewUser.model_validate({"id": "u", "devices": devices})


def test_subscription_is_kept_as_what_a_push_needs_of_it() -> None:
    browser = webpush.subscription("https://push.example", "b")
    keys = {"p256dh": f"{browser.p256dh}=", "auth": f"{browser.auth}==", "other": 1}
    given = {"endpoint": browser.endpoint, "expirationTime": None, "keys": keys}
    user = NewUser.model_validate({"id": "u", "devices": [{"platform": "webpush", "subscription": given}]})
    (kept,) = user.fields()["devices"]
    assert kept == {"platform": "webpush", "subscription": from_json(browser.address)}


def test_suppressed_address_must_be_one_of_its_channel() -> None:
    with pytest.raises(ValidationError):
        NewSuppression.model_validate({"channel": "sms", "address": "a@x.de"})


async def test_those_who_wait_for_the_relay_share_one_look() -> None:
    looks: list[list[int]] = []

    async def unpublished(ids: Iterable[int]) -> set[int]:
        looks.append(sorted(ids))
        return {3} if len(looks) < 3 else set()

    propagation = Propagation(unpublished)
    await asyncio.gather(*(propagation.wait(number) for number in (1, 2, 3)))
    assert looks == [[1, 2, 3], [3], [3]]
    await propagation.wait(None)

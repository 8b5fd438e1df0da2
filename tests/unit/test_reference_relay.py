"""Pure parts of the reference data: records, keys, what the relay publishes of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from producers.http.propagation import Propagation
from producers.http.reference import NewUser
from producers.http.suppressions import NewSuppression
from producers.reference.keys import hash_secret, parse_key
from producers.reference.records import profile_row, suppression_row, template_rows
from producers.reference.relay import OutboxEntry, last_per_key
from producers.reference.schema import _yoyo_uri
from runtime.errors import SettingsError
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


def test_profile_has_the_keys_of_the_contract() -> None:
    user = {
        "tenant": "shop", "user_id": "u1", "name": None, "email": "a@x.de", "phone": None, "locale": "de", "time_zone": None,
        "devices": [{"platform": "webpush", "subscription": {"endpoint": "https://x"}}], "version": 3, "updated_at": 5,
    }  # fmt: skip
    row = profile_row(user, {"channels": {"sms": False}, "categories": {"ads": {"email": False}}})
    assert (row.topic, row.key) == (RECIPIENTS, "shop:u1")
    record = codec("RecipientProfile").decode(row.value)
    assert record["devices"] == [{"platform": "webpush", "token": None, "subscription": b'{"endpoint":"https://x"}'}]
    assert record["categories"] == {"ads": {"email": False}}


def test_template_stands_under_its_version_and_published_under_its_id() -> None:
    version = {
        "tenant": "shop", "template_id": "t", "version": 2, "category": "c", "variables": ["a"], "channels": {"sms": {"text": "é"}},
        "locales": {},
    }  # fmt: skip

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
            "suppression_id": "0193e7a0-0000-7000-8000-000000000000", "tenant": "shop", "channel": "email", "address_hash": "ab",
            "address": "secret@x.de", "reason": "manual", "expires_at": None, "created_at": 1,
        }
    )  # fmt: skip
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
        [{"platform": "fcm", "token": "t", "subscription": {}}],
    ],
)
def test_device_without_its_address_is_refused(devices: list[object]) -> None:
    with pytest.raises(ValidationError):
        NewUser.model_validate({"id": "u", "devices": devices})


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

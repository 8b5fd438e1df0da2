"""Ids are pure functions of their causes."""

from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import ids
from schemas.identity import check_tenant, hour_of

_TIMES = st.integers(0, (1 << 48) - 1)


@given(_TIMES)
def test_notification_id_is_a_uuid7_of_its_time(accepted_at: int) -> None:
    parsed = UUID(ids.notification_id(accepted_at, "t"))
    assert parsed.version == 7
    assert parsed.variant == "specified in RFC 4122"
    assert ids.accepted_at(str(parsed)) == accepted_at


@given(_TIMES, st.text(max_size=20), st.text(min_size=1, max_size=20))
def test_same_tenant_key_and_time_give_the_same_id(accepted_at: int, tenant: str, key: str) -> None:
    first = ids.notification_id(accepted_at, tenant, key)
    assert first == ids.notification_id(accepted_at, tenant, key)
    assert first != ids.notification_id(accepted_at, tenant + "x", key)


def test_notification_id_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="UUIDv7"):
        ids.accepted_at("9f2a7e5e-3f0b-4a53-8f43-0a5d1ed8a111")


def test_message_id_differs_by_channel_address_and_generation() -> None:
    nid = ids.notification_id(1, "t")
    made = {ids.message_id(nid, c, f, g) for c in ("email", "sms") for f in ("a", "b") for g in (0, 1)}
    assert len(made) == 8


def test_email_addresses_are_compared_without_case() -> None:
    assert ids.address_hash("email", "Ann@Example.org") == ids.address_hash("email", " ann@example.org ")
    assert ids.address_hash("push", "Token") != ids.address_hash("push", "token")


def test_request_key_is_the_user_else_the_first_address() -> None:
    assert ids.request_key("t", "u1", [("email", "a@b.c")]) == b"t:u1"
    assert ids.request_key("t", None, [("email", "a@b.c")]) == b"t:addr:" + ids.address_hash("email", "a@b.c").encode()
    with pytest.raises(ValueError, match="recipient"):
        ids.request_key("t", None, [])


@pytest.mark.parametrize("accepted_at", [0, 3_599_999, 3_600_000, 1_790_000_000_123])
def test_hour_of_a_notification_is_the_start_of_the_hour_it_was_accepted_in(accepted_at: int) -> None:
    hour = hour_of(accepted_at)
    assert hour % 3_600 == 0
    assert hour * 1_000 <= accepted_at < (hour + 3_600) * 1_000


@pytest.mark.parametrize("tenant", ["t", "shop.eu-1_x", "9" * 63])
def test_tenant_is_up_to_63_plain_characters(tenant: str) -> None:
    assert check_tenant(tenant) == tenant


@pytest.mark.parametrize("tenant", ["", ":", "a:b", ".a", "a b", "ä", "9" * 64, "a\n"])
def test_tenant_with_a_colon_or_anything_else_is_refused(tenant: str) -> None:
    with pytest.raises(ValueError, match="a tenant has"):
        check_tenant(tenant)


def test_ids_are_those_of_the_standard_library_in_every_spelling() -> None:
    nid = ids.notification_id(1_767_225_600_000, "t")
    assert str(UUID(nid)) == nid
    assert ids.event_id(nid, "sent", 2) == str(uuid5(UUID(nid), "sent:2:"))
    assert ids.receipt_id("p", "m", "e") == str(uuid5(UUID(int=0), "receipt:p:m:e"))
    spellings = [nid.upper(), f"{{{nid}}}", f"urn:uuid:{nid}", nid.replace("-", ""), nid + "-" * 100_000]
    for spelling in spellings:
        assert ids.accepted_at(spelling) == 1_767_225_600_000
        assert not ids.is_canonical(spelling)
        assert ids.canonical(spelling) == nid
        assert ids.message_id(spelling, "email", "f") == ids.message_id(nid, "email", "f")
    assert not ids.is_canonical("    " + nid[4:])  # int() passes over spaces, and UUID() with it
    for junk in ("", "x" * 36, nid[:-1] + "g", "-" * 36):
        with pytest.raises(ValueError, match=r"UUID|invalid literal"):
            ids.accepted_at(junk)

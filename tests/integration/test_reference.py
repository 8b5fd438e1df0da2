"""Reference data: over HTTP into PostgreSQL, and from its outbox to the compacted topics, whoever is killed on the way."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from producers.reference.keys import create_api_key, ensure_local_key, parse_key, revoke_api_key
from producers.reference.relay import _LOCK
from producers.reference.schema import migrate
from runtime import ids
from runtime.errors import UnavailableError
from schemas.codec import codec
from schemas.events import RecordName
from schemas.topics import RECIPIENTS, SUPPRESSIONS, TEMPLATES
from tests.integration.conftest import until
from tests.integration.reference_stack import PEPPER, Api, World, end, postgres, world

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]


@pytest.fixture(scope="module", autouse=True)
def api(world: World) -> Iterator[Api]:
    world.run("api")
    world.wait_ready()
    yield world.api


@pytest.fixture
def relay(world: World) -> Iterator[subprocess.Popen[bytes]]:
    process = world.run("relay")
    until(lambda: _has_active_relay(world), 30, "an active relay")
    yield process
    if process.poll() is None:
        end(process)
    world.broker.roles.remove(process)


def _has_active_relay(world: World) -> bool:
    with psycopg.connect(world.postgres.dsn) as connection:
        held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND granted"
        return connection.execute(held, (_LOCK & 0xFFFFFFFF,)).fetchone() is not None


def _latest(world: World, topic: str) -> dict[str, Any]:
    """Key → the last record, decoded."""
    names: dict[str, RecordName] = {RECIPIENTS: "RecipientProfile", TEMPLATES: "Template", SUPPRESSIONS: "Suppression"}
    return {
        (r.key or b"").decode(): codec(names[topic]).decode(r.value)
        for r in world.records(topic)
        if r.value is not None
    }


def _pending(world: World) -> int:
    with psycopg.connect(world.postgres.dsn) as connection:
        row = connection.execute("SELECT count(*) FROM outbox").fetchone()
        return int(row[0]) if row else 0


def test_user_is_created_read_replaced_and_published(world: World, api: Api, relay: subprocess.Popen[bytes]) -> None:
    user = {
        "id": "u1",
        "name": "Jo",
        "email": "Jo@München.de",
        "phone": "+49 151 12345678",
        "locale": "de-AT",
        "time_zone": "Europe/Vienna",
        "devices": [{"platform": "fcm", "token": "tok"}],
    }
    created = api.call("POST", "/v1/users", user)
    assert created.status == 201
    assert created.headers["location"] == "/v1/users/u1"
    assert created.body["email"] == "Jo@xn--mnchen-3ya.de"
    assert created.body["phone"] == "+4915112345678"
    assert api.call("GET", "/v1/users/u1").body == created.body
    again = api.call("POST", "/v1/users", user)
    assert (again.status, again.body["code"]) == (409, "conflict")
    assert api.call("GET", "/v1/users/u1/preferences").body == {"channels": {}, "categories": {}}
    wanted = {"channels": {"sms": False}, "categories": {"marketing": {"email": False}}}
    assert api.call("PUT", "/v1/users/u1/preferences", wanted).body == wanted
    assert api.call("GET", "/v1/users/u1/preferences").body == wanted
    replaced = api.call("PUT", "/v1/users/u1", {"name": "Joe"})
    assert (replaced.status, replaced.body["email"], replaced.body["devices"]) == (200, None, [])
    profile = _latest(world, RECIPIENTS)["default:u1"]
    assert (profile["name"], profile["version"], profile["channels"]) == ("Joe", 3, {"sms": False})
    assert api.call("GET", "/v1/users/u2").status == 404
    assert api.call("PUT", "/v1/users/u2", {}).status == 404
    assert api.call("PUT", "/v1/users/u2/preferences", {}).status == 404
    assert api.call("PUT", "/v1/users/u1", {"id": "u2"}).status == 400


@pytest.mark.parametrize(
    ("user", "pointer"),
    [
        ({"id": "x", "email": "nobody"}, "/email"),
        ({"id": "x", "time_zone": "Mars/Base"}, "/time_zone"),
        ({"id": "x", "name": "a\r\nBcc: b"}, "/name"),
        ({"id": "x", "name": "=?utf-8?q?=0ABcc=3A_e=40x.y?="}, "/name"),
        ({"id": "x\u0000"}, "/id"),
        ({"id": "x", "colour": 1}, "/colour"),
        ({"id": "x", "devices": [{"platform": "pager", "token": "t"}]}, "/devices/0/platform"),
        ({}, "/id"),
    ],
)
def test_wrong_user_is_refused_where_it_is_wrong(api: Api, user: dict[str, Any], pointer: str) -> None:
    answer = api.call("POST", "/v1/users", user)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (400, pointer)


def test_template_versions_are_published_and_rolled_back(
    world: World, api: Api, relay: subprocess.Popen[bytes]
) -> None:
    first = {"id": "t", "category": "orders", "channels": {"email": {"subject": "A", "text": "{{ a }}"}}}
    assert api.call("POST", "/v1/templates", first).body == {
        "id": "t",
        "version": 1,
        "published": True,
        "variables": ["a"],
    }
    assert api.call("POST", "/v1/templates", first).status == 409
    second = {
        "channels": {"sms": {"text": "{{ b }}"}},
        "locales": {"de": {"sms": {"text": "{{ c }}"}}},
        "publish": False,
    }
    added = api.call("POST", "/v1/templates/t/versions", second)
    assert (added.status, added.body) == (201, {"id": "t", "version": 2, "published": False, "variables": ["b", "c"]})
    assert api.call("GET", "/v1/templates/t").body["version"] == 1
    read = api.call("GET", "/v1/templates/t?version=2").body
    assert (read["channels"], read["locales"], read["published"]) == (second["channels"], second["locales"], False)
    assert api.call("POST", "/v1/templates/t/publish", {"version": 2}).body["published"] is True
    assert api.call("GET", "/v1/templates/t").body["version"] == 2
    assert api.send({"to": {"user_id": "u"}, "template": {"id": "t"}, "data": {"a": 1}}).status == 400
    assert api.call("POST", "/v1/templates/t/publish", {"version": 1}).status == 200
    assert api.send({"to": {"user_id": "u"}, "template": {"id": "t"}, "data": {"a": 1}}).status == 202
    assert api.call("POST", "/v1/templates/t/publish", {"version": 3}).status == 404
    assert api.call("GET", "/v1/templates/t").body["version"] == 1
    assert api.call("GET", "/v1/templates/t?version=x").status == 400
    published = _latest(world, TEMPLATES)
    assert {k: published[k]["version"] for k in ("default:t", "default:t:1", "default:t:2")} == {
        "default:t": 1,
        "default:t:1": 1,
        "default:t:2": 2,
    }


def test_template_version_never_changes(world: World) -> None:
    with (
        psycopg.connect(world.postgres.dsn) as connection,
        pytest.raises(psycopg.errors.RaiseException, match="never changes"),
    ):
        connection.execute("UPDATE template_versions SET category = 'other'")


def test_bad_template_is_refused_with_line_and_reason(api: Api) -> None:
    answer = api.call("POST", "/v1/templates", {"id": "bad", "channels": {"email": {"text": "a\n{{ x.y() }}"}}})
    assert (answer.status, answer.body["code"], answer.body["line"]) == (400, "template_invalid", 2)
    assert answer.body["reason"]
    assert answer.body["errors"][0]["pointer"] == "/channels/email/text"
    assert api.call("GET", "/v1/templates/bad").status == 404


def test_suppression_is_published_by_hash_and_repeated_as_200(
    world: World, api: Api, relay: subprocess.Popen[bytes]
) -> None:
    body = {"channel": "email", "address": "Stop@x.de", "reason": "complaint"}
    created = api.call("POST", "/v1/suppressions", body)
    assert created.status == 201
    repeated = api.call("POST", "/v1/suppressions", {**body, "address": "stop@X.de"})
    assert (repeated.status, repeated.body["id"]) == (200, created.body["id"])
    assert [e["id"] for e in api.call("GET", "/v1/suppressions").body["entries"]] == [created.body["id"]]
    key = f"default:email:{ids.address_hash('email', 'stop@x.de')}"
    assert _latest(world, SUPPRESSIONS)[key]["reason"] == "complaint"


def test_tenant_neither_sees_nor_changes_what_another_has(world: World, api: Api) -> None:
    key = create_api_key(world.postgres.dsn, "stranger", "tests", pepper=PEPPER)
    other_tenant = Api(api.url, key)
    api.call("POST", "/v1/users", {"id": "mine", "email": "a@x.de"})
    api.call("POST", "/v1/templates", {"id": "mine", "channels": {"sms": {"text": "x"}}})
    api.call("POST", "/v1/suppressions", {"channel": "email", "address": "mine@x.de"})
    for method, path, body in (
        ("GET", "/v1/users/mine", None),
        ("PUT", "/v1/users/mine", {}),
        ("GET", "/v1/users/mine/preferences", None),
        ("PUT", "/v1/users/mine/preferences", {}),
        ("GET", "/v1/templates/mine", None),
        ("POST", "/v1/templates/mine/versions", {"channels": {"sms": {"text": "x"}}}),
        ("POST", "/v1/templates/mine/publish", {"version": 1}),
    ):
        assert other_tenant.call(method, path, body).status == 404, (method, path)
    assert other_tenant.call("GET", "/v1/suppressions").body["entries"] == []
    assert other_tenant.send({"to": {"user_id": "u"}, "template": {"id": "mine"}}).body["code"] == "unknown_template"
    assert other_tenant.call("POST", "/v1/users", {"id": "mine"}).status == 201
    assert api.call("GET", "/v1/users/mine").body["email"] == "a@x.de"


def test_write_reaches_its_topic_within_a_second(world: World, api: Api, relay: subprocess.Popen[bytes]) -> None:
    took = []
    with psycopg.connect(world.postgres.dsn, autocommit=True) as connection:
        for number in range(20):
            began = time.monotonic()
            row = connection.execute(
                "INSERT INTO outbox (topic, key, value) VALUES (%s, %s, NULL) RETURNING id",
                (RECIPIENTS, f"gone:{number}"),
            ).fetchone()
            while connection.execute("SELECT 1 FROM outbox WHERE id = %s", row).fetchone():
                time.sleep(0.002)
            took.append(time.monotonic() - began)
            time.sleep(0.03)
    assert statistics.median(took) < 0.2
    assert max(took) < 1


def test_row_that_becomes_visible_late_is_not_skipped(world: World, relay: subprocess.Popen[bytes]) -> None:
    insert = "INSERT INTO outbox (topic, key, value) VALUES (%s, %s, NULL)"
    with psycopg.connect(world.postgres.dsn) as slow, psycopg.connect(world.postgres.dsn, autocommit=True) as quick:
        slow.execute(insert, (RECIPIENTS, "late:1"))  # takes the lower id, commits last
        quick.execute(insert, (RECIPIENTS, "late:2"))
        until(lambda: _pending(world) == 0, 20, "the relay")
        slow.commit()
    until(lambda: _pending(world) == 0, 20, "the relay")
    keys = [r.key for r in world.records(RECIPIENTS)]
    assert b"late:1" in keys
    assert b"late:2" in keys


def test_concurrent_writers_of_one_user_leave_the_topic_at_the_last_version(
    world: World, api: Api, relay: subprocess.Popen[bytes]
) -> None:
    assert api.call("POST", "/v1/users", {"id": "busy"}).status == 201
    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(api.call, "PUT", "/v1/users/busy", {"name": f"n{n}"}) for n in range(100)]
        assert {future.result().status for future in work} == {200}
    until(lambda: _pending(world) == 0, 20, "the relay")
    versions = [
        codec("RecipientProfile").decode(r.value)["version"]
        for r in world.records(RECIPIENTS)
        if r.key == b"default:busy" and r.value is not None
    ]
    assert versions == sorted(versions)
    assert versions[-1] == 101
    assert _latest(world, RECIPIENTS)["default:busy"]["name"] == api.call("GET", "/v1/users/busy").body["name"]


def test_relay_forgets_old_keys_and_resends_but_none_that_may_still_be_asked_for(world: World, api: Api) -> None:
    now = int(time.time() * 1000)
    ages = {"old": (9, True), "unconfirmed": (9, False), "recent": (7, True), "ancient": (402, True)}
    with psycopg.connect(world.postgres.dsn, autocommit=True) as connection:
        for key, (days, confirmed) in ages.items():
            at = now - days * 86_400_000
            nid = ids.notification_id(at, "forget")
            connection.execute(
                "INSERT INTO idempotency_keys (tenant, key, notification_id, body_hash, accepted_at, confirmed)"
                " VALUES ('forget', %s, %s, '', %s, %s)",
                (key, nid, at, confirmed),
            )
            connection.execute("INSERT INTO resends VALUES (%s, %s, 1, %s, %s)", (f"forget-{key}", nid, confirmed, at))

        def left() -> tuple[set[str], set[str]]:
            keys = connection.execute("SELECT key FROM idempotency_keys WHERE tenant = 'forget'").fetchall()
            resends = connection.execute("SELECT tenant FROM resends WHERE tenant LIKE 'forget-%'").fetchall()
            return {key for (key,) in keys}, {tenant.removeprefix("forget-") for (tenant,) in resends}

        assert left() == (set(ages), set(ages))
        process = world.run("relay")
        # A generation that was given stays known for as long as a resend is possible: none is given twice.
        until(lambda: left() == ({"recent"}, {"old", "unconfirmed", "recent"}), 30, "the relay to forget")
        assert end(process) == 0
        world.broker.roles.remove(process)


@pytest.mark.faults
def test_relay_killed_between_publish_and_mark_publishes_again_and_skips_nothing(world: World, api: Api) -> None:
    for number in range(30):
        assert api.call("POST", "/v1/users", {"id": f"crash-{number}"}).status == 201
    killed = world.run("relay", HELIOGRAPH_CRASH_AT="relay_after_publish")
    assert killed.wait(30) == -9
    world.broker.roles.remove(killed)
    assert _pending(world) >= 30
    second = world.run("relay")
    until(lambda: _pending(world) == 0, 30, "the second relay")
    assert end(second) == 0
    world.broker.roles.remove(second)
    assert {f"default:crash-{number}" for number in range(30)} <= set(_latest(world, RECIPIENTS))


@pytest.mark.faults
def test_standby_takes_over_when_the_active_relay_is_killed(world: World, relay: subprocess.Popen[bytes]) -> None:
    standby = world.run("relay")
    time.sleep(2)
    relay.kill()
    relay.wait()
    with psycopg.connect(world.postgres.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO outbox (topic, key, value) VALUES (%s, 'over:1', NULL)", (RECIPIENTS,))
    until(lambda: _pending(world) == 0, 10, "the standby")
    assert end(standby) == 0
    world.broker.roles.remove(standby)


@pytest.mark.faults
def test_relay_outlives_restarts_of_both_stores(world: World, relay: subprocess.Popen[bytes]) -> None:
    insert = "INSERT INTO outbox (topic, key, value) VALUES (%s, %s, NULL)"
    world.postgres.stop()
    time.sleep(1)
    world.postgres.start()
    with psycopg.connect(world.postgres.dsn, autocommit=True) as connection:
        connection.execute(insert, (RECIPIENTS, "restart:1"))
    until(lambda: _pending(world) == 0, 20, "the relay after PostgreSQL's restart")
    world.broker.process.kill()
    world.broker.process.wait()
    with psycopg.connect(world.postgres.dsn, autocommit=True) as connection:
        connection.execute(insert, (RECIPIENTS, "restart:2"))
    time.sleep(1)
    assert _pending(world) == 1
    world.broker.start()
    until(lambda: _pending(world) == 0, 40, "the relay after Kafka's restart")
    assert relay.poll() is None
    assert b"restart:2" in [r.key for r in world.records(RECIPIENTS)]


def test_relay_without_postgres_says_so_in_one_line(world: World) -> None:
    process = world.run("relay", HELIOGRAPH_POSTGRES__DSN="postgresql://nobody@127.0.0.1:1/none")
    assert process.wait(30) == 1
    world.broker.roles.remove(process)
    last = (world.broker.directory / "relay.log").read_text().splitlines()[-1]
    assert last.startswith("heliograph relay: cannot reach PostgreSQL")
    assert "HELIOGRAPH_POSTGRES__DSN" in last


def test_two_migrations_at_once_apply_everything_once(world: World) -> None:
    with psycopg.connect(world.postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
    dsn = world.postgres.dsn.rsplit("/", 1)[0] + "/fresh"
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(migrate(dsn))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(len, applied)) == [0, 0, 0, 10]
    assert migrate(dsn) == []


def test_unreachable_store_is_named_without_its_password() -> None:
    with pytest.raises(UnavailableError) as caught:
        migrate("postgresql://u:secret-password@127.0.0.1:1/none")
    assert "secret-password" not in str(caught.value)


def test_local_key_is_reused_while_it_is_valid(world: World, tmp_path: Path) -> None:
    file = tmp_path / "api_key"
    first = ensure_local_key(world.postgres.dsn, "default", file, pepper=PEPPER)
    assert ensure_local_key(world.postgres.dsn, "default", file, pepper=PEPPER) == first
    assert file.stat().st_mode & 0o077 == 0
    assert world.api.call("GET", "/v1/suppressions", key=first).status == 200
    parsed = parse_key(first)
    assert parsed is not None
    revoke_api_key(world.postgres.dsn, parsed[0])
    assert ensure_local_key(world.postgres.dsn, "default", file, pepper=PEPPER) != first

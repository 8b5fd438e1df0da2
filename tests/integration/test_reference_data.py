"""The rest of reference data: patches, deletes, lists, layouts, previews, imports; over HTTP into PostgreSQL and Kafka."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from producers.reference.keys import create_api_key
from runtime import ids
from schemas.codec import codec
from schemas.events import RecordName
from schemas.topics import RECIPIENTS, SUPPRESSIONS, TEMPLATES
from tests.integration.conftest import until
from tests.integration.reference_stack import PEPPER, Api, World, postgres, world

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]
NAMES: dict[str, RecordName] = {RECIPIENTS: "RecipientProfile", TEMPLATES: "Template", SUPPRESSIONS: "Suppression"}


@pytest.fixture(scope="module")
def api(world: World) -> Iterator[Api]:
    world.run("api")
    world.run("relay")
    world.wait_ready()
    # The first write that need not wait for the relay shows that it is there.
    until(lambda: _took(world.api) < 0.9, 30, "an active relay")
    time.sleep(10)  # until writes wait for it again
    yield world.api


def _took(api: Api) -> float:
    began = time.monotonic()
    api.call("PUT", "/v1/users/probe", {}) if api.call("POST", "/v1/users", {"id": "probe"}).status == 409 else None
    return time.monotonic() - began


@pytest.fixture(scope="module")
def other_tenant(world: World, api: Api) -> Api:
    return Api(api.url, create_api_key(world.postgres.dsn, "stranger", "tests", pepper=PEPPER))


def latest(world: World, topic: str, key: str) -> Any:
    """The last record of a key, None for a tombstone."""
    values = [record.value for record in world.records(topic) if record.key == key.encode()]
    return codec(NAMES[topic]).decode(values[-1]) if values and values[-1] is not None else None


def pages(api: Api, path: str, limit: int) -> list[Any]:
    """Every entry of a list, page by page."""
    found: list[Any] = []
    cursor = ""
    while True:
        answer = api.call("GET", f"{path}{'&' if '?' in path else '?'}limit={limit}&cursor={cursor}")
        assert answer.status == 200, answer.body
        found += answer.body["entries"]
        assert len(answer.body["entries"]) <= limit
        cursor = answer.body["next_cursor"]
        if cursor is None:
            return found


# ---------------------------------------------------------------- users


def test_merge_patch_changes_what_it_names(world: World, api: Api) -> None:
    user = {"id": "p1", "name": "Jo", "email": "jo@x.de", "devices": [{"platform": "fcm", "token": "t"}]}
    assert api.call("POST", "/v1/users", user).status == 201
    changed = api.call("PATCH", "/v1/users/p1", {"name": None, "locale": "de", "phone": "+49 151 12345678"})
    assert changed.status == 200
    assert (changed.body["name"], changed.body["email"], changed.body["locale"]) == (None, "jo@x.de", "de")
    assert changed.body["devices"] == [{"platform": "fcm", "token": "t"}]
    patched = api.call("PATCH", "/v1/users/p1", {"devices": None}, Content_Type="application/merge-patch+json")
    assert (patched.status, patched.body["devices"]) == (200, [])
    assert latest(world, RECIPIENTS, "default:p1")["phone"] == "+4915112345678"
    assert api.call("GET", "/v1/users/p1").body == patched.body


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [
        ({"email": "nobody"}, "/email"),
        ({"colour": 1}, "/colour"),
        ({"id": "other"}, "/id"),
        ({"devices": [{}]}, "/devices/0/platform"),
        ([], None),
    ],
)
def test_wrong_patch_is_refused_and_changes_nothing(api: Api, patch: Any, pointer: str | None) -> None:
    api.call("POST", "/v1/users", {"id": "p2", "email": "a@x.de"})
    before = api.call("GET", "/v1/users/p2").body
    answer = api.call("PATCH", "/v1/users/p2", patch)
    assert answer.status == 400
    assert pointer is None or answer.body["errors"][0]["pointer"] == pointer
    assert api.call("GET", "/v1/users/p2").body == before
    assert api.call("PATCH", "/v1/users/p2", {}, Content_Type="text/plain").status == 415
    assert api.call("PATCH", "/v1/users/nobody", {}).status == 404


def test_deleted_user_loses_preferences_and_may_be_created_again(world: World, api: Api) -> None:
    api.call("POST", "/v1/users", {"id": "d1", "email": "a@x.de"})
    api.call("PUT", "/v1/users/d1/preferences", {"channels": {"email": False}})
    assert latest(world, RECIPIENTS, "default:d1")["channels"] == {"email": False}
    assert api.call("DELETE", "/v1/users/d1").status == 204
    assert latest(world, RECIPIENTS, "default:d1") is None
    assert api.call("GET", "/v1/users/d1").status == api.call("DELETE", "/v1/users/d1").status == 404
    assert api.call("POST", "/v1/users", {"id": "d1"}).status == 201
    assert api.call("GET", "/v1/users/d1/preferences").body == {"channels": {}, "categories": {}}
    assert latest(world, RECIPIENTS, "default:d1")["email"] is None


@pytest.mark.parametrize("limit", [1, 3, 200])
def test_users_are_listed_by_id_and_page(api: Api, other_tenant: Api, limit: int) -> None:
    names = ["l-a", "l-b", "l-ü", "l-👩\u200d🚀", "l z"]
    for name in names:
        other_tenant.call("POST", "/v1/users", {"id": name})
    found = [entry["id"] for entry in pages(other_tenant, "/v1/users", limit)]
    assert sorted(found) == sorted(names)
    assert not {entry["id"] for entry in pages(api, "/v1/users", 200)} & set(names)


@pytest.mark.parametrize(
    "cursor", ["x", "?", "W10", "WzFd", "bnVsbA", "WyJcdTAwMDAiXQ", "WyJcdWQ4MDAiXQ", "W1tbW1tbW1tbW1tbW1s"]
)
def test_invalid_cursor_is_400_everywhere(api: Api, cursor: str) -> None:
    api.call("POST", "/v1/templates", {"id": "cursors", "channels": {"sms": {"text": "x"}}})
    for path in (
        "/v1/users",
        "/v1/templates",
        "/v1/templates/cursors/versions",
        "/v1/suppressions",
        "/v1/notifications",
    ):
        if cursor == "WzFd" and path.endswith("versions"):
            continue  # [1] is a place in that list
        answer = api.call("GET", f"{path}?cursor={cursor}")
        assert (answer.status, answer.body["code"]) == (400, "invalid_cursor"), path


def test_location_of_an_id_in_any_script_can_be_followed(api: Api) -> None:
    created = api.call("POST", "/v1/users", {"id": "用户/?#👩‍🚀"})
    assert created.status == 201
    assert api.call("GET", created.headers["location"].replace("%2F", "%252F")).status == 404
    assert api.call("POST", "/v1/users", {"id": "ü 🚀"}).headers["location"] == "/v1/users/%C3%BC%20%F0%9F%9A%80"
    assert api.call("GET", "/v1/users/%C3%BC%20%F0%9F%9A%80").status == 200


def test_parameter_with_a_typo_is_refused(api: Api) -> None:
    answer = api.call("GET", "/v1/suppressions?chanel=sms")
    assert (answer.status, answer.body["code"]) == (400, "invalid_parameter")
    assert api.call("GET", "/v1/users/probe?tenant=other").status == 400


# ---------------------------------------------------------------- templates


def test_templates_and_versions_are_listed(api: Api) -> None:
    for text in ("one", "two", "three"):
        body = {"id": "listed", "category": text, "channels": {"sms": {"text": text}}, "publish": text != "three"}
        assert (
            api.call("POST", "/v1/templates" if text == "one" else "/v1/templates/listed/versions", body).status == 201
        )
    (entry,) = [e for e in pages(api, "/v1/templates", 1) if e["id"] == "listed"]
    assert (entry["category"], entry["published_version"], entry["latest_version"]) == ("two", 2, 3)
    versions = pages(api, "/v1/templates/listed/versions", 2)
    assert [(v["version"], v["published"]) for v in versions] == [(3, False), (2, True), (1, False)]
    assert versions[0]["channels"] == {"sms": {"text": "three"}}
    assert api.call("GET", "/v1/templates/nothing/versions").status == 404


def test_version_without_a_category_has_that_of_the_published_one(api: Api) -> None:
    def add(path: str, **fields: Any) -> None:
        assert api.call("POST", f"/v1/templates{path}", {"channels": {"sms": {"text": "x"}}, **fields}).status == 201

    add("", id="inherits", category="orders")
    add("/inherits/versions", category="news", publish=False)
    add("/inherits/versions")
    add("/inherits/versions", category="default")
    add("/inherits/versions")
    found = {v["version"]: v["category"] for v in pages(api, "/v1/templates/inherits/versions", 10)}
    assert found == {1: "orders", 2: "news", 3: "orders", 4: "default", 5: "default"}


def test_layout_and_partials_are_in_place_in_what_the_router_gets(world: World, api: Api) -> None:
    partial = {
        "id": "foot",
        "channels": {"email": {"html": "<i>{{ brand }}</i>", "text": "-- {{ brand }}"}},
        "locales": {"de": {"email": {"html": "<i>{{ brand }}, Gruß</i>"}}},
    }
    frame = {"id": "frame", "channels": {"email": {"html": '<b>{% include "content" %}</b>{% include "foot" %}'}}}
    body = {
        "id": "framed",
        "layout": "frame",
        "channels": {"email": {"subject": "S", "html": "<p>{{ n }}</p>", "text": '{{ n }}\n{% include "foot" %}'}},
        "locales": {"de-AT": {"email": {"subject": "S", "html": "<p>Hallo {{ n }}</p>"}}},
    }
    for template in (partial, frame):
        assert api.call("POST", "/v1/templates", template).status == 201
    created = api.call("POST", "/v1/templates", body)
    assert (created.status, created.body["variables"]) == (201, ["brand", "n"])
    published = latest(world, TEMPLATES, "default:framed")
    assert json.loads(published["channels"])["email"] == {
        "subject": "S",
        "html": "<b><p>{{ n }}</p></b><i>{{ brand }}</i>",
        "text": "{{ n }}\n-- {{ brand }}",
    }
    assert (
        json.loads(published["locales"])["de-AT"]["email"]["html"]
        == "<b><p>Hallo {{ n }}</p></b><i>{{ brand }}, Gruß</i>"
    )
    read = api.call("GET", "/v1/templates/framed").body
    assert (read["channels"], read["locales"], read["layout"]) == (body["channels"], body["locales"], "frame")
    # A new partial shows in versions written after it.
    api.call("POST", "/v1/templates/foot/versions", {"channels": {"email": {"text": "new"}}})
    assert latest(world, TEMPLATES, "default:framed") == published
    preview = api.call("POST", "/v1/templates/framed/preview", {"channel": "email", "data": {"n": 1, "brand": "B"}})
    assert preview.body["text"] == "1\n-- B"


@pytest.mark.parametrize(
    ("change", "reason", "pointer"),
    [
        ({"channels": {"email": {"text": 'a\n{% include "nothing" %}'}}}, "nothing", "/channels"),
        ({"layout": "nothing"}, "nothing", "/layout"),
        ({"channels": {"email": {"text": '{% include "refused" %}'}}}, "itself", "/channels"),
        ({"channels": {"email": {"text": '{% include "../x" %}'}}}, "x", "/channels"),
        ({"channels": {"email": {"text": "{% include x %}"}}}, "include", "/channels/email/text"),
    ],
)
def test_include_that_cannot_be_is_refused(api: Api, change: dict[str, Any], reason: str, pointer: str) -> None:
    answer = api.call("POST", "/v1/templates", {"id": "refused", "channels": {"email": {"text": "x"}}, **change})
    assert (answer.status, answer.body["code"]) == (400, "template_invalid"), answer.body
    assert reason in answer.body["detail"]
    assert answer.body["errors"][0]["pointer"] == pointer


def test_circle_of_templates_is_refused_when_it_would_close(api: Api) -> None:
    for name, text in (("loop-a", "x"), ("loop-b", '{% include "loop-a" %}')):
        body = {"id": name, "channels": {"email": {"text": text}}}
        assert api.call("POST", "/v1/templates", body).status == 201
    closing = {"channels": {"email": {"text": '{% include "loop-b" %}'}}}
    answer = api.call("POST", "/v1/templates/loop-a/versions", closing)
    assert (answer.status, answer.body["code"]) == (400, "template_invalid")
    assert "itself" in answer.body["detail"]


def test_preview_renders_as_the_router_does(api: Api) -> None:
    template = {
        "id": "seen",
        "channels": {
            "email": {"subject": "Hi {{ n }}", "html": "<p>{{ n }}</p>"},
            "push": {"title": "T", "body": "{{ n }}", "data": {"k": "{{ n }}"}},
        },
        "locales": {"de": {"email": {"subject": "Hallo {{ n }}", "html": "<p>{{ n }}</p>"}}},
    }
    api.call("POST", "/v1/templates", template)
    api.call("POST", "/v1/templates/seen/versions", {"channels": {"sms": {"text": "new {{ n }}"}}, "publish": False})
    path = "/v1/templates/seen/preview"
    shown = api.call("POST", path, {"channel": "email", "locale": "de-AT", "data": {"n": "<1>"}})
    assert shown.body == {
        "id": "seen",
        "version": 1,
        "channel": "email",
        "locale": "de-AT",
        "subject": "Hallo <1>",
        "html": "<p>&lt;1&gt;</p>",
    }
    assert api.call("POST", path, {"channel": "push", "data": {"n": 1}}).body["data"] == {"k": "1"}
    assert api.call("POST", path, {"channel": "sms", "data": {"n": 1}, "version": 2}).body["text"] == "new 1"
    long = api.call("POST", path, {"channel": "sms", "data": {"n": "😀" * 40}, "version": 2})
    assert long.body["parts"] == {"number": 2, "alphabet": "UCS-2"}
    missing = api.call("POST", path, {"channel": "email"})
    assert (missing.status, missing.body["errors"][0]["pointer"]) == (400, "/data/n")
    assert api.call("POST", path, {"channel": "sms"}).body["errors"][0]["pointer"] == "/channel"
    two_lines = api.call("POST", path, {"channel": "email", "data": {"n": "a\nb"}})
    assert (two_lines.status, two_lines.body["code"]) == (400, "template_error")
    assert api.call("POST", "/v1/templates/nothing/preview", {"channel": "sms"}).status == 404


def test_preview_page_shows_html_where_it_can_do_nothing(api: Api) -> None:
    api.call(
        "POST",
        "/v1/templates",
        {
            "id": "evil",
            "channels": {"email": {"subject": "<script>s</script>", "html": '<script>alert("x")</script>\'"><b>'}},
        },
    )
    page = api.call("POST", "/v1/templates/evil/preview", {"channel": "email"}, Accept="text/html,*/*;q=0.8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<iframe sandbox srcdoc=" in page.body
    assert "<script" not in page.body


# ---------------------------------------------------------------- suppressions


def test_suppression_expires_and_is_deleted(world: World, api: Api) -> None:
    body = {"channel": "email", "address": "tmp@x.de", "expires_at": "2030-01-01T00:00:00Z"}
    created = api.call("POST", "/v1/suppressions", body)
    assert (created.status, created.body["expires_at"]) == (201, "2030-01-01T00:00:00.000Z")
    key = f"default:email:{ids.address_hash('email', 'tmp@x.de')}"
    assert latest(world, SUPPRESSIONS, key)["expires_at"] == 1_893_456_000_000
    assert api.call("DELETE", f"/v1/suppressions/{created.body['id']}").status == 204
    assert latest(world, SUPPRESSIONS, key) is None
    assert api.call("DELETE", f"/v1/suppressions/{created.body['id']}").status == 404
    assert api.call("DELETE", "/v1/suppressions/nothing").status == 404


def test_import_stores_valid_lines_and_reports_the_others(world: World, api: Api, other_tenant: Api) -> None:
    lines = [
        '{"channel": "email", "address": "I1@X.de", "reason": "complaint"}',
        "",
        '{"channel": "email"}',
        "{",
        '{"channel": "sms", "address": "+4915112345678", "expires_at": "2030-01-01T00:00:00Z"}',
        '{"channel": "email", "address": "i1@x.de", "reason": "later"}',
        '{"channel": "email", "address": "no"}',
        "7",
    ]
    answer = other_tenant.call(
        "POST", "/v1/suppressions/import", raw="\n".join(lines).encode(), Content_Type="application/x-ndjson"
    )
    assert answer.status == 200, answer.body
    assert (answer.body["imported"], answer.body["created"], answer.body["refused"]) == (3, 2, 4)
    assert [(e["line"], e["pointer"]) for e in answer.body["errors"]] == [(3, "/address"), (4, ""), (7, ""), (8, "")]
    assert "i1@x.de" not in json.dumps(answer.body).lower()
    stored = pages(other_tenant, "/v1/suppressions", 1)
    assert {(e["channel"], e["address"], e["reason"]) for e in stored} == {
        ("email", "i1@x.de", "later"),
        ("sms", "+4915112345678", "manual"),
    }
    assert latest(world, SUPPRESSIONS, f"stranger:email:{ids.address_hash('email', 'i1@x.de')}")["reason"] == "later"
    again = other_tenant.call(
        "POST", "/v1/suppressions/import", raw=lines[0].encode(), Content_Type="application/jsonl"
    )
    assert (again.body["imported"], again.body["created"]) == (1, 0)
    exported = other_tenant.call("GET", "/v1/suppressions/export")
    assert exported.headers["content-type"] == "application/x-ndjson"
    text = exported.body if isinstance(exported.body, str) else json.dumps(exported.body)
    assert {json.loads(line)["address"] for line in text.splitlines()} == {"i1@x.de", "+4915112345678"}
    back = other_tenant.call("POST", "/v1/suppressions/import", raw=text.encode(), Content_Type="application/x-ndjson")
    assert (back.body["imported"], back.body["created"], back.body["refused"]) == (2, 0, 0)


def test_import_of_csv(api: Api) -> None:
    text = 'address,channel,reason\r\ncsv1@x.de,email,bought\r\n"csv2@x.de",email,\r\ncsv3@x.de\r\nnobody,email,x\r\n'
    answer = api.call("POST", "/v1/suppressions/import", raw=text.encode(), Content_Type="text/csv; charset=utf-8")
    assert (answer.body["imported"], [e["line"] for e in answer.body["errors"]]) == (2, [4, 5])
    found = api.call("GET", "/v1/suppressions?address=CSV1@x.de").body["entries"]
    assert [(e["address"], e["reason"]) for e in found] == [("csv1@x.de", "bought")]
    assert api.call("GET", "/v1/suppressions?reason=bought&channel=email").body["entries"] == found
    assert api.call("GET", "/v1/suppressions?reason=bought&channel=sms").body["entries"] == []
    for wrong in (b"", b"a,b\n1,2", b"channel,channel,address\n", b"\xff"):
        refused = api.call("POST", "/v1/suppressions/import", raw=wrong, Content_Type="text/csv")
        assert refused.status == (200 if wrong == b"" else 400), wrong


def test_import_of_ten_thousand_lines_is_taken_and_one_more_is_not(api: Api, other_tenant: Api) -> None:
    lines = [json.dumps({"channel": "email", "address": f"many{n}@x.de"}) for n in range(10_000)]
    began = time.monotonic()
    answer = other_tenant.call(
        "POST", "/v1/suppressions/import", raw="\n".join(lines).encode(), Content_Type="application/jsonl"
    )
    assert (answer.body["imported"], answer.body["refused"]) == (10_000, 0)
    assert time.monotonic() - began < 25
    assert len(pages(other_tenant, "/v1/suppressions", 200)) >= 10_000
    assert len(other_tenant.call("GET", "/v1/suppressions/export").body.splitlines()) >= 10_000
    too_many = other_tenant.call(
        "POST", "/v1/suppressions/import", raw="\n".join([*lines, lines[0]]).encode(), Content_Type="application/jsonl"
    )
    assert too_many.status == 413
    assert api.call("POST", "/v1/suppressions/import", raw=b"{}").status == 415

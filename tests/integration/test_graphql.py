"""GraphQL on real stores: the same answers as REST, few questions to the stores, and refusals with REST's codes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import create_autospec
from uuid import UUID

import pytest
from graphql import GraphQLList, GraphQLNonNull, GraphQLObjectType, get_named_type
from pydantic import SecretStr

from api.graphql.context import Context
from api.graphql.schema import graphql_schema
from api.graphql.sdl import committed_sdl
from api.graphql.services import Services
from producers.reference.database import Database
from producers.reference.keys import Caller, create_api_key
from producers.reference.store import ReferenceStore
from runtime import ids
from runtime.records import ConsumerRecord
from runtime.settings import PostgresSettings
from tests.integration.reference_stack import PEPPER, Answer, Api, World, postgres, text_to, world
from tests.integration.test_clickhouse_schema import NOW, Store, request, status
from tests.support.clickhouse import Server
from tracking.listing import Listing
from tracking.status import Statuses, StatusStore

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]
__all__ = ["postgres", "world"]

TENANT = "default"
USERS = [f"u{n}" for n in range(30)]


@dataclass
class Graph:
    """The api with stored notifications of two tenants."""

    api: Api
    other: Api
    world: World
    store: Store
    mine: list[str] = field(default_factory=list)
    """Ids, the newest first."""
    theirs: str = ""

    def ask(self, query: str, api: Api | None = None, **variables: Any) -> Any:
        answer = self.post({"query": query, "variables": variables}, api)
        assert answer.status == 200 and "errors" not in answer.body, answer
        return answer.body["data"]

    def error(self, query: str, api: Api | None = None, **variables: Any) -> dict[str, Any]:
        answer = self.post({"query": query, "variables": variables}, api)
        extensions: dict[str, Any] = answer.body["errors"][0]["extensions"]
        assert extensions["request_id"] == answer.headers["x-request-id"]
        return extensions

    def post(self, body: Any, api: Api | None = None, kind: str = "application/json") -> Answer:
        return (api or self.api).call("POST", "/graphql", body, Content_Type=kind)


def facts(count: int, seed: int) -> tuple[list[str], list[ConsumerRecord]]:
    """Notifications of every kind, the newest first, and the records about them."""
    draw = random.Random(seed)
    found, records = [], []
    for number in range(count):
        nid = ids.notification_id(NOW - number * 100, TENANT)
        found.append(nid)
        records.append(
            request(
                nid,
                TENANT,
                user_id=draw.choice([*USERS, None, "gone"]),
                template_id=draw.choice(["order", "unknown", None]),
                tags=draw.sample(["a", "b", "c"], draw.randint(0, 3)),
                correlation_id=draw.choice([None, f"c{number % 7}"]),
                category=draw.choice(["default", "marketing"]),
            )
        )
        if draw.random() < 0.1:
            records.append(status(nid, "", "skipped", tenant=TENANT, reason="opted_out", message_id=None))
            continue
        for channel in draw.sample(["email", "sms", "push", "webhook"], draw.randint(0, 3)):
            records.append(status(nid, channel, "routed", tenant=TENANT))
            for attempt, state in enumerate(draw.choice(PATHS), 1):
                records.append(status(nid, channel, state, attempt=attempt, tenant=TENANT, provider="smtp"))
    return found, records


PATHS: tuple[tuple[str, ...], ...] = (
    (),
    ("sent",),
    ("retrying", "sent"),
    ("retrying", "failed"),
    ("sending",),
    ("sent", "delivered"),
)


@pytest.fixture(scope="module")
def graph(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    store = Store(server)
    world.run("api", HELIOGRAPH_CLICKHOUSE__URL=store.settings.url)
    world.wait_ready()
    other = Api(world.api.url, create_api_key(world.postgres.dsn, "other", "tests", pepper=PEPPER))
    made = Graph(world.api, other, world, store)
    for user in USERS:
        body = {"id": user, "name": user.upper(), "email": f"{user}@example.org", "locale": "de"}
        assert made.api.call("POST", "/v1/users", body).status == 201
    made.api.call("PUT", "/v1/users/u0/preferences", {"categories": {"marketing": {"email": False}}})
    template = {"id": "order", "channels": {"email": {"subject": "S", "text": "hello {{ name }}"}}}
    assert made.api.call("POST", "/v1/templates", template).status == 201
    suppression = {"channel": "email", "address": "no@example.org", "reason": "manual"}
    assert made.api.call("POST", "/v1/suppressions", suppression).status == 201
    made.mine, records = facts(500, 17)
    made.theirs = ids.notification_id(NOW, "other")
    store.insert([*records, request(made.theirs, "other"), status(made.theirs, "email", "routed", tenant="other")])
    yield made
    world.broker.stop_roles()
    assert server.stop() == 0


def test_request_that_is_accepted_is_readable_at_once(graph: Graph) -> None:
    nid = graph.api.send(text_to("u1")).body["id"]
    shown = graph.ask(
        "query ($id: ID!) { notification(id: $id) { id state lane category tags messages { id } } }", id=nid
    )
    assert shown["notification"] == {
        "id": nid, "state": "ACCEPTED", "lane": "normal", "category": None, "tags": [], "messages": []
    }  # fmt: skip


NOTIFICATION = """id state reason why acceptedAt lane category tags correlationId userId user { id name }
  messages { id channel state reason why provider providerMessageId possibleDuplicate
             attempts { attempt provider state reason occurredAt } }
  events(first: 13) { id messageId channel lane state reason detail attempt provider providerMessageId possibleDuplicate
             templateId templateVersion preferenceVersion occurredAt latencyMs correlationId }"""


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def shown_by_rest(graph: Graph, nid: str) -> dict[str, Any]:
    """What GraphQL is to answer, out of three answers of REST."""
    api = graph.api
    current, events, story = (
        api.call("GET", f"/v1/notifications/{nid}{path}").body for path in ("", "/events", "/explain")
    )
    asked = story["acceptance"]
    user = asked["user_id"]
    whys = {message["id"]: message["why"] for message in story["messages"]}

    def up(value: str | None) -> str | None:
        return value.upper() if value is not None else None

    return {
        "id": nid,
        "state": up(current["status"]),
        "reason": current["reason"],
        "why": story["why"],
        "acceptedAt": current["accepted_at"],
        "lane": asked["lane"],
        "category": asked["category"],
        "tags": asked["tags"],
        "correlationId": asked["correlation_id"],
        "userId": user,
        "user": {"id": user, "name": user.upper()} if user in USERS else None,
        "messages": [
            {
                **{camel(name): value for name, value in message.items() if name not in ("status", "attempts")},
                "channel": up(message["channel"]),
                "state": up(message["status"]),
                "why": whys[message["id"]],
                "attempts": [
                    {camel(name): value for name, value in attempt.items()} for attempt in message["attempts"]
                ],
            }
            for message in current["messages"]
        ],
        "events": [
            {**{camel(name): value for name, value in event.items()}, "channel": up(event["channel"])}
            for event in events["entries"]
        ],
    }


def test_notifications_are_answered_as_by_rest(graph: Graph) -> None:
    compare_with_rest(graph, graph.mine[::20])


@pytest.mark.slow
def test_500_notifications_are_answered_as_by_rest(graph: Graph) -> None:
    compare_with_rest(graph, graph.mine)


def compare_with_rest(graph: Graph, some: list[str]) -> None:
    listed = pages(graph, f"notifications(first: 7, after: $after) {{ nodes {{ {NOTIFICATION} }} {PAGE} }}")
    by_id = {one["id"]: one for one in listed}
    assert [one["id"] for one in listed if one["id"] in set(graph.mine)] == graph.mine
    for nid in some:
        assert by_id[nid] == shown_by_rest(graph, nid)
    for nid in some[:10]:
        query = f"query ($id: ID!) {{ notification(id: $id) {{ {NOTIFICATION} explanation }} }}"
        shown = graph.ask(query, id=nid)["notification"]
        assert shown.pop("explanation") == graph.api.call("GET", f"/v1/notifications/{nid}/explain").body
        assert shown == by_id[nid]


PAGE = "pageInfo { hasNextPage endCursor }"


def pages(graph: Graph, connection: str) -> list[Any]:
    """The nodes of every page."""
    found: list[Any] = []
    after = None
    while True:
        data = graph.ask(f"query ($after: String) {{ page: {connection} }}", after=after)["page"]
        found += data["nodes"]
        if not data["pageInfo"]["hasNextPage"]:
            return found
        after = data["pageInfo"]["endCursor"]


def test_reference_data_is_that_of_rest(graph: Graph) -> None:
    user = "id name email phone locale timeZone devices createdAt updatedAt preferences { channels categories }"
    users = pages(graph, f"users(first: 7, after: $after) {{ nodes {{ {user} }} {PAGE} }}")
    for shown in users:
        assert shown.pop("preferences") == graph.api.call("GET", f"/v1/users/{shown['id']}/preferences").body
    entries = graph.api.call("GET", "/v1/users").body["entries"]
    assert users == [{camel(name): value for name, value in entry.items()} for entry in entries]
    found = graph.ask('{ users(search: "u2") { nodes { id } } }')["users"]["nodes"]
    assert [one["id"] for one in found] == ["u2", *(f"u2{n}" for n in range(10))]
    version = "id version published category variables layout channels locales"
    template = graph.ask(
        f'{{ template(id: "order") {{ id category publishedVersion latestVersion updatedAt published {{ {version} }} version(number: 1) {{ {version} }} }} }}'
    )["template"]
    assert template.pop("published") == template.pop("version") == graph.api.call("GET", "/v1/templates/order").body
    (entry,) = graph.api.call("GET", "/v1/templates").body["entries"]
    assert template == {camel(name): value for name, value in entry.items()}
    assert pages(graph, f"templates(after: $after) {{ nodes {{ id }} {PAGE} }}") == [{"id": "order"}]
    suppression = "id channel address addressHash reason source expiresAt createdAt"
    (shown,) = pages(graph, f"suppressions(after: $after) {{ nodes {{ {suppression} }} {PAGE} }}")
    (entry,) = graph.api.call("GET", "/v1/suppressions").body["entries"]
    assert shown == {**{camel(name): value for name, value in entry.items()}, "channel": "EMAIL"}
    rendered = graph.ask('{ preview(template: "order", channel: EMAIL, data: {name: "Ada"}) { subject text html } }')
    assert rendered["preview"] == {"subject": "S", "text": "hello Ada", "html": None}


def test_filters_are_those_of_the_list_and_more(graph: Graph) -> None:
    def found(filter_: str) -> list[str]:
        listed = pages(
            graph, f"notifications(first: 50, after: $after, filter: {{ {filter_} }}) {{ nodes {{ id }} {PAGE} }}"
        )
        return [one["id"] for one in listed if one["id"] in set(graph.mine)]

    everything = {nid: shown_by_rest(graph, nid) for nid in graph.mine[:40]}
    recent = f'from: "{everything[graph.mine[39]]["acceptedAt"]}"'
    for filter_, holds in (
        ('user: "u3"', lambda one: one["userId"] == "u3"),
        ('tag: "a"', lambda one: "a" in one["tags"]),
        ("state: FAILED", lambda one: one["state"] == "FAILED"),
        ('correlationId: "c3"', lambda one: one["correlationId"] == "c3"),
        ('tag: "b", state: SENT', lambda one: "b" in one["tags"] and one["state"] == "SENT"),
    ):
        assert found(f"{recent}, {filter_}") == [nid for nid, one in everything.items() if holds(one)], filter_
    assert found(f'to: "{everything[graph.mine[39]]["acceptedAt"]}"')[0] == graph.mine[39]


class CountingStatuses(StatusStore):
    questions = 0

    def _select(self, name: str, parameters: Any) -> list[dict[str, Any]]:
        self.questions += 1
        return super()._select(name, parameters)


class CountingDatabase(Database):
    questions = 0

    async def run(self, *arguments: Any) -> Any:
        self.questions += 1
        return await super().run(*arguments)


async def test_page_with_messages_and_users_asks_the_stores_five_questions_at_most(graph: Graph) -> None:
    statuses = CountingStatuses(graph.store.settings)
    database = CountingDatabase(PostgresSettings(dsn=SecretStr(graph.world.postgres.dsn)))
    await database.open()
    services = create_autospec(Services, instance=True)
    services.statuses = Statuses(statuses, lambda _: None)
    services.status_store, services.reference_store = statuses, ReferenceStore(database)
    services.listing = Listing(statuses)
    context = Context(services, Caller(TENANT, "key"), "request", "correlation")
    query = "{ notifications { nodes { id state user { name preferences { channels } } messages { id state attempts { state } } } } }"
    try:
        found = await graphql_schema().execute(query, context_value=context)
    finally:
        await database.close()
    assert found.errors is None and found.data is not None
    assert len(found.data["notifications"]["nodes"]) == 25
    assert 3 <= statuses.questions + database.questions <= 5
    assert database.questions == 1


def test_message_is_found_by_its_id(graph: Graph) -> None:
    nid = next(nid for nid in graph.mine if shown_by_rest(graph, nid)["messages"])
    message = shown_by_rest(graph, nid)["messages"][0]
    shown = graph.ask(
        "query ($id: ID!) { message(id: $id) { id channel state notification { id } } }", id=message["id"]
    )["message"]
    assert shown == {**{name: message[name] for name in ("id", "channel", "state")}, "notification": {"id": nid}}
    unknown = ids.message_id(nid, "email", "another address")
    assert graph.ask("query ($id: ID!) { message(id: $id) { id } }", id=unknown)["message"] is None


def test_hours_and_failures_are_those_of_the_views(graph: Graph) -> None:
    query = """query ($from: DateTime!, $to: DateTime!) {
      accounting(from: $from, to: $to) { hour accepted unknown deadLettered simulated skipped suppressed expired cancelled
        rejected failed sent undelivered delivered bounced inFlight residual }
      failures(from: $from, to: $to) { channel provider state reason why failures lastAt exampleDetail exampleNotificationId } }"""
    newest, oldest = (shown_by_rest(graph, nid)["acceptedAt"] for nid in (graph.mine[0], graph.mine[-1]))
    found = graph.ask(query, **{"from": oldest, "to": newest})
    assert sum(hour["accepted"] for hour in found["accounting"]) >= 500
    for hour in found["accounting"]:
        settled = [value for name, value in hour.items() if name not in ("hour", "accepted", "residual")]
        assert hour["accepted"] == sum(settled) and hour["hour"].endswith(":00:00.000Z")
    failed = sum(one["failures"] for one in found["failures"] if one["state"] == "failed")
    listed = pages(graph, f"notifications(first: 50, after: $after) {{ nodes {{ messages {{ state }} }} {PAGE} }}")
    assert failed == sum(m["state"] == "FAILED" for one in listed for m in one["messages"]) > 0
    assert UUID(found["failures"][0]["exampleNotificationId"])
    assert graph.error(query, **{"from": newest, "to": "2020-01-01T00:00:00Z"})["code"] == "invalid_parameter"


def test_every_field_of_the_schema_is_asked_for_and_answers(graph: Graph) -> None:
    """Each type from somewhere, each of its fields: none fails, and none is without a resolver."""
    schema = graphql_schema()._schema
    arguments = {
        "notification": f'(id: "{graph.mine[0]}")',
        "notifications": "(first: 1)",
        "user": '(id: "u0")',
        "template": '(id: "order")',
        "preview": '(template: "order", channel: EMAIL, data: {name: "x"})',
        "accounting": '(from: "2026-01-01T00:00:00Z", to: "2026-01-02T00:00:00Z")',
        "failures": '(from: "2026-01-01T00:00:00Z", to: "2026-01-02T00:00:00Z")',
        "message": f'(id: "{ids.message_id(graph.mine[0], "email", "x")}")',
    }
    asked: set[str] = set()

    def selection(kind: Any, depth: int) -> str | None:
        """All of it down to a depth; None where that does not suffice."""
        while isinstance(kind, GraphQLNonNull | GraphQLList):
            kind = kind.of_type
        if not isinstance(kind, GraphQLObjectType):
            return ""
        if depth > 4:
            return None
        below = {name: selection(of.type, depth + 1) for name, of in kind.fields.items()}
        parts = [f"{name}{inner}" for name, inner in below.items() if inner is not None]
        asked.update(f"{kind.name}.{name}" for name, inner in below.items() if inner is not None)
        return " { " + " ".join(parts) + " }" if parts else None

    assert schema.query_type is not None
    for name, of in schema.query_type.fields.items():
        asked.add(f"Query.{name}")
        answer = graph.post({"query": f"{{ {name}{arguments.get(name, '')}{selection(of.type, 1)} }}"})
        assert answer.status == 200 and "errors" not in answer.body, (name, answer.body)
    # What mutations and subscriptions alone give is asked for in their tests.
    every, left = set[str](), [schema.query_type]
    while left:
        kind = left.pop()
        for name, of in kind.fields.items():
            if f"{kind.name}.{name}" not in every and isinstance(below := get_named_type(of.type), GraphQLObjectType):
                left.append(below)
            every.add(f"{kind.name}.{name}")
    assert every - asked == set()


REFUSED: dict[str, tuple[Any, int, str]] = {
    "no query": ({}, 400, "invalid_request"),
    "a batch": ([{"query": "{ viewer { tenant } }"}], 400, "invalid_request"),
    "a number": (5, 400, "invalid_request"),
    "wrong variables": ({"query": "{ viewer { tenant } }", "variables": []}, 400, "invalid_request"),
    "syntax": ({"query": "{ viewer"}, 400, "invalid_query"),
    "no such field": ({"query": "{ viewer { secret } }"}, 400, "invalid_query"),
    "no such operation": ({"query": "query a { viewer { tenant } }", "operationName": "b"}, 400, "invalid_query"),
    "wrong variable": (
        {"query": "query ($n: Int!) { users(first: $n) { nodes { id } } }", "variables": {"n": "x"}},
        400,
        "invalid_query",
    ),
    "tokens": ({"query": "{" + " viewer" * 2_000 + "}"}, 400, "query_too_large"),
    "deep": ({"query": "{ a" * 900 + "}" * 900}, 400, "invalid_query"),
    "deep value": ({"query": "{ a(b: " + "[" * 1_900 + ")}"}, 400, "invalid_query"),
    "cost": ({"query": "{ notifications(first: 100) { nodes { events { id } } } }"}, 400, "query_too_large"),
    "cycle": ({"query": "{ viewer { ...a } } fragment a on Viewer { ...a }"}, 400, "query_too_large"),
    "huge": ({"query": "{ viewer { tenant } }" + " " * 300_000}, 413, "body_too_large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_it_runs(graph: Graph, name: str) -> None:
    body, code, said = REFUSED[name]
    answer = graph.post(body)
    assert (answer.status, answer.body["errors"][0]["extensions"]["code"]) == (code, said), answer
    assert answer.body["errors"][0]["extensions"]["status"] == code
    assert answer.body.get("data") is None


def test_wrong_arguments_have_codes_of_rest_and_say_where(graph: Graph) -> None:
    for query, code, pointer in (
        ("{ notifications(first: 101) { nodes { id } } }", "invalid_parameter", "/first"),
        ('{ notifications(after: "x") { nodes { id } } }', "invalid_cursor", ""),
        ('{ notification(id: "x") { id } }', "invalid_id", None),
        ('{ preview(template: "order", channel: EMAIL) { text } }', "missing_variable", "/data/name"),
        ('{ preview(template: "none", channel: EMAIL) { text } }', "not_found", None),
    ):
        error = graph.error(query)
        assert (error["code"], error["pointer"]) == (code, pointer), query


def test_what_is_not_a_query_by_post_is_refused(graph: Graph) -> None:
    assert graph.api.call("GET", "/graphql").status == 405
    assert graph.api.call("GET", "/graphql?query={viewer{tenant}}").status == 405
    assert graph.post({"query": "{ viewer { tenant } }"}, kind="multipart/form-data").status == 415
    nobody = graph.post({"query": "{ viewer { tenant } }"}, Api(graph.api.url, "hg_nobody"))
    assert (nobody.status, nobody.body["errors"][0]["extensions"]["code"]) == (401, "unauthenticated")


def test_schema_is_served_as_it_is_committed(graph: Graph) -> None:
    answer = graph.api.call("GET", "/graphql/schema.graphql", key="")
    assert (answer.status, answer.body) == (200, committed_sdl())


def test_another_tenant_is_unknown(graph: Graph) -> None:
    query = "query ($id: ID!) { notification(id: $id) { id } }"
    assert graph.ask(query, id=graph.theirs)["notification"] is None
    assert graph.ask(query, graph.other, id=graph.theirs)["notification"] == {"id": graph.theirs}
    assert graph.ask(query, graph.other, id=graph.mine[0])["notification"] is None
    everything = '{ notifications { nodes { id } } users { nodes { id } } templates { nodes { id } } suppressions { nodes { id } } viewer { tenant } user(id: "u0") { id } template(id: "order") { id } }'
    assert graph.ask(everything, graph.other) == {
        "notifications": {"nodes": [{"id": graph.theirs}]},
        "users": {"nodes": []},
        "templates": {"nodes": []},
        "suppressions": {"nodes": []},
        "viewer": {"tenant": "other"},
        "user": None,
        "template": None,
    }

"""Webhooks over HTTP: where a customer's program hears of facts; and their test, which makes one signed request.

A secret is shown once, when it is made. What is said of deliveries is what the hooks role has written down last.
May import fastapi and senders.hooks. Never: SQL, a secret in a log or a list.
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
import asyncio
from typing import Annotated, Any, Protocol
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field

from api.caller import Authenticate, Caller
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, invalid_cursor, page, read_cursor, write_cursor
from api.path_ids import PathId
from api.reference.responses import WriteResponses
from api.requests import JSON_TYPE, MERGE_PATCH_TYPE, read_json, read_model
from producers.checking import check_model
from producers.notification import Category, Line, Strict, Time
from producers.reference.service import missing, or_missing
from producers.reference.store import Row
from producers.reference.webhooks import MAX_PER_TENANT, TooManyError, WebhookStore
from runtime.clock import Clock, system_clock
from runtime.errors import FieldError, SettingsError
from runtime.http.problems import Problem
from runtime.outbound import MAX_URL_CHARS, OutboundRefusedError
from runtime.sealing import SealedError, Sealer
from runtime.settings import HookSettings
from runtime.status import rfc3339
from schemas.channels import ChannelName
from schemas.events import HookPosition, states
from schemas.topics import DAY_MS, HOOK_POSITIONS, STATUS, catalogue, retention_s
from senders.hooks.cursor import position_key
from senders.hooks.endpoint import DISABLED, FAILING, LIVE
from senders.hooks.facts import body_of
from senders.hooks.posting import HookClient
from vendors.webhook.signature import Signer, new_secret

OVERLAP_MS = DAY_MS
"""For how long the secret before signs as well, unless the caller says."""
MAX_OVERLAP_S = 7 * 86_400
MAX_TESTS = 8
SHOWN_CHARS = 1_000
"""Of the answer to a test."""
_PARTITIONS = max(catalogue()[HOOK_POSITIONS].partitions.values())


def _state(text: str) -> str:
    if text not in states().all:
        raise ValueError(f"not a state: one of {', '.join(sorted(states().all))}")
    return text


_StateNames = list[Annotated[str, AfterValidator(_state)]]
_States = Annotated[_StateNames, Field(max_length=32, default_factory=list)]
_Channels = Annotated[list[ChannelName], Field(max_length=16, default_factory=list)]
_Categories = Annotated[list[Category], Field(max_length=50, default_factory=list)]
_Url = Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS)]
_Description = Annotated[Line, Field(max_length=255)]


class NewWebhook(Strict):
    """An endpoint, and the facts it wants: all, where a list is empty."""

    url: _Url
    description: _Description = ""
    states: _States
    channels: _Channels
    categories: _Categories
    enabled: bool = True


class ChangedWebhook(Strict):
    """Fields to change; any change gives a failing or disabled endpoint a new chance."""

    url: _Url | None = None
    description: _Description | None = None
    states: Annotated[_StateNames, Field(max_length=32)] | None = None
    channels: Annotated[list[ChannelName], Field(max_length=16)] | None = None
    categories: Annotated[list[Category], Field(max_length=50)] | None = None
    enabled: bool | None = None


def changes_of(body: ChangedWebhook) -> dict[str, Any]:
    """What the store is to set; null takes a text or filter away. Raises Problem for what a webhook always has."""
    changes = body.model_dump(exclude_unset=True)
    for name in [name for name, value in changes.items() if value is None]:
        if name in ("url", "enabled"):
            raise _refused(f"/{name}", "a webhook always has it: it cannot be null")
        changes[name] = "" if name == "description" else []
    return changes


class Rotation(Strict):
    """How long the secret before signs as well."""

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S)] = OVERLAP_MS // 1000


class Replay(Strict):
    """The time from which facts are sent again; those that are gone from the topic are not."""

    from_: Annotated[Time, Field(alias="from")]


class Positions(Protocol):
    """A view of notify.hookpositions.v1."""

    def get(self, key: str) -> HookPosition | None: ...


class WebhookSecrets:
    """Seals new secrets; without a key in the settings there are no webhooks."""

    def __init__(self, settings: HookSettings) -> None:
        self._sealer = None
        self._why = ""
        try:
            self._sealer = Sealer(settings.key)
        except SettingsError as exc:
            self._why = str(exc)

    @property
    def sealer(self) -> Sealer:
        """Raises Problem (503)."""
        if self._sealer is None:
            raise Problem(
                503, "webhooks_off", f"webhooks are not set up here: {self._why}", headers={"Retry-After": "60"}
            )
        return self._sealer


def _place(tenant: str, webhook_id: UUID) -> str:
    return f"{tenant}:{webhook_id}"


def webhook_id_of(path_id: str) -> UUID:
    """The id out of a path. Raises RefusedError."""
    try:
        found = UUID(path_id)
    except ValueError as exc:
        raise missing("endpoint") from exc
    if str(found) != path_id.lower():
        raise missing("endpoint")
    return found


class Deliveries:
    """What the hooks role has written down of an endpoint: the sum over the partitions."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions

    def of(self, row: Row) -> dict[str, Any]:
        """As callers see it."""
        found = [self._positions.get(position_key(str(row["webhook_id"]), n)) for n in range(_PARTITIONS)]
        known = [each for each in found if each is not None and each["endpoint_version"] == row["version"]]
        failing = [each for each in known if each["condition"] == FAILING]
        disabled = [each for each in known if each["condition"] == DISABLED]
        worst = next(iter(disabled or failing), None)
        since = [each["failing_since"] for each in failing if each["failing_since"] is not None]
        following = [each["next_at"] for each in failing if each["next_at"] is not None]
        condition = DISABLED if disabled or not row["enabled"] else FAILING if failing else LIVE
        return {
            "condition": condition,
            "cause": "by_caller" if not row["enabled"] else worst["cause"] if worst is not None else None,
            "failing_since": rfc3339(min(since)) if since else None,
            "next_at": rfc3339(min(following)) if following else None,
            "behind": sum(each["behind"] + len(each["owed"]) for each in known),
            "dropped": sum(each["dropped"] for each in found if each is not None),
            "given_up": sum(each["given_up"] for each in found if each is not None),
        }


def _shown(row: Row, deliveries: Deliveries) -> dict[str, Any]:
    until = row["previous_until"]
    return {
        "id": str(row["webhook_id"]),
        **{name: row[name] for name in ("url", "description", "states", "channels", "categories", "enabled")},
        "previous_secret_until": rfc3339(until) if until is not None else None,
        "deliveries": deliveries.of(row),
        "created_at": rfc3339(row["created_at"]),
        "updated_at": rfc3339(row["updated_at"]),
    }


def _refused(pointer: str, why: str) -> Problem:
    return Problem(400, "invalid_request", why, errors=[FieldError(pointer, why, "invalid_value")])


def webhooks_router(
    store: WebhookStore,
    secrets: WebhookSecrets,
    positions: Positions,
    client: HookClient,
    responses: WriteResponses,
    authenticate: Authenticate,
    clock: Clock = system_clock,
) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], default_response_class=JSONResponse)
    # Authenticate first: the body of an unknown caller is not read.
    Who = Annotated[Caller, Depends(authenticate)]
    deliveries = Deliveries(positions)
    tests = asyncio.Semaphore(MAX_TESTS)

    def check_url(url: str) -> None:
        try:
            client.check_url(url)
        except OutboundRefusedError as exc:
            raise _refused("/url", str(exc)) from exc

    def shown(row: Row) -> dict[str, Any]:
        return _shown(row, deliveries)

    @router.post("", status_code=201)
    async def create_webhook(request: Request, caller: Who) -> JSONResponse:
        """Tell an endpoint of facts from now on. The answer shows its secret, and no other does."""
        sealer = secrets.sealer
        body = await read_model(request, NewWebhook)
        check_url(body.url)
        webhook_id, secret = uuid4(), new_secret()
        sealed = sealer.seal(secret, _place(caller.tenant, webhook_id))
        try:
            written = await store.create(caller.tenant, webhook_id, body.model_dump(), sealed)
        except TooManyError as exc:
            raise Problem(409, "too_many_webhooks", f"there are {MAX_PER_TENANT} webhooks: delete one first") from exc
        return await responses.written(written, {**shown(written.row), "secret": secret}, f"/v1/webhooks/{webhook_id}")

    @router.get("")
    async def list_webhooks(caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT) -> JSONResponse:
        """Webhooks by id."""
        position = read_cursor(cursor, str)
        try:
            after = UUID(position[0]) if position else None
        except ValueError as exc:
            raise invalid_cursor() from exc
        rows = await store.page(caller.tenant, after, limit + 1)
        return JSONResponse(page(rows, limit, shown, lambda row: write_cursor(str(row["webhook_id"]))))

    @router.get("/{webhook_id}")
    async def get_webhook(webhook_id: PathId, caller: Who) -> JSONResponse:
        """Read a webhook, and how its deliveries go."""
        return JSONResponse(shown(await or_missing(store.get(caller.tenant, webhook_id_of(webhook_id)), "endpoint")))

    @router.patch("/{webhook_id}")
    async def change_webhook(webhook_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Change fields. Whatever is changed: an endpoint that fails or is disabled is asked again."""
        found = webhook_id_of(webhook_id)
        body = check_model(ChangedWebhook, await read_json(request, MERGE_PATCH_TYPE, JSON_TYPE))
        if body.url is not None:
            check_url(body.url)
        written = await or_missing(store.change(caller.tenant, found, changes_of(body)), "endpoint")
        return await responses.written(written, shown(written.row))

    @router.delete("/{webhook_id}", status_code=204)
    async def delete_webhook(webhook_id: PathId, caller: Who) -> Response:
        """Tell it nothing more."""
        return await responses.deleted(
            await or_missing(store.delete(caller.tenant, webhook_id_of(webhook_id)), "endpoint")
        )

    @router.post("/{webhook_id}/rotate")
    async def rotate_secret(webhook_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Make another secret, which is shown once; for a while requests are signed by both."""
        sealer, found = secrets.sealer, webhook_id_of(webhook_id)
        body = await read_model(request, Rotation)
        secret = new_secret()
        sealed = sealer.seal(secret, _place(caller.tenant, found))
        until = clock() + body.overlap_s * 1000
        written = await or_missing(store.rotate(caller.tenant, found, sealed, until), "endpoint")
        return await responses.written(written, {**shown(written.row), "secret": secret})

    @router.post("/{webhook_id}/test")
    async def test_webhook(webhook_id: PathId, caller: Who) -> JSONResponse:
        """Make one signed request now, and show what the endpoint answers."""
        sealer, found = secrets.sealer, webhook_id_of(webhook_id)
        row = await or_missing(store.get(caller.tenant, found), "endpoint")
        try:
            signer = Signer([sealer.open(row["secret"], _place(caller.tenant, found))])
        except SealedError as exc:
            why = "the secret was sealed under another key than the settings have; rotate it"
            raise Problem(409, "secret_sealed", why) from exc
        now = clock()
        body = body_of("endpoint.test", now, {"webhook_id": str(found)})
        if tests.locked():
            raise Problem(429, "too_many_tests", "too many tests run now", headers={"Retry-After": "5"})
        async with tests:
            outcome = await client.post(row["url"], signer, str(uuid4()), body)
        return JSONResponse(
            {
                "delivered": outcome.kind == "delivered",
                "answer": outcome.code,
                "body": outcome.body.decode("utf-8", "replace")[:SHOWN_CHARS],
                "took_ms": max(0, clock() - now),
            }
        )

    @router.post("/{webhook_id}/replay", status_code=202)
    async def replay_webhook(webhook_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Send what was published since a time, under the ids it had; `from` now skips what is behind."""
        found = webhook_id_of(webhook_id)
        body = await read_model(request, Replay)
        now, kept_ms = clock(), (retention_s(STATUS) or 0) * 1000
        if not now - kept_ms <= body.from_ <= now:
            raise _refused("/from", f"facts are kept for {kept_ms // DAY_MS} days: from is a time of those")
        written = await or_missing(store.replay(caller.tenant, found, body.from_), "endpoint")
        await responses.written(written, {})
        return JSONResponse({"id": str(found), "from": rfc3339(body.from_)}, 202)

    return router

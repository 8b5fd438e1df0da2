"""The API's application on a store in memory: every route, no server, no socket."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

import httpx
from pydantic_core import to_json
from starlette.types import ASGIApp

from api.app import Deps, create_app
from api.reference.preview import preview_router
from api.requests import Authenticator
from producers.reference.keys import Keys
from producers.reference.propagation import Propagation
from producers.reference.service import ReferenceService
from producers.reference.store import (
    MAX_PAGE_BYTES,
    ExistsError,
    Listed,
    NewSuppression,
    NotFoundError,
    ReferenceStore,
    Row,
    Written,
)
from producers.reference.template_check import TemplateCheck
from runtime.health import Health
from runtime.workers import Workers
from tests.unit.test_http_ingest import FakeKeys, World
from tracking.preview import Previewer

NOW = 1_767_225_600_000


def _check(*texts: str | None) -> None:
    assert not any("\0" in (text or "") for text in texts), "PostgreSQL's text takes no NUL"


class MemoryStore(ReferenceStore):
    """Users, templates and suppressions of one tenant, as PostgreSQL takes them."""

    def __init__(self) -> None:
        self.users: dict[str, Row] = {}
        self.preferences: dict[str, Row] = {}
        self.templates: dict[str, list[Row]] = {}
        self.suppressed: list[NewSuppression] = []

    def _user(self, user_id: str) -> Row:
        _check(user_id)
        if user_id not in self.users:
            raise NotFoundError
        return self.users[user_id]

    async def create_user(self, tenant: str, user: Mapping[str, Any]) -> Written:
        _check(user["id"])
        if user["id"] in self.users:
            raise ExistsError
        row = {**user, "user_id": user["id"], "created_at": NOW, "updated_at": NOW}
        self.users[user["id"]] = row
        return Written(row, None)

    async def replace_user(self, tenant: str, user_id: str, user: Mapping[str, Any]) -> Written:
        self.users[user_id] = {**self._user(user_id), **user}
        return Written(self.users[user_id], None, created=False)

    async def change_user(self, tenant: str, user_id: str, change: Any) -> Written:
        return await self.replace_user(tenant, user_id, change(self._user(user_id)))

    async def delete_user(self, tenant: str, user_id: str) -> Written:
        row = self._user(user_id)
        del self.users[user_id]
        return Written(row, None, created=False)

    async def list_users(self, tenant: str, after: str, limit: int, prefix: str = "") -> Listed:
        _check(after, prefix)
        users = [row for user_id, row in sorted(self.users.items()) if user_id > after and user_id.startswith(prefix)]
        return _listed(users, limit, "devices")

    async def get_user(self, tenant: str, user_id: str) -> Row:
        return self._user(user_id)

    async def replace_preferences(self, tenant: str, user_id: str, preferences: Mapping[str, Any]) -> Written:
        self._user(user_id)
        self.preferences[user_id] = dict(preferences)
        return Written(dict(preferences), None, created=False)

    async def get_preferences(self, tenant: str, user_id: str) -> Row:
        self._user(user_id)
        return self.preferences.get(user_id, {"channels": {}, "categories": {}})

    async def create_template(
        self, tenant: str, template_id: str, template: Mapping[str, Any], *, publish: bool
    ) -> Written:
        if template_id in self.templates:
            raise ExistsError
        self.templates[template_id] = []
        return self._add(template_id, template, publish)

    async def add_template_version(
        self, tenant: str, template_id: str, template: Mapping[str, Any], *, publish: bool
    ) -> Written:
        _check(template_id)
        if template_id not in self.templates:
            raise NotFoundError
        return self._add(template_id, template, publish)

    def _add(self, template_id: str, template: Mapping[str, Any], publish: bool) -> Written:
        versions = self.templates[template_id]
        row = {
            **template,
            "tenant": "shop",
            "template_id": template_id,
            "version": len(versions) + 1,
            "published": publish,
            "created_at": NOW,
            "updated_at": NOW,
        }
        versions.append(row)
        return Written(row, None)

    async def find_template(self, tenant: str, template_id: str, version: int | None) -> Row | None:
        versions = self.templates.get(template_id, [])
        return versions[-1] if versions else None

    async def get_template(self, tenant: str, template_id: str, version: int | None = None) -> Row:
        _check(template_id)
        if not self.templates.get(template_id):
            raise NotFoundError
        return self.templates[template_id][-1]

    async def publish_template(self, tenant: str, template_id: str, version: int) -> Written:
        return Written(await self.get_template(tenant, template_id, version), None, created=False)

    async def list_templates(self, tenant: str, after: str, limit: int) -> list[Row]:
        _check(after)
        return []

    async def list_versions(self, tenant: str, template_id: str, before: int, limit: int) -> Listed:
        _check(template_id)
        return _listed(self.templates.get(template_id, [])[::-1], limit, "channels", "locales", "written")

    async def suppress(self, tenant: str, suppressions: Sequence[NewSuppression]) -> list[Written]:
        self.suppressed += suppressions
        return [Written(_suppression(one), None) for one in suppressions]

    async def list_suppressions(self, tenant: str, **filters: Any) -> list[Row]:
        _check(filters.get("channel"), filters.get("reason"), *(filters.get("hashes") or ()))
        return []

    async def unsuppress(self, tenant: str, suppression_id: uuid.UUID) -> Written:
        raise NotFoundError


def _listed(rows: list[Row], limit: int, *large: str) -> Listed:
    shown, size = list[Row](), 0
    for row in rows[:limit]:
        if size >= MAX_PAGE_BYTES:
            break
        shown.append(row)
        size += sum(len(to_json(row[name])) for name in large)
    return Listed(shown, len(rows) > len(shown))


def _suppression(one: NewSuppression) -> Row:
    return {
        "suppression_id": uuid.uuid4(),
        "channel": one.channel,
        "address": one.address,
        "address_hash": one.fingerprint,
        "reason": one.reason,
        "source": None,
        "expires_at": one.expires_at,
        "created_at": NOW,
    }


class HttpWorld:
    """The application, and a client of it."""

    def __init__(self) -> None:
        self.ingest_world = World()
        self.store, self.workers = MemoryStore(), Workers()
        authenticator = Authenticator(cast(Keys, FakeKeys()))
        deps = Deps(
            self.ingest_world.ingest,
            authenticator,
            self.store,
            ReferenceService(
                self.store,
                self.ingest_world.templates,
                TemplateCheck(self.store, self.workers),
                Propagation(self.store.unpublished),
            ),
            Health(),
        )
        self.app: ASGIApp = create_app(deps, [preview_router(self.store, authenticator, Previewer(self.workers))])

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """An answer; an exception that the application does not handle is a 500 here."""
        headers = {"Authorization": "Bearer key-of-shop", **more.pop("headers", {})}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
            if body is not None:
                more["json"] = body
            return await client.request(method, path, **more)

    def close(self) -> None:
        self.workers.close()


def quoted(text: str) -> str:
    """As one part of a path."""
    return quote(text, safe="")

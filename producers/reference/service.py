"""Reference data as every face reads and writes it: REST, GraphQL and commands call these and refuse alike.

An answer to a write comes once the relay has published it, or after a second (producers/reference/propagation.py).
May import producers and runtime. Never: HTTP, SQL.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from producers.addresses import NORMAL_FORMS, has_control
from producers.checking import check_model
from producers.reference.catalogue import TemplateCatalogue
from producers.reference.inputs import (
    MAX_VERSION,
    NewSuppression,
    NewTemplate,
    NewUser,
    NewVersion,
    Preferences,
    ReplacedUser,
)
from producers.reference.propagation import Propagation
from producers.reference.store import ExistsError, NotFoundError, ReferenceStore, Row, Written
from producers.reference.store import NewSuppression as Stored
from producers.reference.template_check import TemplateCheck
from runtime import ids
from runtime.errors import FieldError, Refusal, RefusedError
from runtime.status import rfc3339
from runtime.templates.layouts import written_form
from schemas.channels import CONTACT_FIELDS

Json = dict[str, Any]
Found = TypeVar("Found")
_CHUNK = 500
_USER_FIELDS = ("name", *CONTACT_FIELDS, "locale", "time_zone", "devices")


class Done(NamedTuple):
    """What a write made: the entity as callers see it, and whether it is new."""

    body: Json
    created: bool


class Entries(NamedTuple):
    """A page: the rows of the store, and whether there are more."""

    rows: Sequence[Row]
    more: bool


def merge_patch(target: Any, patch: Any) -> Any:
    """The target changed by the patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    changed = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            changed.pop(name, None)
        else:
            changed[name] = merge_patch(changed.get(name), value)
    return changed


def show_user(row: Row) -> Json:
    """As callers see it."""
    times = {name: rfc3339(row[name]) for name in ("created_at", "updated_at")}
    return {"id": row["user_id"], **{name: row[name] for name in _USER_FIELDS}, **times}


def show_template(row: Row, *, sources: bool) -> Json:
    """A version of a template; with `sources` as its author wrote it."""
    short = {
        "id": row["template_id"],
        "version": row["version"],
        "published": row["published"],
        "variables": row["variables"],
    }
    return {**short, "category": row["category"], **written_form(row)} if sources else short


def show_version(row: Row) -> Json:
    """A version among the others of its template."""
    return {**show_template(row, sources=True), "created_at": rfc3339(row["created_at"])}


def show_listed_template(row: Row) -> Json:
    """A template among others."""
    return {
        "id": row["template_id"],
        "category": row["category"],
        "published_version": row["published_version"],
        "latest_version": row["latest_version"],
        "updated_at": rfc3339(row["updated_at"]),
    }


def show_suppression(row: Row) -> dict[str, Any]:
    """As callers see it; without an address where only its fingerprint is known, with what bounced in `source`."""
    return {
        "id": str(row["suppression_id"]),
        **{name: row[name] for name in ("channel", "address", "address_hash", "reason", "source")},
        "expires_at": rfc3339(row["expires_at"]) if row["expires_at"] is not None else None,
        "created_at": rfc3339(row["created_at"]),
    }


def _hashes(address: str) -> list[str]:
    """The fingerprints an address may have; [] for a text that is not an address."""
    found = []
    for channel, normal in NORMAL_FORMS.items():
        try:
            found.append(ids.address_hash(channel, normal(address)))
        except ValueError:
            continue
    return found


class ReferenceService:
    """What a tenant may do with its reference data. Every method raises RefusedError, and UnavailableError without the store."""

    def __init__(
        self, store: ReferenceStore, catalogue: TemplateCatalogue, check: TemplateCheck, propagation: Propagation
    ) -> None:
        self._store, self._catalogue, self._check, self._propagation = store, catalogue, check, propagation

    async def _done(self, written: Written, body: Json) -> Done:
        await self._propagation.wait(written.outbox_id)
        return Done(body, written.created)

    # ------------------------------------------------------------ users

    async def create_user(self, tenant: str, user: NewUser) -> Done:
        """A new recipient."""
        try:
            written = await self._store.create_user(tenant, {"id": user.id, **user.fields()})
        except ExistsError as exc:
            raise _exists("there is a user with this id; PUT replaces it") from exc
        return await self._done(written, show_user(written.row))

    async def list_users(self, tenant: str, after: str, limit: int, prefix: str = "") -> Entries:
        """Recipients by id, above `after`, whose id begins with `prefix`; a page of large ones has fewer than `limit`."""
        return Entries(*await self._store.list_users(tenant, after, limit, prefix))

    async def user(self, tenant: str, user_id: str) -> Json:
        """One recipient."""
        return show_user(await or_missing(self._store.get_user(tenant, _clean(user_id)), "user"))

    async def replace_user(self, tenant: str, user_id: str, user: ReplacedUser) -> Done:
        """A recipient as it is from now on; preferences stay."""
        _check_same_id(user.id, user_id)
        written = await or_missing(self._store.replace_user(tenant, _clean(user_id), user.fields()), "user")
        return await self._done(written, show_user(written.row))

    async def change_user(self, tenant: str, user_id: str, patch: Any) -> Done:
        """A recipient changed by a JSON merge patch (RFC 7396)."""
        if not isinstance(patch, dict):
            raise RefusedError(Refusal.INVALID, "invalid_request", "a merge patch of a user is an object")
        _check_same_id(patch.get("id"), user_id)

        def changed(row: Row) -> Row:
            return check_model(ReplacedUser, merge_patch({name: row[name] for name in _USER_FIELDS}, patch)).fields()

        written = await or_missing(self._store.change_user(tenant, _clean(user_id), changed), "user")
        return await self._done(written, show_user(written.row))

    async def delete_user(self, tenant: str, user_id: str) -> None:
        """A recipient with the preferences."""
        written = await or_missing(self._store.delete_user(tenant, _clean(user_id)), "user")
        await self._propagation.wait(written.outbox_id)

    async def preferences(self, tenant: str, user_id: str) -> Json:
        """What a recipient wants."""
        return await or_missing(self._store.get_preferences(tenant, _clean(user_id)), "user")

    async def replace_preferences(self, tenant: str, user_id: str, preferences: Preferences) -> Done:
        """What a recipient wants from now on."""
        replacing = self._store.replace_preferences(tenant, _clean(user_id), preferences.model_dump())
        written = await or_missing(replacing, "user")
        return await self._done(written, {name: written.row[name] for name in ("channels", "categories")})

    # ------------------------------------------------------------ templates

    async def create_template(self, tenant: str, template: NewTemplate) -> Done:
        """A template with its first version."""
        version = await self._check.version(tenant, template.category, template.written_as(template.id))
        try:
            written = await self._store.create_template(tenant, template.id, version, publish=template.publish)
        except ExistsError as exc:
            raise _exists("there is a template with this id; POST .../versions adds a version") from exc
        self._catalogue.wrote(written.row, published=template.publish)
        return await self._done(written, show_template(written.row, sources=False))

    async def add_version(self, tenant: str, template_id: str, template: NewVersion) -> Done:
        """One more version; versions never change."""
        _check_same_id(template.id, template_id)
        version = await self._check.version(tenant, template.category, template.written_as(template_id))
        adding = self._store.add_template_version(tenant, _clean(template_id), version, publish=template.publish)
        written = await or_missing(adding, "template")
        self._catalogue.wrote(written.row, published=template.publish)
        return await self._done(written, show_template(written.row, sources=False))

    async def publish_template(self, tenant: str, template_id: str, version: int) -> Done:
        """Another version, also an older one, is the published one."""
        publishing = self._store.publish_template(tenant, _clean(template_id), version)
        written = await or_missing(publishing, "template version")
        self._catalogue.wrote(written.row, published=True)
        return await self._done(written, show_template(written.row, sources=False))

    async def list_templates(self, tenant: str, after: str, limit: int) -> Entries:
        """Templates by id, above `after`."""
        rows = await self._store.list_templates(tenant, after, limit + 1)
        return Entries(rows[:limit], len(rows) > limit)

    async def list_versions(self, tenant: str, template_id: str, before: int | None, limit: int) -> Entries:
        """Versions of a template, the newest first, below `before`; a page of large ones has fewer than `limit`."""
        below = MAX_VERSION if before is None else min(before, MAX_VERSION)
        rows, more = await self._store.list_versions(tenant, _clean(template_id), below, limit)
        if not rows and before is None:
            raise missing("template")
        return Entries(rows, more)

    async def template(self, tenant: str, template_id: str, version: int | None = None) -> Json:
        """A version; else the published one; else the latest."""
        row = await or_missing(self._store.get_template(tenant, _clean(template_id), version), "template")
        return show_template(row, sources=True)

    # ------------------------------------------------------------ suppressions

    async def suppress(self, tenant: str, suppression: NewSuppression) -> Done:
        """Never send to an address, or not until its `expires_at`."""
        (written,) = await self._store.suppress(tenant, [suppression.stored()])
        return await self._done(written, show_suppression(written.row))

    async def suppress_all(self, tenant: str, suppressions: Sequence[Stored]) -> int:
        """The same for many, in steps; how many of them are new."""
        outbox_id = None
        created = 0
        for start in range(0, len(suppressions), _CHUNK):
            written = await self._store.suppress(tenant, suppressions[start : start + _CHUNK])
            created += sum(one.created for one in written)
            outbox_id = written[-1].outbox_id
        await self._propagation.wait(outbox_id)
        return created

    async def list_suppressions(
        self,
        tenant: str,
        limit: int,
        *,
        channel: str | None = None,
        reason: str | None = None,
        address: str | None = None,
        before: tuple[int, UUID] | None = None,
    ) -> Entries:
        """The newest first; an expired one stays in the list until it is deleted. `address` is in any spelling."""
        if reason is not None and has_control(reason):
            return Entries([], more=False)
        hashes = None if address is None else _hashes(address)
        rows = await self._store.list_suppressions(
            tenant, channel=channel, reason=reason, hashes=hashes, before=before, limit=limit + 1
        )
        return Entries(rows[:limit], len(rows) > limit)

    async def unsuppress(self, tenant: str, suppression_id: str) -> None:
        """The address may be sent to again."""
        try:
            if str(UUID(suppression_id)) != suppression_id.lower():
                raise NotFoundError
            written = await self._store.unsuppress(tenant, UUID(suppression_id))
        except (ValueError, NotFoundError) as exc:
            raise missing("suppression") from exc
        await self._propagation.wait(written.outbox_id)


def _clean(given: str) -> str:
    """An id out of a path or query: PostgreSQL's text takes no NUL, and no entity's id has a control character."""
    if has_control(given):
        raise missing("id")
    return given


def _check_same_id(body_id: Any, path_id: str) -> None:
    """Raises RefusedError for a body that names another id than its path."""
    if body_id is not None and body_id != path_id:
        why = "id differs from the one in the path"
        raise RefusedError(Refusal.INVALID, "invalid_request", why, errors=[FieldError("/id", why, "invalid_value")])


def missing(what: str) -> RefusedError:
    """The refusal of what does not exist, or not for this tenant."""
    return RefusedError(Refusal.UNKNOWN, "not_found", f"there is no such {what}")


def _exists(why: str) -> RefusedError:
    return RefusedError(Refusal.CONFLICT, "conflict", why, errors=[FieldError("/id", why, "conflict")])


async def or_missing(reading: Awaitable[Found], what: str) -> Found:
    """What the store returns. Raises RefusedError where it finds nothing."""
    try:
        return await reading
    except NotFoundError as exc:
        raise missing(what) from exc

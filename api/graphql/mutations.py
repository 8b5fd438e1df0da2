"""The mutations: what REST writes, by the same functions, with the same guarantees and refusals.

A mutation returns when its REST twin would answer: `send` once every in-sync replica has the request.
May import strawberry and the services of the context. Never: SQL, a record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from api.graphql.inputs import (
    PreferencesInput,
    SendInput,
    SuppressionInput,
    TemplateInput,
    UserInput,
    given,
    moved,
    notification_body,
)
from api.graphql.reference import (
    Info,
    Suppression,
    Template,
    TemplateVersion,
    User,
    shown_suppression,
    template_of,
    user_of,
    version_of,
)
from api.graphql.scalars import DateTime, State, documented, refused
from api.ingest import MAX_ITEMS
from producers.acceptance import Accepted as AcceptedRequest
from producers.acceptance import CheckedRequest, checked_request
from producers.checking import check_model
from producers.notification import Notification
from producers.reference.inputs import NewSuppression, NewTemplate, NewUser, NewVersion, Preferences, ReplacedUser
from producers.reference.service import Done, missing
from runtime.errors import Refusal, RefusedError
from runtime.http.problems import problem_of
from runtime.status import rfc3339
from tracking.status import accepted_at_of


@strawberry.type(description="A notification that every in-sync replica has.")
class Accepted:
    id: strawberry.ID
    state: State
    accepted_at: DateTime
    generation: int
    replayed: bool = strawberry.field(description="Whether an earlier call with this requestId had it accepted.")


@strawberry.type(description="One of several that was refused; the others are not affected.")
class Refused:
    index: int
    code: str
    detail: str
    errors: JSON


SendResult = Annotated[Accepted | Refused, strawberry.union("SendResult", description="What became of one of several.")]


@strawberry.type(description="A notification that was asked to be cancelled; CANCELLED: nothing was or will be sent.")
class Cancelled:
    id: strawberry.ID
    state: State
    stored: bool = strawberry.field(description="Whether a cancellation was stored now.")


def _accepted(found: AcceptedRequest) -> Accepted:
    return Accepted(
        id=strawberry.ID(found.notification_id),
        state=State.ACCEPTED,
        accepted_at=DateTime(rfc3339(found.accepted_at)),
        generation=0,
        replayed=found.replayed,
    )


def _checked(info: Info, input: SendInput, where: str) -> CheckedRequest:
    """Raises RefusedError that points into the argument `where`."""
    context = info.context
    body = notification_body(input)
    with moved(where):
        notification = check_model(Notification, body)
    return checked_request(
        notification, body, context.tenant, notification.request_id, context.correlation_id, context.traceparent
    )


@strawberry.type
class Mutation:
    @documented
    async def send(self, info: Info, input: SendInput) -> Accepted:
        """Accept a notification: with a requestId, however often it is sent, it is one."""
        with moved("input"):
            return _accepted(await info.context.services.acceptance.accept(_checked(info, input, "")))

    @documented
    async def send_many(self, info: Info, inputs: list[SendInput]) -> list[SendResult]:
        """Accept up to 1,000, each for itself; an error of the whole says that none was accepted and all may be sent again."""
        if not 1 <= len(inputs) <= MAX_ITEMS:
            raise refused("inputs", f"1 to {MAX_ITEMS}")
        context = info.context
        # One call is counted for the request.
        context.services.authenticator.charge(context.caller, len(inputs) - 1)
        checks: list[Callable[[], CheckedRequest]] = [partial(_checked, info, one, "") for one in inputs]
        results = await context.services.acceptance.accept_many(checks, context.request_id)
        return [
            _accepted(found) if isinstance(found, AcceptedRequest) else _refused(index, found)
            for index, found in enumerate(results)
        ]

    @documented
    async def cancel(self, info: Info, id: strawberry.ID) -> Cancelled:
        """Cancel what is not sent yet; another state than CANCELLED: it is stored, and not decided yet."""
        stored, body = await info.context.services.control.cancel(info.context.tenant, id)
        return Cancelled(id=strawberry.ID(body["id"]), state=State(body["status"]), stored=stored)

    @documented
    async def resend(self, info: Info, id: strawberry.ID) -> Accepted:
        """Send a settled one again, as its next generation."""
        context = info.context
        notification_id, generation = await context.services.control.resend(
            context.tenant, id, context.correlation_id, context.traceparent
        )
        return Accepted(
            id=strawberry.ID(notification_id),
            state=State.ACCEPTED,
            accepted_at=DateTime(rfc3339(accepted_at_of(UUID(notification_id)))),
            generation=generation,
            replayed=False,
        )

    @documented
    async def put_user(self, info: Info, input: UserInput) -> User:
        """A recipient as it is from now on, new or not; preferences stay."""
        service, tenant = info.context.services.reference, info.context.tenant
        body = given(input)
        with moved("input"):
            new = check_model(NewUser, body)
            replaced = check_model(ReplacedUser, body)
            await _or_new(service.replace_user(tenant, new.id, replaced), lambda: service.create_user(tenant, new))
        return await _user(info, new.id)

    @documented
    async def delete_user(self, info: Info, id: strawberry.ID) -> strawberry.ID:
        """Delete a recipient with the preferences."""
        await info.context.services.reference.delete_user(info.context.tenant, id)
        return id

    @documented
    async def put_preferences(self, info: Info, user: strawberry.ID, input: PreferencesInput) -> User:
        """What a recipient wants from now on."""
        with moved("input"):
            body = check_model(Preferences, given(input))
        await info.context.services.reference.replace_preferences(info.context.tenant, user, body)
        return await _user(info, user)

    @documented
    async def write_template(self, info: Info, input: TemplateInput) -> TemplateVersion:
        """Write a version, the first one of a new template or one more; versions never change."""
        service, tenant = info.context.services.reference, info.context.tenant
        body = given(input)
        with moved("input"):
            version = check_model(NewVersion, body)
            template = check_model(NewTemplate, body)
            written = await _or_new(
                service.add_version(tenant, template.id, version), lambda: service.create_template(tenant, template)
            )
        row = await info.context.loaders.versions.load((template.id, written.body["version"]))
        if row is None:
            raise missing("template")
        return version_of(row)

    @documented
    async def publish_template(self, info: Info, id: strawberry.ID, version: int) -> Template:
        """Publish a version, also an older one."""
        if version < 1:
            raise refused("version", "from 1 on")
        await info.context.services.reference.publish_template(info.context.tenant, id, version)
        row = await info.context.loaders.templates.load(id)
        if row is None:
            raise missing("template")
        return template_of(row)

    @documented
    async def suppress(self, info: Info, input: SuppressionInput) -> Suppression:
        """Never send to an address, or not until `expiresAt`."""
        with moved("input"):
            body = check_model(NewSuppression, given(input))
        done = await info.context.services.reference.suppress(info.context.tenant, body)
        return shown_suppression(done.body)

    @documented
    async def unsuppress(self, info: Info, id: strawberry.ID) -> strawberry.ID:
        """The address may be sent to again."""
        await info.context.services.reference.unsuppress(info.context.tenant, id)
        return id


async def _or_new(change: Awaitable[Done], create: Callable[[], Awaitable[Done]]) -> Done:
    """The change; where there is nothing to change, what is created. Raises RefusedError."""
    try:
        return await change
    except RefusedError as exc:
        if exc.kind is not Refusal.UNKNOWN:
            raise
        return await create()


async def _user(info: Info, user_id: str) -> User:
    row = await info.context.loaders.users.load(user_id)
    if row is None:
        raise missing("user")
    return user_of(row)


def _refused(index: int, found: RefusedError) -> Refused:
    problem = problem_of(found)
    errors: list[Mapping[str, Any]] = [error._asdict() for error in problem.errors]
    return Refused(index=index, code=problem.code, detail=problem.detail, errors=JSON(errors))

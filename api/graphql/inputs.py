"""What mutations take: the fields of REST's bodies in camelCase; the models of REST check them.

May import strawberry. Never: a check of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from typing import Any

import strawberry
from strawberry.scalars import JSON
from strawberry.utils.str_converters import to_camel_case

from api.graphql.scalars import Channel, DateTime
from runtime.errors import RefusedError
from runtime.json_pointer import MAX_POINTER_CHARS


@strawberry.input(description="A notification to one recipient: what POST /v1/notifications takes.")
class SendInput:
    to: JSON = strawberry.field(description="{user_id, email, phone, device_tokens}, as REST has it.")
    request_id: str | None = None
    template: strawberry.ID | None = None
    version: int | None = strawberry.field(default=None, description="Of the template; else the published one.")
    content: JSON | None = None
    data: JSON | None = None
    category: str | None = None
    priority: str | None = None
    channels: list[Channel] | None = None
    strategy: str | None = None
    locale: str | None = None
    send_at: DateTime | None = None
    expires_at: DateTime | None = None
    delivery: str | None = None
    tags: list[str] | None = None
    metadata: JSON | None = None
    overrides: JSON | None = None
    dry_run: bool | None = None


@strawberry.input(description="A recipient.")
class UserInput:
    id: strawberry.ID
    name: str | None = None
    email: str | None = None
    phone: str | None = None
    locale: str | None = None
    time_zone: str | None = None
    devices: list[JSON] | None = None


@strawberry.input(description="What a recipient wants; what is not said is wanted.")
class PreferencesInput:
    channels: JSON | None = None
    categories: JSON | None = None


@strawberry.input(description="The sources of a template: parts by channel, and again by locale.")
class TemplateInput:
    id: strawberry.ID
    channels: JSON
    category: str | None = None
    locales: JSON | None = None
    layout: strawberry.ID | None = None
    publish: bool = True


@strawberry.input(description="An address that must not be sent to, until `expiresAt` where that is given.")
class SuppressionInput:
    channel: Channel
    address: str
    reason: str | None = None
    expires_at: DateTime | None = None


def given(value: Any) -> dict[str, Any]:
    """The body that REST would take: what is null is not said."""
    named = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _plain(one) for name, one in named.items() if one is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return [_plain(one) for one in value] if isinstance(value, list) else value


def notification_body(value: SendInput) -> dict[str, Any]:
    """The body that POST /v1/notifications would take, so that a requestId is the same key there and here."""
    body = given(value)
    version, strategy = body.pop("version", None), body.pop("strategy", None)
    if "template" in body or version is not None:
        body["template"] = {"id": body.get("template"), **({"version": version} if version is not None else {})}
    if strategy is not None:
        body["routing"] = {"strategy": strategy}
    return body


_ELSEWHERE = {"/template/id": "/template", "/template/version": "/version", "/routing/strategy": "/strategy"}


@contextmanager
def moved(argument: str) -> Iterator[None]:
    """Errors of a body within as errors of the argument: /send_at becomes /input/sendAt."""
    try:
        yield
    except RefusedError as exc:
        before = f"/{argument}" if argument else ""
        exc.errors = [
            error._replace(pointer=(before + _in_camel_case(error.pointer))[:MAX_POINTER_CHARS]) for error in exc.errors
        ]
        raise


def _in_camel_case(pointer: str) -> str:
    """What is under `to`, `data` and the like keeps its names: it is JSON here as well."""
    pointer = _ELSEWHERE.get(pointer, pointer)
    first, slash, rest = pointer.removeprefix("/").partition("/")
    return f"/{to_camel_case(first)}{slash}{rest}" if pointer else ""

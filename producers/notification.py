"""The model of a notification: the body of POST /v1/notifications, and what the publisher takes.

One model serves the HTTP API and the publisher, so both refuse the same things; `to_request` makes the record, pure.
May import pydantic, schemas and runtime values. Never: HTTP, a Kafka client, a clock read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_json

from producers.addresses import device_address, email_address, has_control, phone_number
from runtime import ids
from runtime.records import ProducerRecord
from runtime.status import rfc3339
from runtime.subscriptions import subscription_of
from schemas.channels import CHANNELS, ROWS, SUBSCRIPTION_PLATFORMS, TO_FIELDS, TOKEN_PLATFORMS, ChannelName, Platform
from schemas.codec import codec
from schemas.events import Address, NotificationRequest
from schemas.topics import requests_topic

MAX_KEY_CHARS = 255
CE_TYPE = "heliograph.notification.requested"
HTTP_SOURCE = "http"
"""`source` of a request that came over HTTP."""
PARSED_JSON = object()
"""Context of a validation: the value is what a JSON parser made, so that nothing in it but an infinite number is beyond JSON."""

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
TEMPLATE_ID = re.compile(_ID)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_CONSTANT_HEADERS = (("ce_type", CE_TYPE.encode()), ("ce_specversion", b"1.0"), ("content-type", b"application/avro"))
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def check_key(key: str) -> str:
    """An idempotency key. Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"a key has 1 to {MAX_KEY_CHARS} visible ASCII characters")
    return key


def to_milliseconds(value: Any) -> Any:
    """RFC 3339 text with an offset, or an aware datetime, as milliseconds since the epoch. Raises ValueError."""
    if isinstance(value, str):
        if not _RFC3339.fullmatch(value):
            raise ValueError("a time is RFC 3339 with an offset, like 2026-01-31T09:30:00+01:00")
        value = datetime.fromisoformat(value.upper())
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs an offset from UTC")
        since = value - datetime(1970, 1, 1, tzinfo=UTC)
        milliseconds = since.days * 86_400_000 + since.seconds * 1_000 + since.microseconds // 1_000
        if milliseconds < 0:
            raise ValueError("a time must be after 1970")
        return milliseconds
    if value is None:
        return None
    raise ValueError("a time is RFC 3339 text with an offset, like 2026-01-31T09:30:00+01:00")


def plain_text(text: str) -> str:
    """Text of one line. Raises ValueError."""
    if has_control(text):
        raise ValueError("no control or line-break characters are allowed")
    return text


def json_object(value: Mapping[Any, Any]) -> bytes:
    """An object as UTF-8 JSON. Raises ValueError for a value that JSON cannot represent."""
    if isinstance(value, EncodedObject):
        return value.encoded
    try:
        return _ENCODER.encode(value).encode() if value else b"{}"
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(
            "not an object that JSON can say: NaN, infinite numbers and lone surrogates are refused"
        ) from exc


class EncodedObject(dict[str, Any]):
    """An object beside its UTF-8 JSON, which is made once: to check it, and to publish it."""

    __slots__ = ("encoded",)

    def __init__(self, value: Mapping[str, Any], encoded: bytes) -> None:
        super().__init__(value)
        self.encoded = encoded


def _no_data() -> EncodedObject:
    return EncodedObject({}, b"{}")


def _check_json(value: dict[str, Any], info: ValidationInfo) -> EncodedObject:
    if info.context is not PARSED_JSON:
        return EncodedObject(value, json_object(value))
    encoded = to_json(value, inf_nan_mode="constants")
    # 1e999 is JSON, and infinite to the parser; GraphQL's makes NaN of a number of thousands of digits. A text may hold the words
    # as well: then the slower encoder decides.
    is_doubtful = b"Infinity" in encoded or b"NaN" in encoded
    return EncodedObject(value, json_object(value) if is_doubtful else encoded)


Line = Annotated[str, AfterValidator(plain_text)]
Id = Annotated[str, Field(pattern=_ID)]
UserId = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(plain_text)]
Category = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Locale = Annotated[str, Field(max_length=35, pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$")]
JsonObject = Annotated[dict[str, Any], AfterValidator(_check_json)]
"""An EncodedObject once it is validated."""
# In the schema a time is text; in the model it is milliseconds.
Time = Annotated[
    int,
    BeforeValidator(
        to_milliseconds, json_schema_input_type=Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    ),
]
Email = Annotated[str, AfterValidator(email_address)]
Phone = Annotated[str, AfterValidator(phone_number)]


class Strict(BaseModel):
    """Nothing is guessed: unknown fields and values of another type are refused.

    Mutable defaults are factories: pydantic would deep-copy them for every object.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


_TOKEN_OR_SUBSCRIPTION = (
    f"{', '.join(TOKEN_PLATFORMS[:-1])} and {TOKEN_PLATFORMS[-1]} take a token, "
    f"{' and '.join(SUBSCRIPTION_PLATFORMS)} takes a subscription"
)


def _subscription(given: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a subscription."""
    subscription = subscription_of(given)
    return {"endpoint": subscription.endpoint, "keys": {"auth": subscription.auth, "p256dh": subscription.p256dh}}


class Device(Strict):
    """A device that takes pushes, or a webhook: webpush has a subscription, the others a token; a webhook's is its URL."""

    platform: Platform
    token: str | None = None
    subscription: Annotated[JsonObject, AfterValidator(_subscription)] | None = None

    @field_validator("token")
    @classmethod
    def _of_its_platform(cls, token: str | None, info: ValidationInfo) -> str | None:
        platform = info.data.get("platform")  # None where it is wrong itself
        return token if token is None or platform is None else device_address(platform, token)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        wanted, other = (
            (self.subscription, self.token)
            if self.platform in SUBSCRIPTION_PLATFORMS
            else (self.token, self.subscription)
        )
        if wanted is None or other is not None:
            raise PydanticCustomError("device", _TOKEN_OR_SUBSCRIPTION)
        return self

    @property
    def address(self) -> str:
        """What a message to it has as its address."""
        return self.token or subscription_of(self.subscription).address


_GIVE_ONE_OF = "give a user_id, {} or {}".format(", ".join(TO_FIELDS[:-1]), TO_FIELDS[-1])


class To(Strict):
    """One recipient: a known user, addresses, or both (an address given here is used instead of the user's)."""

    user_id: UserId | None = None
    email: Email | None = None
    phone: Phone | None = None
    device_tokens: Annotated[list[Device], Field(max_length=100, default_factory=list)]

    @model_validator(mode="after")
    def _one_recipient(self) -> Self:
        if not self.user_id and not any(getattr(self, name) for name in TO_FIELDS):
            raise PydanticCustomError("no_recipient", _GIVE_ONE_OF)
        return self

    def addresses(self) -> list[Address]:
        """The addresses given, in a fixed order."""
        found: list[Address] = []
        for row in ROWS.values():
            given = getattr(self, row.given_as)
            if not row.one_address:
                own = [device for device in given if device.platform in row.platforms]
                found += [{"channel": row.name, "value": d.address, "platform": d.platform} for d in own]
            elif given:
                found.append({"channel": row.name, "value": given, "platform": None})
        return found


class TemplateRef(Strict):
    """A template, in its published version unless one is named."""

    id: Id
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class Content(Strict):
    """Literal text, never a template: e-mail takes subject, text, html; SMS text; push title, body, data; a webhook text, json."""

    subject: Annotated[Line, Field(max_length=998)] | None = None
    text: str | None = None
    html: str | None = None
    title: Annotated[Line, Field(max_length=998)] | None = None
    body: str | None = None
    data: JsonObject | None = None
    json_: Annotated[JsonObject, Field(min_length=1)] | None = Field(
        None, alias="json"
    )  # pydantic has a method of this name

    def channels(self) -> list[str]:
        """The channels that this content has a part for."""
        given = {part for part, name in _FIELD_OF_PART.items() if getattr(self, name) is not None}
        return [row.name for row in ROWS.values() if not given.isdisjoint(row.needs_one_of)]


_FIELD_OF_PART = {field.alias or name: name for name, field in Content.model_fields.items()}


class Routing(Strict):
    """`all`: every wanted channel; `first_available`: the first that is allowed and has an address."""

    strategy: Literal["all", "first_available"] = "all"


class Notification(Strict):
    """A notification to one recipient."""

    to: To
    template: TemplateRef | None = None
    content: Content | None = None
    data: Annotated[JsonObject, Field(validation_alias=AliasChoices("data", "variables"), default_factory=_no_data)]
    category: Category = "default"
    priority: Literal["critical", "normal", "bulk"] = "normal"
    channels: Annotated[list[ChannelName], Field(max_length=16, default_factory=list)]
    routing: Routing = Routing()
    locale: Locale | None = None
    send_at: Time | None = None
    expires_at: Time | None = None
    delivery: Literal["at_least_once", "at_most_once"] = "at_least_once"
    tags: Annotated[
        list[Annotated[Line, Field(min_length=1, max_length=64)]], Field(max_length=32, default_factory=list)
    ]
    metadata: Annotated[
        dict[Annotated[Line, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=1024)]],
        Field(max_length=32, default_factory=dict),
    ]
    overrides: Annotated[dict[ChannelName, JsonObject], Field(default_factory=dict)]
    dry_run: bool = False
    request_id: Annotated[str, AfterValidator(check_key)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.template is None) == (self.content is None):
            raise PydanticCustomError("template_or_content", "give exactly one of template and content")
        if self.content is not None and not set(self.channels or CHANNELS).intersection(self.content.channels()):
            raise PydanticCustomError("no_content", "content has no part for any wanted channel")
        return self

    def to_request(
        self,
        tenant: str,
        accepted_at_ms: int,
        *,
        idempotency_key: str | None = None,
        correlation_id: str | None = None,
        source: str = "",
        notification_id: str | None = None,
    ) -> NotificationRequest:
        """The record; the same arguments with a key make the same id. `notification_id` keeps an id already given."""
        return {
            "notification_id": notification_id or ids.notification_id(accepted_at_ms, tenant, idempotency_key),
            "tenant": tenant,
            "accepted_at": accepted_at_ms,
            "idempotency_key": idempotency_key,
            "user_id": self.to.user_id,
            "addresses": self.to.addresses(),
            "template_id": self.template.id if self.template else None,
            "template_version": self.template.version if self.template else None,
            "data": json_object(self.data),
            "content": json_object(self.content.model_dump(exclude_none=True, by_alias=True)) if self.content else None,
            "category": self.category,
            "lane": self.priority,
            "channels": list(self.channels),
            "strategy": self.routing.strategy,
            "locale": self.locale,
            "send_at": self.send_at,
            "expires_at": self.expires_at,
            "delivery": self.delivery,
            "tags": self.tags,
            "metadata": self.metadata,
            "overrides": json_object(self.overrides) if self.overrides else None,
            "generation": 0,
            "dry_run": self.dry_run,
            "correlation_id": correlation_id,
            "source": source,
        }


def request_record(request: NotificationRequest, traceparent: str | None = None) -> ProducerRecord:
    """The record to publish on its lane. Raises RecordTooLarge, a ValueError, when it is larger than a topic takes."""
    value = codec("NotificationRequest").encode(request)
    addresses = [(a["channel"], a["value"]) for a in request.get("addresses", ())]
    headers = [
        ("ce_id", request["notification_id"].encode()),
        ("ce_source", (request.get("source") or "heliograph").encode()),
        ("ce_time", rfc3339(request["accepted_at"]).encode()),
        *_CONSTANT_HEADERS,
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    key = ids.request_key(request["tenant"], request.get("user_id"), addresses)
    return ProducerRecord(requests_topic(request.get("lane", "normal")), key, value, headers)

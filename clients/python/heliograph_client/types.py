"""The JSON of the API as typed dictionaries: a test holds each against /openapi.json.

May import the standard library. Never: a value that is checked here; the API does that.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class To(TypedDict):
    """One recipient: a known user, addresses, or both (an address given here is used instead of the user's)."""

    user_id: NotRequired[str | None]
    email: NotRequired[str | None]
    phone: NotRequired[str | None]
    device_tokens: NotRequired[list[Device]]


class TemplateRef(TypedDict):
    """A template, in its published version unless one is named."""

    id: str
    version: NotRequired[int | None]


class Content(TypedDict):
    """Literal text, never a template: e-mail takes subject, text, html; SMS text; push title, body, data; a webhook text, json."""

    subject: NotRequired[str | None]
    text: NotRequired[str | None]
    html: NotRequired[str | None]
    title: NotRequired[str | None]
    body: NotRequired[str | None]
    data: NotRequired[dict[str, Any] | None]
    json: NotRequired[dict[str, Any] | None]


class Device(TypedDict):
    """A device that takes pushes, or a webhook: webpush has a subscription, the others a token; a webhook's is its URL."""

    platform: Literal["fcm", "apns", "onesignal", "webpush", "webhook", "slack", "teams"]
    token: NotRequired[str | None]
    subscription: NotRequired[dict[str, Any] | None]


class Routing(TypedDict):
    """`all`: every wanted channel; `first_available`: the first that is allowed and has an address."""

    strategy: NotRequired[Literal["all", "first_available"]]


class Notification(TypedDict):
    """A notification to one recipient."""

    to: To | list[To]
    template: NotRequired[TemplateRef | None]
    content: NotRequired[Content | None]
    data: NotRequired[dict[str, Any]]
    category: NotRequired[str]
    priority: NotRequired[Literal["critical", "normal", "bulk"]]
    channels: NotRequired[list[Literal["email", "sms", "push", "webhook"]]]
    routing: NotRequired[Routing]
    locale: NotRequired[str | None]
    send_at: NotRequired[str | None]
    expires_at: NotRequired[str | None]
    delivery: NotRequired[Literal["at_least_once", "at_most_once"]]
    tags: NotRequired[list[str]]
    metadata: NotRequired[dict[str, str]]
    overrides: NotRequired[dict[str, dict[str, Any]]]
    dry_run: NotRequired[bool]
    request_id: NotRequired[str | None]


class Accepted(TypedDict):
    """See `Accepted` in the API's document."""

    id: str
    status: Literal["accepted"]
    accepted_at: str
    links: dict[str, str]


class Attempt(TypedDict):
    """See `Attempt` in the API's document."""

    attempt: int
    provider: str | None
    state: str
    reason: str | None
    occurred_at: str


class Message(TypedDict):
    """See `Message` in the API's document."""

    id: str
    channel: str | None
    status: str
    reason: str | None
    provider: str | None
    provider_message_id: str | None
    possible_duplicate: bool
    attempts: list[Attempt]


class NotificationStatus(TypedDict):
    """See `NotificationStatus` in the API's document."""

    id: str
    status: str
    reason: str | None
    accepted_at: str
    messages: list[Message]
    links: dict[str, str]


class NotificationEntry(TypedDict):
    """See `NotificationEntry` in the API's document."""

    id: str
    status: str
    reason: str | None
    accepted_at: str
    user_id: str | None
    priority: str
    category: str
    template_id: str | None
    tags: list[str]
    links: dict[str, str]


class Event(TypedDict):
    """See `Event` in the API's document."""

    id: str
    message_id: str | None
    channel: str | None
    lane: str
    state: str
    reason: str | None
    detail: str | None
    attempt: int
    provider: str | None
    provider_message_id: str | None
    possible_duplicate: bool
    template_id: str | None
    template_version: int | None
    preference_version: int | None
    occurred_at: str
    latency_ms: int | None
    correlation_id: str | None


class Acceptance(TypedDict):
    """See `Acceptance` in the API's document."""

    source: str | None
    user_id: str | None
    lane: str
    category: str
    correlation_id: str | None
    idempotency_key_given: bool
    template_id: str | None
    template_version: int | None
    channels: list[str]
    strategy: str
    delivery: str
    send_at: str | None
    expires_at: str | None
    dry_run: bool
    tags: list[str]


class ExplainedAttempt(TypedDict):
    """See `ExplainedAttempt` in the API's document."""

    attempt: int
    provider: str | None
    state: str
    reason: str | None
    detail: str | None
    why: str
    started_at: str
    occurred_at: str
    waited_ms: int | None
    latency_ms: int | None
    possible_duplicate: bool
    next_after_ms: int | None
    next_because: str | None


class ExplainedMessage(TypedDict):
    """See `ExplainedMessage` in the API's document."""

    id: str
    channel: str | None
    status: str
    reason: str | None
    why: str
    waits_for: str | None
    decided_at: str | None
    decision: str | None
    template_id: str | None
    template_version: int | None
    preference_version: int | None
    correlation_id: str | None
    provider: str | None
    provider_message_id: str | None
    possible_duplicate: bool
    duplicate_because: str | None
    attempts: list[ExplainedAttempt]
    engagement: list[dict[str, Any]]
    receipts: list[dict[str, Any]]
    took_ms: dict[str, Any]


class Explanation(TypedDict):
    """See `Explanation` in the API's document."""

    id: str
    status: str
    reason: str | None
    why: str
    waits_for: str | None
    accepted_at: str
    acceptance: Acceptance | None
    messages: list[ExplainedMessage]
    resends: list[dict[str, Any]]
    dead_letters: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    links: dict[str, str]


class Cancelled(TypedDict):
    """See `Cancelled` in the API's document."""

    id: str
    status: str
    links: dict[str, str]


class Resent(TypedDict):
    """See `Resent` in the API's document."""

    id: str
    status: Literal["accepted"]
    generation: int
    links: dict[str, str]


class NewUser(TypedDict):
    """A recipient."""

    name: NotRequired[str | None]
    email: NotRequired[str | None]
    phone: NotRequired[str | None]
    locale: NotRequired[str | None]
    time_zone: NotRequired[str | None]
    devices: NotRequired[list[Device]]
    id: str


class ReplacedUser(TypedDict):
    """A recipient; the id is the path's."""

    name: NotRequired[str | None]
    email: NotRequired[str | None]
    phone: NotRequired[str | None]
    locale: NotRequired[str | None]
    time_zone: NotRequired[str | None]
    devices: NotRequired[list[Device]]
    id: NotRequired[str | None]


class User(TypedDict):
    """See `User` in the API's document."""

    id: str
    name: str | None
    email: str | None
    phone: str | None
    locale: str | None
    time_zone: str | None
    devices: list[dict[str, Any]]
    created_at: str
    updated_at: str


class Preferences(TypedDict):
    """What a recipient wants; what is not said is wanted."""

    channels: NotRequired[dict[str, bool]]
    categories: NotRequired[dict[str, Any]]


class StoredPreferences(TypedDict):
    """See `StoredPreferences` in the API's document."""

    channels: dict[str, Any]
    categories: dict[str, Any]


class NewTemplate(TypedDict):
    """A template with its first version."""

    id: str
    category: NotRequired[str]
    channels: dict[str, Any]
    locales: NotRequired[dict[str, Any]]
    layout: NotRequired[str | None]
    publish: NotRequired[bool]


class NewVersion(TypedDict):
    """The sources of a template. Parts by channel, and again by locale."""

    id: NotRequired[str | None]
    category: NotRequired[str | None]
    channels: dict[str, Any]
    locales: NotRequired[dict[str, Any]]
    layout: NotRequired[str | None]
    publish: NotRequired[bool]


class TemplateWritten(TypedDict):
    """See `TemplateWritten` in the API's document."""

    id: str
    version: int
    published: bool
    variables: list[str]


class Template(TypedDict):
    """See `Template` in the API's document."""

    id: str
    version: int
    published: bool
    variables: list[str]
    category: str
    layout: str | None
    channels: dict[str, Any]
    locales: dict[str, Any]
    created_at: NotRequired[str]


class TemplateEntry(TypedDict):
    """See `TemplateEntry` in the API's document."""

    id: str
    category: str
    published_version: int | None
    latest_version: int
    updated_at: str


class NewSuppression(TypedDict):
    """An address that must not be sent to, until `expires_at` where that is given."""

    channel: Literal["email", "sms", "push", "webhook"]
    address: str
    reason: NotRequired[str]
    expires_at: NotRequired[str | None]


class Suppression(TypedDict):
    """See `Suppression` in the API's document."""

    id: str
    channel: str
    address: str | None
    address_hash: str
    reason: str
    source: str | None
    expires_at: str | None
    created_at: str


class Problem(TypedDict):
    """See `Problem` in the API's document."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[dict[str, Any]]
    request_id: str


class Result(TypedDict):
    """Of one of many notifications: `id` where it is accepted, `error` where it is refused."""

    index: int
    status: Literal["accepted", "refused"]
    id: NotRequired[str]
    error: NotRequired[Problem]


class StreamToken(TypedDict):
    """For a browser: what it may watch, until when."""

    token: str
    expires_at: str

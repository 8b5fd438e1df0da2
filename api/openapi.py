"""The OpenAPI document: FastAPI's own, completed by a table of what each route takes, answers and refuses.

May import fastapi and pydantic. Never: behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.ingest import BULK_PATH, MAX_ITEMS, PATH, Bulk
from api.live.access import MAX_IDS, NewToken
from api.live.stream import PATH as STREAM_PATH
from api.live.wanted import FILTERS
from api.reference.suppressions import CSV_TYPE, JSONL_TYPES
from api.reference.webhooks import ChangedWebhook, NewWebhook, Replay, Rotation
from api.requests import JSON_TYPE, MERGE_PATCH_TYPE
from producers.notification import Notification
from producers.reference.inputs import (
    NewSuppression,
    NewTemplate,
    NewUser,
    NewVersion,
    Preferences,
    Published,
    ReplacedUser,
)
from schemas.channels import CHANNEL_OF_PLATFORM, CHANNELS, CONTACT_FIELDS, ROWS, TOKEN_PLATFORMS

Json = dict[str, Any]
_ID = "019b76da-a800-7abc-8def-0123456789ab"
_AT = "2026-01-01T00:00:00.000Z"
_STATUSES = {
    400: "Malformed or not valid; `errors[].pointer` leads into the body",
    401: "No valid API key",
    404: "There is none, or it is another tenant's",
    408: "The body came too slowly",
    409: "What is there contradicts it",
    413: "The body is too large",
    415: "Another media type, or a compressed body",
    429: "The API key calls too often; see `Retry-After`",
    500: "An internal error; quote `request_id`",
    503: "A store does not confirm; nothing is promised, see `Retry-After`",
}
_ALWAYS = (400, 401, 429, 500, 503)
_WITH_BODY = (408, 413, 415)


def _object(**properties: Json) -> Json:
    """An object of exactly these fields; a trailing underscore marks one that may be absent."""
    return {
        "type": "object",
        "required": [name for name in properties if not name.endswith("_")],
        "properties": {name.rstrip("_"): schema for name, schema in properties.items()},
    }


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Json = {"type": "string"}
_UUID: Json = {"type": "string", "format": "uuid"}
_TIME: Json = {"type": "string", "format": "date-time"}
_INT: Json = {"type": "integer"}
_BOOL: Json = {"type": "boolean"}
_ANY: Json = {"type": "object"}
_TEXT_OR_NULL = _or_null(_TEXT)
_LINKS: Json = {"type": "object", "additionalProperties": _TEXT}
_CONTACTS: Json = dict.fromkeys(CONTACT_FIELDS, _TEXT_OR_NULL)

SCHEMAS: dict[str, Json] = {
    "Problem": _object(
        type={"type": "string", "format": "uri"},
        title=_TEXT,
        status=_INT,
        detail=_TEXT,
        code=_TEXT,
        errors=_list(
            _object(pointer={"type": "string", "description": "JSON pointer into the body"}, detail=_TEXT, code=_TEXT)
        ),
        request_id=_TEXT,
    ),
    "Accepted": _object(id=_UUID, status={"const": "accepted"}, accepted_at=_TIME, links=_LINKS),
    "Results": _object(
        results=_list(
            {
                "oneOf": [
                    _object(index=_INT, status={"const": "accepted"}, id=_UUID),
                    _object(index=_INT, status={"const": "refused"}, error=_ref("Problem")),
                ]
            }
        )
    ),
    "Attempt": _object(attempt=_INT, provider=_TEXT_OR_NULL, state=_TEXT, reason=_TEXT_OR_NULL, occurred_at=_TIME),
    "Message": _object(
        id=_UUID,
        channel=_TEXT_OR_NULL,
        status=_TEXT,
        reason=_TEXT_OR_NULL,
        provider=_TEXT_OR_NULL,
        provider_message_id=_TEXT_OR_NULL,
        possible_duplicate=_BOOL,
        attempts=_list(_ref("Attempt")),
    ),
    "NotificationStatus": _object(
        id=_UUID, status=_TEXT, reason=_TEXT_OR_NULL, accepted_at=_TIME, messages=_list(_ref("Message")), links=_LINKS
    ),
    "NotificationEntry": _object(
        id=_UUID,
        status=_TEXT,
        reason=_TEXT_OR_NULL,
        accepted_at=_TIME,
        user_id=_TEXT_OR_NULL,
        priority=_TEXT,
        category=_TEXT,
        template_id=_TEXT_OR_NULL,
        tags=_list(_TEXT),
        links=_LINKS,
    ),
    "Event": _object(
        id=_UUID,
        message_id=_or_null(_UUID),
        channel=_TEXT_OR_NULL,
        lane=_TEXT,
        state=_TEXT,
        reason=_TEXT_OR_NULL,
        detail=_TEXT_OR_NULL,
        attempt=_INT,
        provider=_TEXT_OR_NULL,
        provider_message_id=_TEXT_OR_NULL,
        possible_duplicate=_BOOL,
        template_id=_TEXT_OR_NULL,
        template_version=_or_null(_INT),
        preference_version=_or_null(_INT),
        occurred_at=_TIME,
        latency_ms=_or_null(_INT),
        correlation_id=_TEXT_OR_NULL,
    ),
    "Acceptance": _object(
        source=_TEXT_OR_NULL,
        user_id=_TEXT_OR_NULL,
        lane=_TEXT,
        category=_TEXT,
        correlation_id=_TEXT_OR_NULL,
        idempotency_key_given=_BOOL,
        template_id=_TEXT_OR_NULL,
        template_version=_or_null(_INT),
        channels=_list(_TEXT),
        strategy=_TEXT,
        delivery=_TEXT,
        send_at=_or_null(_TIME),
        expires_at=_or_null(_TIME),
        dry_run=_BOOL,
        tags=_list(_TEXT),
    ),
    "ExplainedAttempt": _object(
        attempt=_INT,
        provider=_TEXT_OR_NULL,
        state=_TEXT,
        reason=_TEXT_OR_NULL,
        detail=_TEXT_OR_NULL,
        why=_TEXT,
        started_at=_TIME,
        occurred_at=_TIME,
        waited_ms=_or_null(_INT),
        latency_ms=_or_null(_INT),
        possible_duplicate=_BOOL,
        next_after_ms=_or_null(_INT),
        next_because=_TEXT_OR_NULL,
    ),
    "ExplainedMessage": _object(
        id=_UUID,
        channel=_TEXT_OR_NULL,
        status=_TEXT,
        reason=_TEXT_OR_NULL,
        why=_TEXT,
        waits_for=_TEXT_OR_NULL,
        decided_at=_or_null(_TIME),
        decision=_TEXT_OR_NULL,
        template_id=_TEXT_OR_NULL,
        template_version=_or_null(_INT),
        preference_version=_or_null(_INT),
        correlation_id=_TEXT_OR_NULL,
        provider=_TEXT_OR_NULL,
        provider_message_id=_TEXT_OR_NULL,
        possible_duplicate=_BOOL,
        duplicate_because=_TEXT_OR_NULL,
        attempts=_list(_ref("ExplainedAttempt")),
        engagement=_list(_object(state=_TEXT, at=_TIME)),
        receipts=_list(
            _object(
                provider=_TEXT,
                provider_message_id=_TEXT,
                state=_TEXT,
                reason=_TEXT_OR_NULL,
                code=_TEXT_OR_NULL,
                occurred_at=_TIME,
                received_at=_TIME,
            )
        ),
        took_ms=_object(
            decision=_or_null(_INT),
            waiting=_or_null(_INT),
            requests=_or_null(_INT),
            until_sent=_or_null(_INT),
            until_delivered=_or_null(_INT),
        ),
    ),
    "Explanation": _object(
        id=_UUID,
        status=_TEXT,
        reason=_TEXT_OR_NULL,
        why=_TEXT,
        waits_for=_TEXT_OR_NULL,
        accepted_at=_TIME,
        acceptance=_or_null(_ref("Acceptance")),
        messages=_list(_ref("ExplainedMessage")),
        resends=_list(
            _object(generation=_INT, source=_TEXT_OR_NULL, correlation_id=_TEXT_OR_NULL, first_event_at=_or_null(_TIME))
        ),
        dead_letters=_list(
            _object(
                message_id=_or_null(_UUID),
                stage=_TEXT,
                reason=_TEXT,
                why=_TEXT,
                error_class=_TEXT,
                detail=_TEXT_OR_NULL,
                attempts=_INT,
                topic=_TEXT,
                partition=_INT,
                offset=_INT,
                occurred_at=_TIME,
            )
        ),
        timeline=_list(
            _object(
                at=_TIME,
                after_ms=_INT,
                stage=_TEXT,
                message_id=_or_null(_UUID),
                channel=_TEXT_OR_NULL,
                attempt=_or_null(_INT),
                what=_TEXT,
            )
        ),
        links=_LINKS,
    ),
    "Cancelled": _object(id=_UUID, status=_TEXT, links=_LINKS),
    "Resent": _object(id=_UUID, status={"const": "accepted"}, generation=_INT, links=_LINKS),
    "User": _object(
        id=_TEXT,
        name=_TEXT_OR_NULL,
        **_CONTACTS,
        locale=_TEXT_OR_NULL,
        time_zone=_TEXT_OR_NULL,
        devices=_list(_ANY),
        created_at=_TIME,
        updated_at=_TIME,
    ),
    "UserPatch": {
        "type": "object",
        "description": "RFC 7396: fields of a user to change; null removes one.",
        "properties": {
            "name": _TEXT_OR_NULL,
            **_CONTACTS,
            "locale": _TEXT_OR_NULL,
            "time_zone": _TEXT_OR_NULL,
            "devices": _or_null(_list(_ref("Device"))),
            "id": _TEXT_OR_NULL,
        },
        "additionalProperties": False,
    },
    "StoredPreferences": _object(channels=_ANY, categories=_ANY),
    "TemplateWritten": _object(id=_TEXT, version=_INT, published=_BOOL, variables=_list(_TEXT)),
    "Template": _object(
        id=_TEXT,
        version=_INT,
        published=_BOOL,
        variables=_list(_TEXT),
        category=_TEXT,
        layout=_TEXT_OR_NULL,
        channels=_ANY,
        locales=_ANY,
        created_at_=_TIME,
    ),
    "TemplateEntry": _object(
        id=_TEXT, category=_TEXT, published_version=_or_null(_INT), latest_version=_INT, updated_at=_TIME
    ),
    "Preview": _object(
        id=_TEXT,
        version=_INT,
        channel=_TEXT,
        locale=_TEXT_OR_NULL,
        subject_=_TEXT,
        text_=_TEXT,
        html_=_TEXT,
        title_=_TEXT,
        body_=_TEXT,
        data_=_ANY,
        parts_=_object(number=_INT, alphabet=_TEXT),
    ),
    "Suppression": _object(
        id=_UUID,
        channel=_TEXT,
        address=_or_null(_TEXT),
        address_hash=_TEXT,
        reason=_TEXT,
        source=_or_null(_TEXT),
        expires_at=_or_null(_TIME),
        created_at=_TIME,
    ),
    "Webhook": _object(
        id=_UUID,
        url=_TEXT,
        description=_TEXT,
        states=_list(_TEXT),
        channels=_list(_TEXT),
        categories=_list(_TEXT),
        enabled=_BOOL,
        previous_secret_until=_or_null(_TIME),
        deliveries=_object(
            condition={"enum": ["live", "failing", "disabled"]},
            cause=_TEXT_OR_NULL,
            failing_since=_or_null(_TIME),
            next_at=_or_null(_TIME),
            behind=_INT,
            dropped=_INT,
            given_up=_INT,
        ),
        created_at=_TIME,
        updated_at=_TIME,
        secret_=_TEXT,
    ),
    "WebhookTest": _object(delivered=_BOOL, answer=_TEXT, body=_TEXT, took_ms=_INT),
    "WebhookReplay": _object(id=_UUID, **{"from": _TIME}),
    "Import": _object(
        imported=_INT,
        created=_INT,
        refused=_INT,
        errors=_list(_object(line=_INT, pointer=_TEXT, detail=_TEXT, code=_TEXT)),
    ),
}

_LINKS_SHOWN = {"self": f"{PATH}/{_ID}", "events": f"{PATH}/{_ID}/events"}
_SHOWN, _OTHER = (ROWS[name] for name in CHANNELS[:2])
"""The channels of the examples."""
_USER = {
    "name": "Zoë",
    **{row.stored_as: row.example for row in ROWS.values() if row.one_address},
    "locale": "de-AT",
    "time_zone": "Europe/Vienna",
    "devices": [{"platform": TOKEN_PLATFORMS[0], "token": CHANNEL_OF_PLATFORM[TOKEN_PLATFORMS[0]].example}],
}
_SENDING = {"to": {"user_id": "zoe"}, "template": {"id": "order-shipped"}, "data": {"order": "A1"}}
_CHANNELS = {_SHOWN.name: {"subject": "{{ order }} is on its way", "text": "Order {{ order }} has left us."}}
_PREFERENCES = {"channels": {_OTHER.name: False}, "categories": {"marketing": {_SHOWN.name: False}}}
_SUPPRESSION = {"channel": _SHOWN.name, "address": "stop@example.org", "reason": "complaint"}
_WRITTEN = {"id": "order-shipped", "version": 1, "published": True, "variables": ["order"]}
_ENTRY: Json = {
    "id": _ID,
    "status": "sent",
    "reason": None,
    "accepted_at": _AT,
    "user_id": "zoe",
    "priority": "normal",
    "category": "orders",
    "template_id": "order-shipped",
    "tags": [],
    "links": _LINKS_SHOWN,
}
_ATTEMPT = {"attempt": 1, "provider": "mail-1", "state": "sent", "reason": None, "occurred_at": _AT}
_MESSAGE = {
    "id": _ID,
    "channel": _SHOWN.name,
    "status": "sent",
    "reason": None,
    "provider": "mail-1",
    "provider_message_id": "<x@mail-1>",
    "possible_duplicate": False,
    "attempts": [_ATTEMPT],
}
_EVENT = {
    "id": _ID,
    "message_id": _ID,
    "channel": _SHOWN.name,
    "lane": "normal",
    "state": "sent",
    "reason": None,
    "detail": None,
    "attempt": 1,
    "provider": "mail-1",
    "provider_message_id": "<x@mail-1>",
    "possible_duplicate": False,
    "template_id": "order-shipped",
    "template_version": 1,
    "preference_version": None,
    "occurred_at": _AT,
    "latency_ms": 12,
    "correlation_id": "c1",
}
_EXPLAINED_ATTEMPT = {
    "attempt": 1,
    "provider": "mail-1",
    "state": "sent",
    "reason": None,
    "detail": None,
    "why": "sent: the provider took it",
    "started_at": _AT,
    "occurred_at": _AT,
    "waited_ms": 31,
    "latency_ms": 12,
    "possible_duplicate": False,
    "next_after_ms": None,
    "next_because": None,
}
_EXPLAINED_MESSAGE = {
    "id": _ID,
    "channel": _SHOWN.name,
    "status": "sent",
    "reason": None,
    "why": "sent: the provider took it",
    "waits_for": None,
    "decided_at": _AT,
    "decision": "routed: decided and rendered; on its dispatch topic",
    "template_id": "order-shipped",
    "template_version": 1,
    "preference_version": 4,
    "correlation_id": "c1",
    "provider": "mail-1",
    "provider_message_id": "<x@mail-1>",
    "possible_duplicate": False,
    "duplicate_because": None,
    "attempts": [_EXPLAINED_ATTEMPT],
    "engagement": [],
    "receipts": [],
    "took_ms": {"decision": 21, "waiting": 31, "requests": 12, "until_sent": 64, "until_delivered": None},
}
_ACCEPTANCE = {
    "source": "http",
    "user_id": "zoe",
    "lane": "normal",
    "category": "orders",
    "correlation_id": "c1",
    "idempotency_key_given": True,
    "template_id": "order-shipped",
    "template_version": None,
    "channels": [],
    "strategy": "all",
    "delivery": "at_least_once",
    "send_at": None,
    "expires_at": None,
    "dry_run": False,
    "tags": [],
}
_LINE = {
    "at": _AT,
    "after_ms": 64,
    "stage": "attempt",
    "message_id": _ID,
    "channel": _SHOWN.name,
    "attempt": 1,
    "what": "attempt 1 at mail-1 in 12 ms: sent: the provider took it",
}
_USER_SHOWN = {"id": "zoe", **_USER, "created_at": _AT, "updated_at": _AT}
_TEMPLATE_SHOWN = {**_WRITTEN, "category": "orders", "layout": None, "channels": _CHANNELS, "locales": {}}
_SUPPRESSION_SHOWN = {
    "id": _ID,
    **_SUPPRESSION,
    "address_hash": "5d8a1f0c2b7e4a9386f1d0c5b2e7a413",
    "source": None,
    "expires_at": None,
    "created_at": _AT,
}
_WEBHOOK = {
    "url": "https://shop.example/hooks/heliograph",
    "description": "The shop's order page",
    "states": ["delivered", "bounced"],
    "channels": [_SHOWN.name],
    "categories": [],
    "enabled": True,
}
_WEBHOOK_SHOWN = {
    "id": _ID,
    **_WEBHOOK,
    "previous_secret_until": None,
    "deliveries": {
        "condition": "live",
        "cause": None,
        "failing_since": None,
        "next_at": None,
        "behind": 0,
        "dropped": 0,
        "given_up": 0,
    },
    "created_at": _AT,
    "updated_at": _AT,
}
_WEBHOOK_MADE = {**_WEBHOOK_SHOWN, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
_PROBLEM = {
    "type": "urn:heliograph:problem:invalid_request",
    "title": "Bad Request",
    "status": 400,
    "detail": f"/to/{_SHOWN.given_as}: not an {_SHOWN.shape.name}",
    "code": "invalid_request",
    "request_id": "5f0c",
    "errors": [{"pointer": f"/to/{_SHOWN.given_as}", "detail": f"not an {_SHOWN.shape.name}", "code": "invalid_value"}],
}


def _page_of(name: str) -> Json:
    return _object(entries=_list(_ref(name)), next_cursor=_TEXT_OR_NULL)


def _page(*entries: Any) -> Json:
    return {"entries": list(entries), "next_cursor": None}


@dataclass(frozen=True, slots=True)
class Route:
    """What a route takes and answers: a model or schema and an example for its body, (schema, example) by status."""

    answers: Mapping[int, tuple[Json | None, Any]]
    refusals: tuple[int, ...] = ()
    body: type[BaseModel] | Json | None = None
    example: Any = None
    types: tuple[str, ...] = (JSON_TYPE,)
    headers: Mapping[str, str] = field(default_factory=dict)


_REFERENCE = "/v1/templates/{template_id}"
_HOOK = "/v1/webhooks/{webhook_id}"
ROUTES: dict[tuple[str, str], Route] = {
    ("post", PATH): Route(
        {
            202: (
                {"anyOf": [_ref("Accepted"), _ref("Results")]},
                {"id": _ID, "status": "accepted", "accepted_at": _AT, "links": _LINKS_SHOWN},
            )
        },
        (409,),
        Notification,
        _SENDING,
        headers={"Location": "Of the notification", "Idempotent-Replayed": "true for a key used before"},
    ),
    ("post", BULK_PATH): Route(
        {202: (_ref("Results"), {"results": [{"index": 0, "status": "accepted", "id": _ID}]})},
        (),
        Bulk,
        {"notifications": [_SENDING]},
    ),
    ("get", PATH): Route({200: (_page_of("NotificationEntry"), _page(_ENTRY))}),
    ("get", f"{PATH}/{{notification_id}}"): Route(
        {
            200: (
                _ref("NotificationStatus"),
                {
                    "id": _ID,
                    "status": "sent",
                    "reason": None,
                    "accepted_at": _AT,
                    "messages": [_MESSAGE],
                    "links": _LINKS_SHOWN,
                },
            )
        },
        (404,),
    ),
    ("get", f"{PATH}/{{notification_id}}/events"): Route({200: (_page_of("Event"), _page(_EVENT))}, (404,)),
    ("get", f"{PATH}/{{notification_id}}/explain"): Route(
        {
            200: (
                _ref("Explanation"),
                {
                    "id": _ID,
                    "status": "sent",
                    "reason": None,
                    "why": f"{_SHOWN.name}: sent: the provider took it",
                    "waits_for": None,
                    "accepted_at": _AT,
                    "acceptance": _ACCEPTANCE,
                    "messages": [_EXPLAINED_MESSAGE],
                    "resends": [],
                    "dead_letters": [],
                    "timeline": [_LINE],
                    "links": _LINKS_SHOWN,
                },
            )
        },
        (404,),
    ),
    ("post", f"{PATH}/{{notification_id}}/cancel"): Route(
        {
            200: (_ref("Cancelled"), {"id": _ID, "status": "cancelled", "links": _LINKS_SHOWN}),
            202: (_ref("Cancelled"), {"id": _ID, "status": "scheduled", "links": _LINKS_SHOWN}),
        },
        (404, 409),
    ),
    ("post", f"{PATH}/{{notification_id}}/resend"): Route(
        {202: (_ref("Resent"), {"id": _ID, "status": "accepted", "generation": 1, "links": _LINKS_SHOWN})}, (404, 409)
    ),
    ("post", "/v1/users"): Route({201: (_ref("User"), _USER_SHOWN)}, (409,), NewUser, {"id": "zoe", **_USER}),
    ("get", "/v1/users"): Route({200: (_page_of("User"), _page(_USER_SHOWN))}),
    ("get", "/v1/users/{user_id}"): Route({200: (_ref("User"), _USER_SHOWN)}, (404,)),
    ("put", "/v1/users/{user_id}"): Route({200: (_ref("User"), _USER_SHOWN)}, (404,), ReplacedUser, _USER),
    ("patch", "/v1/users/{user_id}"): Route(
        {200: (_ref("User"), _USER_SHOWN)},
        (404,),
        _ref("UserPatch"),
        {"phone": None, "locale": "de"},
        (MERGE_PATCH_TYPE, JSON_TYPE),
    ),
    ("delete", "/v1/users/{user_id}"): Route({204: (None, None)}, (404,)),
    ("get", "/v1/users/{user_id}/preferences"): Route({200: (_ref("StoredPreferences"), _PREFERENCES)}, (404,)),
    ("put", "/v1/users/{user_id}/preferences"): Route(
        {200: (_ref("StoredPreferences"), _PREFERENCES)}, (404,), Preferences, _PREFERENCES
    ),
    ("post", "/v1/templates"): Route(
        {201: (_ref("TemplateWritten"), _WRITTEN)},
        (409,),
        NewTemplate,
        {"id": "order-shipped", "category": "orders", "channels": _CHANNELS},
    ),
    ("get", "/v1/templates"): Route(
        {
            200: (
                _page_of("TemplateEntry"),
                _page(
                    {
                        "id": "order-shipped",
                        "category": "orders",
                        "published_version": 1,
                        "latest_version": 2,
                        "updated_at": _AT,
                    }
                ),
            )
        }
    ),
    ("get", _REFERENCE): Route({200: (_ref("Template"), _TEMPLATE_SHOWN)}, (404,)),
    ("get", f"{_REFERENCE}/versions"): Route(
        {200: (_page_of("Template"), _page({**_TEMPLATE_SHOWN, "created_at": _AT}))}, (404,)
    ),
    ("post", f"{_REFERENCE}/versions"): Route(
        {201: (_ref("TemplateWritten"), {**_WRITTEN, "version": 2})}, (404,), NewVersion, {"channels": _CHANNELS}
    ),
    ("post", f"{_REFERENCE}/publish"): Route(
        {200: (_ref("TemplateWritten"), _WRITTEN)}, (404,), Published, {"version": 1}
    ),
    ("post", f"{_REFERENCE}/preview"): Route(
        {
            200: (
                _ref("Preview"),
                {
                    "id": "order-shipped",
                    "version": 1,
                    "channel": _SHOWN.name,
                    "locale": None,
                    "subject": "A1 is on its way",
                    "text": "Order A1 has left us.",
                },
            )
        },
        (404,),
        example={"channel": _SHOWN.name, "data": {"order": "A1"}},
    ),
    ("post", "/v1/suppressions"): Route(
        {200: (_ref("Suppression"), _SUPPRESSION_SHOWN), 201: (_ref("Suppression"), _SUPPRESSION_SHOWN)},
        (),
        NewSuppression,
        _SUPPRESSION,
    ),
    ("get", "/v1/suppressions"): Route({200: (_page_of("Suppression"), _page(_SUPPRESSION_SHOWN))}),
    ("delete", "/v1/suppressions/{suppression_id}"): Route({204: (None, None)}, (404,)),
    ("post", "/v1/suppressions/import"): Route(
        {200: (_ref("Import"), {"imported": 2, "created": 1, "refused": 0, "errors": []})},
        (),
        _TEXT,
        f'{{"channel": "{_SHOWN.name}", "address": "{_SUPPRESSION["address"]}"}}\n',
        (*JSONL_TYPES, CSV_TYPE),
    ),
    ("get", "/v1/suppressions/export"): Route({200: (None, None)}),
    ("get", STREAM_PATH): Route({200: (None, None), 204: (None, None)}, (404,)),
    ("post", "/v1/stream-tokens"): Route(
        {201: (_object(token=_TEXT, expires_at=_TIME), {"token": "hgs_x", "expires_at": _AT})},
        (),
        NewToken,
        {"notification_ids": [_ID], "ttl_s": 600},
    ),
    ("post", "/v1/webhooks"): Route({201: (_ref("Webhook"), _WEBHOOK_MADE)}, (409,), NewWebhook, _WEBHOOK),
    ("get", "/v1/webhooks"): Route({200: (_page_of("Webhook"), _page(_WEBHOOK_SHOWN))}),
    ("get", _HOOK): Route({200: (_ref("Webhook"), _WEBHOOK_SHOWN)}, (404,)),
    ("patch", _HOOK): Route(
        {200: (_ref("Webhook"), _WEBHOOK_SHOWN)},
        (404,),
        ChangedWebhook,
        {"states": ["bounced"], "enabled": True},
        (MERGE_PATCH_TYPE, JSON_TYPE),
    ),
    ("delete", _HOOK): Route({204: (None, None)}, (404,)),
    ("post", f"{_HOOK}/rotate"): Route(
        {200: (_ref("Webhook"), _WEBHOOK_MADE)}, (404,), Rotation, {"overlap_s": 86_400}
    ),
    ("post", f"{_HOOK}/test"): Route(
        {200: (_ref("WebhookTest"), {"delivered": True, "answer": "204", "body": "", "took_ms": 41})}, (404, 409)
    ),
    ("post", f"{_HOOK}/replay"): Route(
        {202: (_ref("WebhookReplay"), {"id": _ID, "from": _AT})}, (404,), Replay, {"from": _AT}
    ),
}
MODELS = (
    *(Notification, Bulk, NewUser, ReplacedUser, Preferences, NewTemplate, NewVersion, Published, NewSuppression),
    *(NewToken, NewWebhook, ChangedWebhook, Rotation, Replay),
)


def _ingest(operation_id: str, summary: str, description: str, *, keyed: bool) -> Json:
    """An operation of the hot path, which FastAPI does not know."""

    def header(name: str, why: str, length: int) -> Json:
        schema = {"type": "string", "maxLength": length}
        return {"name": name, "in": "header", "required": False, "description": why, "schema": schema}

    # What HTTP lets through in a header; a key takes visible ASCII only.
    key = header("Idempotency-Key", "The same key and body again give the same id, for at least 7 days.", 255)
    parameters = [
        header("X-Correlation-ID", "Carried to every status and log line.", 128),
        header("traceparent", "W3C trace context, carried; a malformed one is dropped.", 55),
    ]
    for parameter in (key, parameters[0]):
        parameter["schema"]["pattern"] = "^[!-~]+$"
    return {
        "tags": ["notifications"],
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "parameters": [key, *parameters] if keyed else parameters,
    }


def _stream() -> Json:
    """Live status, which FastAPI does not know either."""

    def query(name: str, schema: Json, why: str) -> Json:
        return {"name": name, "in": "query", "required": False, "description": why, "schema": schema}

    text = {"type": "string", "maxLength": 255}
    ids = {"type": "array", "items": _UUID, "maxItems": MAX_IDS}
    return {
        "tags": ["live"],
        "operationId": "watch",
        "summary": "Live status, as server-sent events",
        "description": "The events are snapshot, status, gap, reset and end; the id of each is a place that any process resumes.",
        "parameters": [
            query(
                "notification_id", ids, "Those to watch; without any, all of the tenant's that the filters let through."
            ),
            *(query(name, text, "Only facts with this.") for name in FILTERS),
            query("until", {"enum": ["settled"]}, "End when all of them are settled."),
            query("last_event_id", _TEXT, "As the header Last-Event-ID."),
            query("access_token", _TEXT, "A stream token, for who can set no header."),
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "schema": _TEXT,
                "description": "Where to go on.",
            },
        ],
    }


def _problem(status: int) -> Json:
    shown = {**_PROBLEM, "status": status} if status == 400 else None
    content: Json = {"schema": _ref("Problem")}
    if shown is not None:
        content["example"] = shown
    answer: Json = {"description": _STATUSES[status], "content": {"application/problem+json": content}}
    if status in (429, 503):
        answer["headers"] = {
            "Retry-After": {"description": "Seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
        }
    return answer


def _answer(path: str, status: int, schema: Json | None, example: Any, headers: Mapping[str, str]) -> Json:
    names = {200: "Done", 201: "Created", 202: "Accepted", 204: "Done"}
    answer: Json = {"description": names[status]}
    if schema is not None:
        answer["content"] = {JSON_TYPE: {"schema": schema, "example": example}}
    if path.endswith("/export"):
        answer["content"] = {JSONL_TYPES[0]: {"schema": _TEXT}}
    if path == STREAM_PATH and status == 200:
        answer["content"] = {"text/event-stream": {"schema": _TEXT}}
    if path.endswith("/preview"):
        answer["content"]["text/html"] = {"schema": _TEXT}
    if headers:
        answer["headers"] = {
            name: {"description": why, "required": False, "schema": _TEXT} for name, why in headers.items()
        }
    return answer


def _complete(operation: Json, path: str, route: Route) -> None:
    """Put what the table says into an operation."""
    if route.body is not None:
        schema = route.body if isinstance(route.body, dict) else _ref(route.body.__name__)
        content = {kind: {"schema": schema, "example": route.example} for kind in route.types}
        operation["requestBody"] = {"required": True, "content": content}
        if CSV_TYPE in content:
            content[CSV_TYPE]["example"] = f"channel,address,reason\n{','.join(_SUPPRESSION.values())}\n"
    elif route.example is not None:
        operation["requestBody"]["content"][JSON_TYPE]["example"] = route.example
    refusals = {*_ALWAYS, *route.refusals, *(_WITH_BODY if "requestBody" in operation else ())}
    operation["responses"] = {
        **{str(code): _answer(path, code, *made, route.headers) for code, made in route.answers.items()},
        **{str(code): {"$ref": f"#/components/responses/Problem{code}"} for code in sorted(refusals)},
    }


def describe(app: FastAPI) -> Json:
    """The document of the app, with everything in components."""
    document = get_openapi(
        title="Heliograph", version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    paths = document["paths"]
    paths.setdefault(PATH, {})["post"] = _ingest(
        "send_notification",
        "Send a notification",
        "202 only after every in-sync replica of the broker has it. An "
        "array as `to` is one notification for each recipient, and the answer that of a bulk.",
        keyed=True,
    )
    paths[BULK_PATH] = {
        "post": _ingest(
            "send_notifications",
            "Send up to 1,000 notifications",
            "Each is accepted or refused for itself.",
            keyed=False,
        )
    }
    paths[STREAM_PATH] = {"get": _stream()}
    for path, operations in paths.items():
        for method, operation in operations.items():
            operation.setdefault("security", [{"ApiKey": []}])
            _complete(operation, path, ROUTES[method, path])
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["responses"] = {f"Problem{status}": _problem(status) for status in _STATUSES}
    components["securitySchemes"] = {"ApiKey": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"ApiKey": []}]
    for model in MODELS:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    schemas.update(SCHEMAS)
    # In the model an item may be anything: a wrong one is its own problem in the answer.
    schemas["Bulk"]["properties"]["notifications"]["items"] = _ref("Notification")
    # One recipient, or several.
    to = schemas["Notification"]["properties"]["to"]
    schemas["Notification"]["properties"]["to"] = {
        "anyOf": [to, {"type": "array", "items": to, "minItems": 1, "maxItems": MAX_ITEMS}]
    }
    return document

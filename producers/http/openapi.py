"""The OpenAPI document: FastAPI's own, with the bodies that routes read themselves, and ingest.

May import fastapi and pydantic. What never enters here: behaviour.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from producers.http.ingest import PATH, Bulk
from producers.http.reference import BODIES
from producers.http.suppressions import NewSuppression
from producers.notification import Notification

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "errors", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail", "code"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer into the body"},
                    "detail": {"type": "string"},
                    "code": {"type": "string"},
                },
            },
        },
        "request_id": {"type": "string"},
    },
}
_ACCEPTED = {
    "type": "object",
    "required": ["id", "status", "accepted_at", "links"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "status": {"const": "accepted"},
        "accepted_at": {"type": "string", "format": "date-time"},
        "links": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_REFUSALS = (400, 401, 409, 413, 415, 503)


def _ingest() -> dict[str, Any]:
    def header(name: str, why: str, length: int) -> dict[str, Any]:
        schema = {"type": "string", "maxLength": length}
        return {"name": name, "in": "header", "required": False, "description": why, "schema": schema}

    return {
        "tags": ["notifications"],
        "operationId": "send_notification",
        "summary": "Send a notification",
        "description": "202 only after every in-sync replica of the broker has it.",
        "parameters": [
            header("Idempotency-Key", "The same key and body again give the same id, for at least 7 days.", 255),
            header("X-Correlation-ID", "Carried to every status and log line.", 128),
            header("traceparent", "W3C trace context, carried.", 55),
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Notification"}}},
        },
        "responses": {
            "202": {
                "description": "Accepted",
                "headers": {
                    "Location": {"schema": {"type": "string"}},
                    "Idempotent-Replayed": {"schema": {"const": "true"}},
                },
                "content": {"application/json": {"schema": _ACCEPTED}},
            },
            **{str(status): {"$ref": "#/components/responses/Problem"} for status in _REFUSALS},
        },
        "security": [{"ApiKey": []}],
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of the app, with everything in components."""
    document = get_openapi(
        title="Heliograph", version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    document["paths"].setdefault(PATH, {})["post"] = _ingest()
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components.setdefault("responses", {})["Problem"] = {
        "description": "RFC 9457 problem document",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    components["securitySchemes"] = {"ApiKey": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"ApiKey": []}]
    for path in document["paths"].values():
        for operation in path.values():
            if operation.get("responses", {}).pop("422", None):
                operation["responses"]["400"] = {"$ref": "#/components/responses/Problem"}
    for model in (Notification, Bulk, *BODIES, NewSuppression):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    return document

"""Rows of reference data as records of the compacted topics; pure.

May import schemas. Never: SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from producers.notification import json_object
from schemas.channels import CONTACT_FIELDS
from schemas.codec import codec
from schemas.topics import ENDPOINTS, RECIPIENTS, SUPPRESSIONS, TEMPLATES

Row = Mapping[str, Any]


class OutboxRow(NamedTuple):
    """What the relay publishes; value None is a tombstone."""

    topic: str
    key: str
    value: bytes | None


def profile_row(user: Row, preferences: Row | None) -> OutboxRow:
    """The recipient as the router knows it."""
    devices = [
        {
            "platform": device["platform"],
            "token": device.get("token"),
            "subscription": json_object(device["subscription"]) if device.get("subscription") else None,
        }
        for device in user["devices"]
    ]
    record = {
        **{name: user[name] for name in ("tenant", "user_id", "name", *CONTACT_FIELDS, "locale", "time_zone")},
        "devices": devices,
        "channels": preferences["channels"] if preferences else {},
        "categories": preferences["categories"] if preferences else {},
        "version": user["version"],
        "updated_at": user["updated_at"],
    }
    return OutboxRow(RECIPIENTS, f"{user['tenant']}:{user['user_id']}", codec("RecipientProfile").encode(record))


def template_rows(version: Row, *, new: bool, published: bool, updated_at: int) -> list[OutboxRow]:
    """The version under its own key when it is new, and under the template's when it is published."""
    value = codec("Template").encode(
        {
            **{name: version[name] for name in ("tenant", "template_id", "version", "category", "variables")},
            "channels": json_object(version["channels"]),
            "locales": json_object(version["locales"]),
            "updated_at": updated_at,
        }
    )
    key = f"{version['tenant']}:{version['template_id']}"
    rows = [OutboxRow(TEMPLATES, f"{key}:{version['version']}", value)] if new else []
    return [*rows, OutboxRow(TEMPLATES, key, value)] if published else rows


def suppression_row(suppression: Row) -> OutboxRow:
    """The suppression without its address."""
    record = {
        **{name: suppression[name] for name in _SUPPRESSION},
        "suppression_id": str(suppression["suppression_id"]),
    }
    key = f"{suppression['tenant']}:{suppression['channel']}:{suppression['address_hash']}"
    return OutboxRow(SUPPRESSIONS, key, codec("Suppression").encode(record))


def endpoint_row(webhook: Row) -> OutboxRow:
    """The endpoint as the hooks role knows it: without its description."""
    record = {**{name: webhook[name] for name in _ENDPOINT}, "endpoint_id": str(webhook["webhook_id"])}
    return OutboxRow(ENDPOINTS, endpoint_key(webhook), codec("Endpoint").encode(record))


def endpoint_key(webhook: Row) -> str:
    """The key of an endpoint's records."""
    return f"{webhook['tenant']}:{webhook['webhook_id']}"


_ENDPOINT = (
    *("tenant", "url", "states", "channels", "categories", "enabled", "secret", "previous_secret", "previous_until"),
    *("replays", "since", "version", "updated_at"),
)
_SUPPRESSION = ("suppression_id", "tenant", "channel", "address_hash", "reason", "expires_at", "created_at")

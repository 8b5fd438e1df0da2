"""Reads a request record: the request, or the reason why it is none; pure.

The router asks it of every record, a re-drive of every dead letter before it publishes one again.
May import runtime values and schemas. Never: a decision, a view, Kafka.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic_core import from_json

from runtime import ids
from runtime.records import ConsumerRecord
from schemas.channels import CHANNELS
from schemas.codec import DecodeError, codec
from schemas.events import NotificationRequest

MAX_ADDRESSES = 256
"""In a request. Each becomes a message of its own, with all that is said in it."""


def decode_request(record: ConsumerRecord) -> NotificationRequest:
    """The request. Raises DecodeError for undecodable bytes, and for an id that is not well-formed."""
    request = cast(NotificationRequest, codec("NotificationRequest").decode(record.value))
    try:
        ids.accepted_at(request["notification_id"])
    except ValueError as exc:
        raise DecodeError("notification_id is not a UUIDv7") from exc
    return request


def check_request(request: NotificationRequest) -> None:
    """Raises DecodeError when the fields of a decodable request contradict the contract."""
    nid = request["notification_id"]
    if not ids.is_canonical(nid):
        raise DecodeError("notification_id is not in its canonical form")
    if ids.accepted_at(nid) != request["accepted_at"]:
        raise DecodeError("accepted_at is not the time in notification_id")
    if not request["tenant"] or ":" in request["tenant"]:
        raise DecodeError("tenant is empty or contains a colon")
    if not request.get("user_id") and not request.get("addresses"):
        raise DecodeError("neither user_id nor addresses are given")
    if (request.get("template_id") is None) == (request.get("content") is None):
        raise DecodeError("exactly one of template_id and content must be given")
    if len(request.get("addresses", ())) > MAX_ADDRESSES:
        raise DecodeError(f"a request is for one recipient, who has at most {MAX_ADDRESSES} addresses")
    named = [*request.get("channels", ()), *(a["channel"] for a in request.get("addresses", ()))]
    if any(channel not in CHANNELS for channel in named):
        raise DecodeError(f"channels are {', '.join(CHANNELS)}")


def json_object(raw: bytes | None, name: str) -> dict[str, Any]:
    """The JSON object in a field of a request. Raises DecodeError."""
    try:
        value = from_json(raw or b"{}")
    except ValueError as exc:
        raise DecodeError(f"{name} is not JSON") from exc
    if not isinstance(value, dict):
        raise DecodeError(f"{name} is not a JSON object")
    return value


def read_request(record: ConsumerRecord) -> NotificationRequest:
    """The request, checked whole: the router would not call it undecodable. Raises DecodeError."""
    request = decode_request(record)
    check_request(request)
    json_object(request.get("data"), "data")
    json_object(request.get("content"), "content")
    return request

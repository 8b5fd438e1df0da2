"""Records of the contracts as a test needs them: complete, with the fields that matter to it.

    made("Timer", due_at=5)     every field of the schema: the one given, else the schema's default, else the zero of its type
    message(subject="S")        the same for what many tests send: a mail to a@example.org of tenant t, at its first attempt

A field that is added to a schema is in every record at once.
"""

from __future__ import annotations

import json
from typing import Any

from runtime.records import ConsumerRecord
from schemas.codec import codec, plain_schema
from schemas.events import ChannelMessage, RecordName

NOW = 1_800_000_000_000
NIL = "00000000-0000-0000-0000-000000000000"
RECORD = ConsumerRecord("notify.dispatch.email.normal.v1", 2, 41, NOW, b"t:u", b"raw", [("ce_id", b"x")])
"""The dispatch record of a message."""


def made(name: RecordName, **fields: Any) -> dict[str, Any]:
    """A record that can be encoded."""
    schema = plain_schema(name)
    unknown = fields.keys() - {field["name"] for field in schema["fields"]}
    assert not unknown, f"{name} has no {', '.join(sorted(unknown))}"
    return {**_neutral(schema), **fields}


def encoded(name: RecordName, **fields: Any) -> bytes:
    """`made`, in the form of a record's value."""
    return codec(name).encode(made(name, **fields))


def _neutral(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        field["name"]: _default(field["type"], field["default"]) if "default" in field else _zero(field)
        for field in schema["fields"]
    }


def _default(kind: Any, value: Any) -> Any:
    """A schema's default as a value: JSON has no bytes."""
    kinds = kind if isinstance(kind, list) else [kind]
    return value.encode("latin-1") if isinstance(value, str) and "bytes" in kinds else value


def _zero(field: dict[str, Any]) -> Any:
    kind = field["type"]
    if isinstance(kind, dict):
        kind = kind["type"]
    if isinstance(kind, list):
        assert "null" in kind, field
        return None
    if kind == "string" and field["name"].endswith("_id") and field["name"] not in ("user_id", "template_id"):
        return NIL
    return {"string": "", "bytes": b"", "boolean": False, "int": 0, "long": 0, "array": [], "map": {}}[kind]


def message(**fields: Any) -> ChannelMessage:
    """A mail, at its first attempt."""
    about = {
        "message_id": "6f0c0a4e-0f57-5c1e-9d2a-1f6d2a3b4c5d",
        "notification_id": "019b0c5e-8c00-7a11-8b22-3c33d44e55f6",
        "tenant": "t",
        "accepted_at": NOW - 100,
        "channel": "email",
        "lane": "normal",
        "category": "orders",
        "user_id": "u",
        "address": "a@example.org",
        "subject": "S",
        "text": "T",
        "attempt": 1,
        "correlation_id": "c",
        "routed_at": NOW - 50,
    }
    record: Any = made("ChannelMessage", **{**about, **fields})
    return record  # type: ignore[no-any-return]


def status(**fields: Any) -> dict[str, Any]:
    """A status event of a notification as a whole: it was sent."""
    return made(
        "DeliveryStatus",
        **{"tenant": "t", "lane": "normal", "state": "sent", "occurred_at": NOW, "attempt": 0, **fields},
    )


def profile(**fields: Any) -> dict[str, Any]:
    """A recipient with an address on every channel."""
    about = {
        "tenant": "t",
        "user_id": "u",
        "email": "u@example.org",
        "phone": "+4915112345678",
        "devices": [{"platform": "fcm", "token": "tok", "subscription": None}],
        "version": 9,
        "updated_at": 1,
    }
    return made("RecipientProfile", **{**about, **fields})


def template(channels: dict[str, Any], locales: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A template of these sources."""
    about = {
        "tenant": "t",
        "template_id": "shipped",
        "version": 3,
        "category": "orders",
        "channels": json.dumps(channels).encode(),
        "locales": json.dumps(locales or {}).encode(),
        "updated_at": 1,
    }
    return made("Template", **{**about, **fields})

"""What is wrong with a field, in the words of JSON: pydantic's own speak of dictionaries and of the names of our classes.

May import schemas.channels. Never: a value that a caller sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from schemas.channels import ROWS, Channel


def _shown(row: Channel) -> str:
    value = '"…"' if row.one_address else "[…]"
    return f'{{"{row.given_as}": {value}}}'


_TO = tuple(dict.fromkeys(_shown(row) for row in ROWS.values()))
"""The fields of `to` that hold addresses, each as an object."""
_LIKE: Mapping[str, str] = MappingProxyType(
    {
        "To": f'an object like {{"user_id": "…"}}; an address goes in {", ".join(_TO[:-1])} or {_TO[-1]}',
        "TemplateRef": 'an object like {"id": "…"}',
        "Content": 'an object like {"subject": "…", "text": "…"}',
        "Routing": 'an object like {"strategy": "all"}',
        "Device": 'an object like {"platform": "fcm", "token": "…"}',
    }
)
"""By the class that a field wants."""
_KINDS = MappingProxyType(
    {
        "dict_type": "an object",
        "mapping_type": "an object",
        "list_type": "an array",
        "string_type": "a string",
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "none_required": "null",
    }
)


def describe(error: Mapping[str, Any]) -> str:
    """One of `ValidationError.errors()`, its context included, for a caller."""
    kind = error["type"]
    context = error.get("ctx") or {}
    if kind in ("model_type", "model_attributes_type", "dataclass_type"):
        return f"this must be {_LIKE.get(context.get('class_name', ''), 'an object')}"
    if kind in _KINDS:
        return f"this must be {_KINDS[kind]}"
    if kind == "extra_forbidden":
        return "there is no field of this name"
    if kind == "missing":
        return "this field is required"
    if kind == "too_long":
        return f"there may be at most {context['max_length']} entries"
    if kind == "too_short":
        return f"there must be at least {context['min_length']} entries"
    if kind == "string_too_long":
        return f"this may have at most {context['max_length']} characters"
    if kind == "string_too_short":
        return f"this must have at least {context['min_length']} characters"
    return str(error["msg"]).removeprefix("Value error, ")

"""The data of a push as a JSON object, whatever a direct publisher wrote there; pure.

May import the protocol. Never: a vendor's payload.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from schemas.events import ChannelMessage
from vendors.provider import UnsendableError


def push_data(message: ChannelMessage) -> dict[str, Any]:
    """The message's `data`, {} where it has none. Raises UnsendableError for anything but an object."""
    if not message["data"]:
        return {}
    try:
        data = from_json(message["data"])
    except ValueError as exc:
        raise UnsendableError("data is not JSON") from exc
    if not isinstance(data, dict):
        raise UnsendableError("data is not a JSON object")
    return data


def is_silent(message: ChannelMessage) -> bool:
    """Whether it shows nothing: data for the app alone."""
    return not (message["title"] or message["body"])

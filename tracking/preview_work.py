"""The rendering of a preview, in a process of its own: by the router's code, with an engine that lives as long as the process.

May import processors.router.rendering and the text of an SMS. Never: HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from pydantic_core import from_json

from processors.router.rendering import render_parts
from runtime.templates.engine import Engine, MissingVariable, RenderError, exact_numbers
from schemas.channels import OBJECT_PARTS, PHONE_NUMBER, ROWS
from vendors import sms_text


@cache
def _engine() -> Engine:
    return Engine()


def render(argument: Mapping[str, Any]) -> dict[str, Any]:
    """{"channel", "sources", "data"} to {"parts"}, {"missing"} (a path) or {"error"}."""
    try:
        parts = render_parts(_engine(), argument["sources"], exact_numbers(argument["data"]))
    except MissingVariable as exc:
        return {"missing": exc.path}
    except RenderError as exc:
        return {"error": str(exc)}
    found = {name: value for name, value in asdict(parts).items() if value is not None}
    found |= {part: from_json(found[part]) for part in OBJECT_PARTS & found.keys()}
    if ROWS[argument["channel"]].shape is PHONE_NUMBER and parts.text is not None:
        number = sms_text.count_parts(sms_text.clean_text(parts.text))
        found["parts"] = {"number": number.number, "alphabet": number.alphabet}
    return {"parts": found}

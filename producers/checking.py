"""A value that a JSON parser made, as a model; or what is wrong with it, in words and with pointers.

May import pydantic and runtime. Never: HTTP, which models there are.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from producers.notification import PARSED_JSON
from runtime.errors import MAX_ERRORS, FieldError, Refusal, RefusedError
from runtime.json_pointer import pointer
from runtime.wording import describe

MAX_ENTRIES = 100
"""Fields or items looked at to find the errors of an object or array; every model of ours has fewer fields."""
Model = TypeVar("Model", bound=BaseModel)

_CODES = {"extra_forbidden": "unknown_field", "missing": "required", "value_error": "invalid_value"}


def check_model(model: type[Model], value: Any) -> Model:
    """The value as a model. Raises RefusedError."""
    try:
        return model.model_validate(value, context=PARSED_JSON)
    except ValidationError as exc:
        raise _invalid(exc if exc.error_count() <= MAX_ENTRIES else _first(exc, model, value)) from exc


def _first(exc: ValidationError, model: type[BaseModel], value: Any) -> ValidationError:
    """What is wrong at the beginning of a body with faults by the ten thousand: to list them all takes too long."""
    try:
        model.model_validate(_beginning(value))
    except ValidationError as first:
        return first
    return exc


def _beginning(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _beginning(item) for name, item in islice(value.items(), MAX_ENTRIES)}
    return [_beginning(item) for item in value[:MAX_ENTRIES]] if isinstance(value, list) else value


def _invalid(exc: ValidationError) -> RefusedError:
    found = exc.errors(include_url=False, include_input=False)[:MAX_ERRORS]
    errors = [FieldError(pointer(e["loc"]), describe(e), _CODES.get(e["type"], e["type"])) for e in found]
    where = errors[0].pointer or "the body"
    return RefusedError(Refusal.INVALID, "invalid_request", f"{where}: {errors[0].detail}", errors=errors)

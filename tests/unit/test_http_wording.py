"""What a caller is told of a wrong body is said in JSON's words: no class of ours, nothing of Python."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel

from api.ingest import Bulk
from api.reference.preview import PreviewRequest
from producers.checking import check_model
from producers.notification import Content, Device, Notification, Routing, TemplateRef, To
from producers.reference.inputs import (
    HashedSuppression,
    NewSuppression,
    NewTemplate,
    NewUser,
    NewVersion,
    Preferences,
    Published,
    ReplacedUser,
)
from runtime.errors import MAX_ERRORS, RefusedError

MODELS: list[type[BaseModel]] = [
    Notification,
    To,
    TemplateRef,
    Content,
    Routing,
    Device,
    Bulk,
    NewUser,
    ReplacedUser,
    Preferences,
    NewTemplate,
    NewVersion,
    Published,
    NewSuppression,
    HashedSuppression,
    PreviewRequest,
]
WRONG: list[Any] = [
    None,
    True,
    1,
    1.5,
    "",
    "x",
    "x" * 5_000,
    [],
    [1],
    ["x"] * 200,
    [{}],
    {},
    {"x": 1},
    {"x": {"y": []}},
    [[1]],
]
_CLASSES = {model.__name__ for model in MODELS} | {"Strict", "UserFields"}
_PYTHON = re.compile(
    r"\b(instance|dictionary|list|tuple|str|dict|NoneType|None|pydantic|validator|Extra inputs|class)\b"
)


def said(model: type[BaseModel], value: Any) -> list[str]:
    try:
        check_model(model, value)
    except RefusedError as problem:
        return [str(problem), *(error.detail for error in problem.errors)]
    return []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_wrong_type_in_any_field_is_answered_in_the_words_of_python(model: type[BaseModel]) -> None:
    texts = [text for value in WRONG for text in said(model, value)]
    names = set(model.model_fields) | {"variables", "unknown"}
    texts += [text for name in names for value in WRONG for text in said(model, {name: value})]
    assert texts
    for text in texts:
        words = set(re.findall(r"[A-Za-z]+", text))
        assert not words & _CLASSES, text
        assert not _PYTHON.search(text), text


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({"template": "x"}, "/template", 'this must be an object like {"id": "…"}'),
        ({"to": "a@b.example"}, "/to", 'an address goes in {"email": "…"}'),
        (
            {"to": {"device_tokens": ["x"]}},
            "/to/device_tokens/0",
            'this must be an object like {"platform": "fcm", "token": "…"}',
        ),
        ({"data": []}, "/data", "this must be an object"),
        ({"tags": "x"}, "/tags", "this must be an array"),
        ({"colour": 1}, "/colour", "there is no field of this name"),
        ({"to": {"email": "x"}}, "/to/email", "there is no @ in it"),
    ],
)
def test_what_is_wrong_says_what_would_be_right(body: dict[str, Any], pointer: str, detail: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_model(Notification, {"to": {"user_id": "u"}, "template": {"id": "t"}, **body})
    (error,) = [error for error in caught.value.errors if error.pointer == pointer]
    assert detail in error.detail


@pytest.mark.parametrize(
    "body",
    [
        {f"k{n}": 1 for n in range(30_000)},
        {"metadata": {f"k{n}": 1 for n in range(30_000)}},
        {"to": {f"k{n}": 1 for n in range(30_000)}},
    ],
    ids=["fields", "metadata", "to"],
)
def test_faults_by_the_ten_thousand_are_told_by_the_first_few(body: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as caught:
        check_model(Notification, {"to": {"user_id": "u"}, "template": {"id": "t"}, **body})
    assert 0 < len(caught.value.errors) <= MAX_ERRORS


def test_fault_behind_the_first_entries_is_told_too() -> None:
    body = {"to": {"user_id": "u"}, "template": {"id": "t"}, "metadata": {f"k{n}": "v" for n in range(30_000)}}
    with pytest.raises(RefusedError, match="at most 32 entries"):
        check_model(Notification, body)

"""The parts text and json of a webhook's message: in a template, in literal content, and to which devices they go."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import from_json

from processors.router.policy import targets
from processors.router.rendering import literal_channels, literal_parts, render_parts
from producers.notification import Content, Device, Notification, To
from runtime.json_texts import MAX_DEPTH, texts, with_texts
from runtime.templates.check import check_template
from runtime.templates.engine import Engine, MissingVariable, RenderError
from runtime.templates.language import TemplateRefused
from runtime.templates.layouts import Written, place
from tests.support.made import profile
from tracking.preview_work import render

CARD: dict[str, Any] = {
    "type": "AdaptiveCard",
    "body": [{"type": "TextBlock", "text": "Order {{ order }}", "wrap": True, "size": 2.5, "id": None}, "{{ name }}"],
}
URL = "https://hooks.shop.example/x?key=y"


# -- a template -------------------------------------------------------------------------------------------------------


def test_every_text_of_the_object_is_a_source() -> None:
    assert check_template({"webhook": {"json": CARD, "text": "{{ total }}"}}, {}) == ["name", "order", "total"]
    assert dict(texts(CARD))[("body", "0", "text")] == "Order {{ order }}"


def test_data_cannot_change_the_shape_of_the_object() -> None:
    hostile = '"}],"x":[{"\\ \u2028 </script> é'
    parts = render_parts(Engine(), {"json": CARD}, {"order": hostile, "name": hostile})
    assert from_json(parts.json or b"") == {
        "type": "AdaptiveCard",
        "body": [
            {"type": "TextBlock", "text": f"Order {hostile}", "wrap": True, "size": 2.5, "id": None},
            hostile,
        ],
    }


def test_preview_shows_the_object() -> None:
    shown = render(
        {"channel": "webhook", "sources": {"json": CARD, "text": "T"}, "data": {"order": "A1", "name": "Ada"}}
    )
    assert shown["parts"]["json"]["body"][1] == "Ada"
    assert shown["parts"]["text"] == "T"


def test_variable_that_is_missing_in_the_object_is_named() -> None:
    with pytest.raises(MissingVariable) as missing:
        render_parts(Engine(), {"json": CARD}, {"order": "A1"})
    assert missing.value.path == "name"


def nested(levels: int) -> dict[str, Any]:
    value: Any = "{{ x }}"
    for _ in range(levels):
        value = {"a": [value]}
    return {"top": value}


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("{{ order }}", "webhook.json"),
        (["{{ order }}"], "webhook.json"),
        ({}, "webhook.json"),
        (None, "webhook.json"),
        ({"a": [{"b": "{% set x = 1 %}"}]}, "webhook.json.a.0.b"),
        (nested(MAX_DEPTH), "webhook.json"),
    ],
)
def test_object_that_is_none_or_holds_a_bad_source_is_refused_at_its_place(source: Any, where: str) -> None:
    with pytest.raises(TemplateRefused) as refused:
        check_template({"webhook": {"json": source}}, {})
    assert refused.value.where == where


def test_include_is_replaced_at_its_place_in_the_object() -> None:
    written = Written("mine", {"webhook": {"json": {"body": [{"text": 'a {% include "foot" %}'}, {"n": 1}]}}}, {}, None)
    foot = {"channels": {"webhook": {"json": {"body": [{"text": "z"}]}}}, "locales": {}}
    placed = place(written, {"foot": foot})
    assert placed is not None
    assert placed[0]["webhook"]["json"] == {"body": [{"text": "a z"}, {"n": 1}]}


@pytest.mark.parametrize("other", [{"body": {"0": {"text": "z"}}}, {"body": []}, {"body": "z"}, {"body": [["z"]]}])
def test_include_of_an_object_of_another_shape_is_refused(other: dict[str, Any]) -> None:
    written = Written("mine", {"webhook": {"json": {"body": [{"text": '{% include "foot" %}'}]}}}, {}, None)
    found = {"channels": {"webhook": {"json": other}}, "locales": {}}
    if other == {"body": {"0": {"text": "z"}}}:
        assert place(written, {"foot": found})
        return
    with pytest.raises(TemplateRefused):
        place(written, {"foot": found})


def test_texts_are_changed_and_all_else_is_kept() -> None:
    assert with_texts({"a": ["x", 1, None, True, {"b": "y"}]}, lambda text, path: f"{'/'.join(path)}={text}") == {
        "a": ["a/0=x", 1, None, True, {"b": "a/4/b=y"}]
    }


# -- literal content --------------------------------------------------------------------------------------------------


def test_content_with_json_is_for_webhooks_and_a_text_too_where_they_are_asked_for() -> None:
    content = Content.model_validate({"json": {"n": 1}, "text": "T"})
    assert content.model_dump(exclude_none=True, by_alias=True) == {"json": {"n": 1}, "text": "T"}
    assert content.channels() == ["email", "sms", "webhook"]
    assert literal_channels({"json": {"n": 1}, "text": "T"}) == ["webhook"]
    assert literal_channels({"text": "T"}) == ["sms"]
    parts = literal_parts("webhook", {"json": {"n": 1}, "text": "T"})
    assert parts is not None
    assert (parts.text, parts.json) == ("T", b'{"n":1}')
    only = literal_parts("webhook", {"text": "{{ stays }}"})
    assert only is not None and (only.text, only.json) == ("{{ stays }}", None)
    assert literal_parts("webhook", {"title": "T"}) is None


def test_content_of_another_type_is_refused_at_both_doors() -> None:
    values: tuple[Any, ...] = ([1], "x", {})
    for value in values:
        with pytest.raises(ValidationError):
            Content.model_validate({"json": value})
    with pytest.raises(RenderError):
        literal_parts("webhook", {"json": [1]})


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["webhook", "slack", "teams"])
def test_webhook_is_a_device_token_with_a_url(platform: str) -> None:
    to = To.model_validate({"device_tokens": [{"platform": platform, "token": URL}, {"platform": "fcm", "token": "t"}]})
    assert to.addresses() == [
        {"channel": "push", "value": "t", "platform": "fcm"},
        {"channel": "webhook", "value": URL, "platform": platform},
    ]


@pytest.mark.parametrize(
    "token",
    [
        "http://hooks.shop.example/x",
        "hooks.shop.example",
        "https://",
        "https://a b/",
        "https://bücher.example/",
        "https://h/=?utf-8?q?x?=",
        f"https://h/{'a' * 2048}",
        "http://127.0.0.1.evil.example/",
        "http://localhost@evil.example/",
        "javascript:alert(1)",
        "",
    ],
)
def test_token_that_is_no_url_is_refused_without_being_quoted(token: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Device.model_validate({"platform": "slack", "token": token})
    (error,) = refused.value.errors()
    assert error["loc"] == ("token",)
    assert len(token) < 10 or token not in error["msg"]


def test_url_of_this_machine_passes_the_doors_as_the_sender_decides() -> None:
    for url in ("http://127.0.0.1:8080/x", "http://[::1]/", "http://localhost/x"):
        Device.model_validate({"platform": "webhook", "token": url})


def test_devices_of_a_profile_go_to_the_channel_of_their_platform() -> None:
    devices = [
        {"platform": "fcm", "token": "t", "subscription": None},
        {"platform": "slack", "token": URL, "subscription": None},
        {"platform": "unheard-of", "token": "u", "subscription": None},
    ]
    found: Any = profile(devices=devices)
    request: Any = {}
    assert [t.address for t in targets(request, found, "push")] == ["t"]
    assert [(t.address, t.platform) for t in targets(request, found, "webhook")] == [(URL, "slack")]


def test_request_for_a_webhook_alone_may_name_it_so() -> None:
    body = {"to": {"device_tokens": [{"platform": "slack", "token": URL}]}, "content": {"json": {"n": 1}}}
    request = Notification.model_validate(body).to_request("t", 1_800_000_000_000)
    assert from_json(request["content"] or b"") == {"json": {"n": 1}}
    assert [each["channel"] for each in request["addresses"]] == ["webhook"]

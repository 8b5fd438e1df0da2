"""The demo's data is what its generator makes, is accepted as it is, and shows what it claims to show."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import phonenumbers
import pytest

from local.demo import SERVICES
from local.simulator import webpush
from producers.notification import Notification
from runtime.subscriptions import subscription_of
from runtime.templates.check import check_template
from schemas.channels import CHANNELS, PLATFORMS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
REAL_LOOKING = (".example", "example.org")


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_requests", EXAMPLES / "make_requests.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bodies() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / "requests.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / "reference.json").read_text("utf-8"))
    return found


def test_the_files_are_what_the_generator_writes() -> None:
    for name, text in _generator().build().items():
        assert (EXAMPLES / name).read_bytes() == text.encode(), f"run python examples/make_requests.py for {name}"


def test_a_file_that_was_edited_by_hand_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = _generator()
    monkeypatch.setattr(generator, "DIRECTORY", tmp_path)
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0
    (tmp_path / "requests.jsonl").write_text("{}\n")
    assert generator.main(["--check"]) == 1


def test_there_are_enough_requests_and_each_is_accepted(bodies: list[dict[str, Any]]) -> None:
    assert len(bodies) >= 2_000
    for body in bodies:
        Notification.model_validate(body)


def test_a_key_that_comes_twice_has_the_same_body(bodies: list[dict[str, Any]]) -> None:
    by_key: dict[str, list[dict[str, Any]]] = {}
    for body in bodies:
        if key := body.get("request_id"):
            by_key.setdefault(key, []).append(body)
    twice = [copies for copies in by_key.values() if len(copies) > 1]
    assert len(twice) == _generator().COPIES
    assert all(copy == copies[0] for copies in twice for copy in copies)


def test_every_way_to_end_is_asked_for(bodies: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    known = {user["id"] for user in reference["users"]}
    templates = {template["id"] for template in json.loads((EXAMPLES / "templates.json").read_text("utf-8"))}
    seen: Counter[str] = Counter()
    for body in bodies:
        to, template = body["to"], body.get("template")
        seen[f"lane {body.get('priority', 'normal')}"] += 1
        seen["unknown user"] += "user_id" in to and to["user_id"] not in known
        seen["opted out"] += to.get("user_id") in reference["preferences"]
        seen["unknown template"] += template is not None and template["id"] not in templates
        seen["unknown version"] += template is not None and template.get("version", 1) > 1
        seen["literal content"] += "content" in body
        seen["address only"] += "user_id" not in to
        seen["first_available"] += "routing" in body
        seen["expired"] += "expires_at" in body
        seen["dry run"] += body.get("dry_run", False)
        seen["at most once"] += body.get("delivery") == "at_most_once"
        for channel in body.get("channels", ()):
            seen[f"channel {channel}"] += 1
    assert {name for name, count in seen.items() if count < 5} == set()
    assert {"lane critical", "lane normal", "lane bulk", *(f"channel {name}" for name in CHANNELS)} <= set(seen)


def test_users_differ_in_what_they_can_be_reached_by(reference: dict[str, Any]) -> None:
    users = reference["users"]
    assert any("email" not in user for user in users)
    assert any("phone" not in user for user in users)
    assert any(len(user["devices"]) > 1 for user in users)
    assert any(user.get("locale") == "de-AT" for user in users)
    assert any("locale" not in user for user in users)


def test_devices_are_of_every_platform_and_the_browsers_are_those_the_simulator_knows(
    reference: dict[str, Any],
) -> None:
    devices = [device for user in reference["users"] for device in user["devices"]]
    assert {device["platform"] for device in devices} == set(PLATFORMS)
    browsers = [device["subscription"] for device in devices if device["platform"] == "webpush"]
    assert len(browsers) == len(_generator().BROWSERS)
    for browser in browsers:
        name = browser["endpoint"].rpartition("/")[2]
        assert subscription_of(browser) == webpush.subscription(SERVICES, name)


def test_text_is_of_many_scripts(bodies: list[dict[str, Any]]) -> None:
    text = json.dumps(bodies, ensure_ascii=False)
    classes = {unicodedata.bidirectional(char) for char in set(text)}
    assert {"R", "AL"} <= classes  # Hebrew and Arabic
    assert any(unicodedata.combining(char) for char in set(text))
    assert any("\u4e00" <= char <= "\u9fff" for char in text)
    assert "\u200d" in text  # joined emoji


def _addresses(bodies: list[dict[str, Any]], reference: dict[str, Any]) -> tuple[set[str], set[str]]:
    people = [*reference["users"], *(body["to"] for body in bodies)]
    mails = {person["email"] for person in people if "email" in person}
    phones = {person["phone"] for person in people if "phone" in person}
    for suppression in reference["suppressions"]:
        (mails if suppression["channel"] == "email" else phones).add(suppression["address"])
    return mails, phones


def test_no_address_can_be_real(bodies: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    mails, phones = _addresses(bodies, reference)
    assert [mail for mail in mails if not mail.endswith(REAL_LOOKING)] == []
    fictional = ("+442079460", "+4930231250", "+49699000", "+494066969", "+498999998", "+33199000")
    for number in phones:
        american = number.startswith("+1") and number[5:9] == "5550" and number[9] == "1"
        assert american or number.startswith(fictional), number
        assert phonenumbers.is_valid_number(phonenumbers.parse(number, None)), number


def test_the_templates_are_in_the_template_language() -> None:
    templates = json.loads((EXAMPLES / "templates.json").read_text("utf-8"))
    assert {locale for template in templates for locale in template["locales"]} >= {"de", "de-CH", "ar", "ja"}
    for template in templates:
        assert check_template(template["channels"], template["locales"])

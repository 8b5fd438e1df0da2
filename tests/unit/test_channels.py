"""schemas/channels.py is the one list of channels: its rows fit what they name, and every reader reads it.

That no module has a list of its own is tested in test_one_place.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from producers.addresses import NORMAL_FORMS
from producers.notification import Content, To
from runtime.errors import SettingsError
from runtime.settings import load_settings
from schemas.channels import (
    CHANNEL_OF_PLATFORM,
    CHANNELS,
    FIELD_OF_PART,
    LINE_PARTS,
    OBJECT_PARTS,
    PARTS,
    ROWS,
    SHAPES,
    Channel,
)
from schemas.events import ChannelMessage, RecipientProfile, states
from vendors.registry import VENDORS

ROOT = Path(__file__).parents[2]
CONTENT_PARTS = {field.alias or name for name, field in Content.model_fields.items()}


# -- the rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS.values(), ids=CHANNELS)
def test_row_names_fields_parts_and_reasons_that_exist(row: Channel) -> None:
    assert row.given_as in To.model_fields
    assert row.stored_as in get_type_hints(RecipientProfile)
    assert set(row.parts) <= CONTENT_PARTS
    assert len({FIELD_OF_PART[part] for part in row.parts} & set(get_type_hints(ChannelMessage))) == len(row.parts)
    assert {*row.needs_one_of, *row.blank_parts, *row.meant_by} <= set(row.parts)
    assert row.needs_one_of
    assert row.bounce_reason in states().reasons["bounced"]
    assert set(row.subscription_platforms) <= set(row.platforms)
    assert row.one_address == (row.stored_as != "devices") == (not row.platforms)


@pytest.mark.parametrize("row", ROWS.values(), ids=CHANNELS)
def test_row_has_a_shape_that_takes_its_example_before_and_after_it_is_normalised(row: Channel) -> None:
    assert row.shape in SHAPES
    assert row.shape.pattern.fullmatch(row.example)
    assert row.shape.pattern.fullmatch(NORMAL_FORMS[row.name](row.example))


def test_devices_are_of_a_channel_by_their_platform_and_every_channel_has_a_vendor() -> None:
    assert [row.name for row in ROWS.values() if not row.one_address] == ["push", "webhook"]
    assert sum(len(row.platforms) for row in ROWS.values()) == len(CHANNEL_OF_PLATFORM), "a platform of two channels"
    assert {vendor.channel for vendor in VENDORS} == set(CHANNELS)
    assert set(PARTS) == CONTENT_PARTS and set(PARTS) >= LINE_PARTS | OBJECT_PARTS


def test_every_channel_has_a_sender_in_the_compose_file_and_among_the_scraped() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    scraped = (ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8")
    for channel in CHANNELS:
        assert services[f"sender-{channel}"]["command"] == ["run", "sender", "--channel", channel]
        assert f"sender-{channel}" in scraped


# -- a fourth row -----------------------------------------------------------------------------------------------------

_ROW = """
        Channel(
            name="chat", shape=PHONE_NUMBER, given_as="phone", stored_as="phone", one_address=True, parts=("text",),
            needs_one_of=("text",), blank_parts=(), meant_by=("text",), meant_alone=False,
            bounce_reason="invalid_number", suppressible=True, example="+4915112345678",
        ),
"""
# In a process of its own: the rows are read where modules are imported.
_READ = """
import json, sys, types
import schemas
module = types.ModuleType("schemas.channels")
sys.modules["schemas.channels"] = schemas.channels = module
exec(compile(sys.stdin.read(), "channels.py", "exec"), module.__dict__)

from typer.testing import CliRunner
from api.openapi import MODELS
from producers.reference.inputs import NewSuppression
from producers.reference.inputs import Preferences
from console.cli import app
from console.commands.doctor import consumer_groups
from local.supervisor.layout import ROLES
from processors.router.policy import target, may_send, targets
from processors.router.rendering import literal_channels, literal_parts
from producers.addresses import NORMAL_FORMS
from producers.notification import Content, Notification, To
from producers.reference.feedback import bounced_address
from replay.plan import StoredMessage, decide_request, RecordPosition
from replay.where import MESSAGE_COLUMNS, compile_where
from runtime.settings import ProviderSettings
from runtime.status import message_status
from runtime.templates.check import check_template
from schemas.asyncapi import document
from schemas.codec import codec
from schemas.topics import catalogue
from senders.outcomes import Attempt, from_result
from tests.support.made import NOW, RECORD, message
from vendors.sender import ErrorClass, Rejected

number = "+4915112345678"
chat = message(channel="chat", address=number, user_id="u1")
profile = {"phone": number, "email": None, "devices": [], "channels": {}, "categories": {}}
bounced = from_result(
    Attempt(chat, RECORD, NOW, "p", 1), Rejected(ErrorClass.PERMANENT_RECIPIENT, "no"), jitter=0.5, max_retries=3
)
status = codec("DeliveryStatus").decode(bounced.records[0].value)
request = {"notification_id": chat["notification_id"], "tenant": "t", "accepted_at": NOW, "user_id": "u1"}
sent, failed = (StoredMessage(chat["notification_id"], str(n), "chat", state) for n, state in enumerate(("sent", "failed")))
print(json.dumps({
    "topics": [name for name in catalogue() if ".chat." in name],
    "asyncapi": [name for name in document()["channels"] if ".chat." in name],
    "settings": ProviderSettings(name="a", channel="chat", kind="k").channel,
    "addresses": NORMAL_FORMS["chat"]("+49 151 12345678"),
    "to": [found["channel"] for found in To(phone=number).addresses()],
    "content": Content(text="hi").channels(),
    "channels": Notification.model_validate(
        {"to": {"user_id": "u"}, "content": {"text": "hi"}, "channels": ["chat"]}
    ).channels,
    "openapi": [m.__name__ for m in MODELS if '"chat"' in json.dumps(m.model_json_schema())],
    "preferences": Preferences.model_validate({"channels": {"chat": False}}).channels,
    "suppression": NewSuppression.model_validate({"channel": "chat", "address": number}).stored().channel,
    "targets": [target.address for target in targets({}, profile, "chat")],
    "malformed": may_send("t", "normal", "c", profile, target("chat", "no number"), {}, NOW).reason,
    "meant": literal_channels({"text": "hi"}),
    "parts": literal_parts("chat", {"text": "hi"}).text,
    "template": check_template({"chat": {"text": "{{ order }}"}}, {}),
    "bounce": [status["state"], status["reason"]],
    "feedback": bounced_address(status) is not None,
    "where": list(compile_where("channel = 'chat'", MESSAGE_COLUMNS, NOW).parameters.values()),
    "replay": [
        decision.name
        for _, decision in decide_request(
            RecordPosition("t", 0, 0), request, [sent, failed], resend=False, filtered=False, now=NOW
        )[1]
    ],
    "doctor": [group for group in consumer_groups() if group.endswith("chat")],
    "local": list(ROLES["sender-chat"]),
    "command": "chat" in CliRunner().invoke(app, ["run", "sender", "--help"], env={"COLUMNS": "120"}).output,
}))
"""
_TOPICS = [
    f"notify.{kind}.chat.{lane}.v1" for kind in ("dispatch", "ledger") for lane in ("critical", "normal", "bulk")
]


@pytest.fixture(scope="module")
def readings() -> dict[str, Any]:
    """What each reader makes of the rows and one more."""
    rows = (ROOT / "schemas/channels.py").read_text("utf-8")
    assert rows.count("\n    )\n}\n") == 1, "the end of the table is not found"
    done = subprocess.run(
        [sys.executable, "-c", _READ],
        input=rows.replace("\n    )\n}\n", f"{_ROW}    )\n}}\n"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("reader", "expected"),
    [
        ("topics", _TOPICS),
        ("asyncapi", _TOPICS),
        ("settings", "chat"),
        ("addresses", "+4915112345678"),
        ("to", ["sms", "chat"]),
        ("content", ["email", "sms", "webhook", "chat"]),
        ("channels", ["chat"]),
        ("openapi", ["Notification", "Preferences", "NewSuppression", "NewWebhook", "ChangedWebhook"]),
        ("preferences", {"chat": False}),
        ("suppression", "chat"),
        ("targets", ["+4915112345678"]),
        ("malformed", "invalid_address"),
        ("meant", ["sms", "chat"]),
        ("parts", "hi"),
        ("template", ["order"]),
        ("bounce", ["bounced", "invalid_number"]),
        ("feedback", True),
        ("where", ["chat"]),
        ("replay", ["SENT", "SENT"]),
        ("doctor", ["heliograph-sender-chat"]),
        ("local", ["sender", "--channel", "chat"]),
        ("command", True),
    ],
)
def test_fourth_row_reaches(readings: dict[str, Any], reader: str, expected: object) -> None:
    assert readings[reader] == expected


# -- settings ---------------------------------------------------------------------------------------------------------


def test_provider_of_a_channel_that_no_role_serves_is_refused_when_settings_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "heliograph.toml"
    file.write_text('[[providers]]\nname = "hook"\nchannel = "fax"\nkind = "smtp"\n')
    monkeypatch.setenv("HELIOGRAPH_CONFIG", str(file))
    with pytest.raises(SettingsError, match=r"providers\.0\.channel .* the channels are email, sms, push, webhook$"):
        load_settings()

"""What strangers publish, in four clients, is read and decided like our own, with the same key and partition."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processors.router.enrich import RouterViews, enrich_batch
from producers.publisher import Publisher
from runtime import ids
from runtime.records import ConsumerRecord
from schemas.codec import codec
from schemas.topics import STATUS, requests_topic
from tests.integration.conftest import Broker
from tests.integration.reference_stack import read_topic
from tests.support.apicurio import NOT_ASKED_FOR, running_apicurio, wanted
from tests.support.toolchains import go_program, node_project, tool

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "publish"
TOPIC = requests_topic("normal")
DATA = {"order": "Ä1", "name": "Zoë"}


def python_library() -> list[str]:
    return [sys.executable, str(EXAMPLES / "python_library" / "publish.py")]


def python_confluent() -> list[str]:
    return [sys.executable, str(EXAMPLES / "python_confluent" / "publish.py")]


def node() -> list[str]:
    return [tool("node"), str(node_project(EXAMPLES / "node") / "publish.mjs")]


def go() -> list[str]:
    return [str(go_program(EXAMPLES / "go"))]


def publish(command: list[str], broker: Broker, user: str, **env: str) -> ConsumerRecord:
    """Run an example; the record that it published."""
    done = subprocess.run(
        [*command, broker.settings.bootstrap_servers, user, "order-shipped", json.dumps(DATA)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "SCHEMAS": str(ROOT / "schemas"), **env},
    )
    assert done.returncode == 0, done.stderr
    return _record_of(broker, done.stdout.strip())


def _record_of(broker: Broker, notification_id: str) -> ConsumerRecord:
    records = read_topic(broker.settings, TOPIC)
    (found,) = [r for r in records if notification_id.encode() in (r.value or b"")]
    return found


class View(dict[str, Any]):
    def raw(self, key: str) -> bytes | None:
        return codec("Template").encode(self[key]) if key in self else None


def _views(user: str) -> RouterViews:
    email = json.dumps({"email": {"subject": "{{ order }} for {{ name }}", "text": "Hello"}}).encode()
    template = {
        "tenant": "default",
        "template_id": "order-shipped",
        "version": 1,
        "category": "orders",
        "channels": email,
        "locales": b"{}",
        "variables": ["order"],
        "updated_at": 1,
    }
    profile = {
        "tenant": "default",
        "user_id": user,
        "email": "zoe@example.org",
        "devices": [],
        "channels": {},
        "categories": {},
        "version": 1,
        "updated_at": 1,
    }
    return RouterViews(
        recipients=View(
            {f"default:{user}": codec("RecipientProfile").decode(codec("RecipientProfile").encode(profile))}
        ),
        templates=View({"default:order-shipped": template}),
        suppressions=View(),
        cancellations=View(),
    )


@pytest.mark.parametrize("example", [python_library, python_confluent, node, go], ids=lambda each: each.__name__)
def test_published_request_is_read_decided_and_keyed_like_our_own(
    broker: Broker, example: Callable[[], list[str]]
) -> None:
    command = example()
    for user in ("u1", "zoë", "somebody-else", "4711"):  # several, so that partitions agree by more than chance
        theirs = publish(command, broker, user)
        with Publisher(broker.settings, tenant="default") as publisher:
            ours = _record_of(
                broker, publisher.publish({"to": {"user_id": user}, "template": {"id": "order-shipped"}, "data": DATA})
            )
        assert (theirs.key, theirs.partition) == (ours.key, ours.partition)

        request = codec("NotificationRequest").decode(theirs.value)
        assert ids.accepted_at(request["notification_id"]) == request["accepted_at"]
        assert abs(request["accepted_at"] - theirs.timestamp) < 60_000
        assert json.loads(request["data"]) == DATA
        expected = codec("NotificationRequest").decode(ours.value)
        own = {"notification_id", "accepted_at", "source", "data"}
        assert {k: v for k, v in request.items() if k not in own} == {k: v for k, v in expected.items() if k not in own}

        out = enrich_batch([theirs], _views(user), theirs.timestamp)
        (message,) = [
            codec("ChannelMessage").decode(r.value) for r in out if r.topic == "notify.dispatch.email.normal.v1"
        ]
        assert (message["subject"], message["address"]) == ("Ä1 for Zoë", "zoe@example.org")
        assert {codec("DeliveryStatus").decode(r.value)["state"] for r in out if r.topic == STATUS} == {"routed"}


def test_kcat_reads_keys_and_framed_values(broker: Broker) -> None:
    kcat = tool("kcat")
    theirs = publish(python_library(), broker, "kcat-reader")
    read = subprocess.run(
        [kcat, "-C", "-b", broker.settings.bootstrap_servers, "-t", TOPIC, "-o", "beginning", "-e", "-q", "-J"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=True,
    )
    records = [json.loads(line) for line in read.stdout.splitlines()]
    assert (theirs.partition, theirs.offset, "default:kcat-reader") in {
        (r["partition"], r["offset"], r["key"]) for r in records
    }


@pytest.mark.registry
@pytest.mark.skipif(not wanted(), reason=NOT_ASKED_FOR)
def test_request_with_a_registrys_id_is_read_by_a_role_that_uses_the_registry(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_apicurio(tmp_path_factory.mktemp("apicurio")) as url:
        registry = {"HELIOGRAPH_SCHEMA_REGISTRY__URL": url}
        register = [sys.executable, "-m", "console.cli", "schemas", "register"]
        subprocess.run(register, env={**os.environ, **registry}, check=True, capture_output=True)
        read = "import sys; from runtime.settings import load_settings; from runtime.registry import use_wire_ids, wire_ids; from schemas.codec import codec; use_wire_ids(load_settings()); sys.stdout.write(codec('NotificationRequest').decode(sys.stdin.buffer.read())['user_id'])"
        theirs = publish(python_confluent(), broker, "by-registry", SCHEMA_REGISTRY=url)
        done = subprocess.run(
            [sys.executable, "-c", read],
            input=theirs.value,
            env={**os.environ, **registry},
            check=True,
            capture_output=True,
            cwd=ROOT,
        )
        assert done.stdout == b"by-registry"


def test_role_whose_registry_is_not_there_does_not_start_with_other_ids(broker: Broker) -> None:
    role = broker.run("timers", HELIOGRAPH_SCHEMA_REGISTRY__URL="http://127.0.0.1:1")
    assert role.wait(60) == 1
    assert "the Schema Registry cannot be reached" in (broker.directory / "timers.log").read_text("utf-8")

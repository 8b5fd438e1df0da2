"""Views on a real topic, in memory and on disk: catching up, tailing, restarting, starting over."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import SettingsError
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.stores import MemoryStore, RocksStore, Store
from runtime.views import MAX_POSITION_AGE_MS, View
from schemas.codec import codec, iter_examples
from schemas.topics import RECIPIENTS
from tests.integration.conftest import Broker, until

pytestmark = pytest.mark.kafka
PROFILE = next(record for _, _, name, record in iter_examples() if name == "RecipientProfile")


def put(key: str, **fields: Any) -> ProducerRecord:
    return ProducerRecord(RECIPIENTS, key.encode(), codec("RecipientProfile").encode({**PROFILE, **fields}))


class Counting(View[Any]):
    """A view that counts what it reads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.read = 0
        super().__init__(*args, **kwargs)

    def apply(self, records: Any) -> list[ProducerRecord]:
        self.read += len(records)
        return super().apply(records)


@pytest.fixture(params=["memory", "rocksdb"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def store(backend: str, path: Path) -> Store:
    return MemoryStore() if backend == "memory" else RocksStore(path)


def test_view_catches_up_tails_and_forgets_tombstones(broker: Broker, backend: str, tmp_path: Path) -> None:
    run = uuid.uuid4().hex
    producer = Producer(broker.settings, client_id="test")
    producer.publish([put(f"{run}:{n}", version=n) for n in range(100)])
    view = Counting(broker.settings, RECIPIENTS, store=store(backend, tmp_path / "v"))
    view.start()
    until(lambda: view.not_ready() is None, what="caught up")
    assert [(view.get(f"{run}:{n}") or {}).get("version") for n in range(100)] == list(range(100))
    producer.publish([put(f"{run}:1", version=500), ProducerRecord(RECIPIENTS, f"{run}:2".encode(), None)])
    until(lambda: (view.get(f"{run}:1") or {}).get("version") == 500 and f"{run}:2" not in view, 5, "the change")
    view.close()
    producer.close()


def test_view_on_disk_reads_on_where_it_was_and_starts_over_when_that_is_too_long_ago(
    broker: Broker, tmp_path: Path
) -> None:
    run = uuid.uuid4().hex
    producer = Producer(broker.settings, client_id="test")
    producer.publish([put(f"{run}:{n}") for n in range(200)])

    def restarted(now: int = 1_000) -> Counting:
        view = Counting(broker.settings, RECIPIENTS, store=RocksStore(tmp_path / "v"), clock=lambda: now)
        view.start()
        until(lambda: view.not_ready() is None, what="caught up")
        view.close()
        return view

    assert restarted().read >= 200
    producer.publish([put(f"{run}:new")])
    assert restarted().read == 1
    assert restarted(1_000 + MAX_POSITION_AGE_MS + 1).read >= 201
    producer.close()


def test_directory_of_another_process_is_a_clear_error(tmp_path: Path) -> None:
    first = RocksStore(tmp_path / "v")
    with pytest.raises(SettingsError, match=r"views\.directory"):
        RocksStore(tmp_path / "v")
    first.close()

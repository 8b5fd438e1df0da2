"""The producer: idempotent, acks=all; reports records that Kafka refuses for their size apart from other failures.

May import confluent_kafka. Never: Avro, what a record is for.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as _Producer

from runtime.errors import PublishError, TooLargeError
from runtime.kafka.client import EXIT_FATAL, client_config, log
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from schemas.topics import MAX_DEAD_LETTER_BYTES

_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})


def _die(error: KafkaError) -> None:
    if error.fatal():
        log.critical("fatal client error, exiting: %s", error.str())
        os._exit(EXIT_FATAL)


class _Pending:
    """Counts the acknowledgements of one batch; one callback per batch, not a future per record."""

    __slots__ = ("_done", "_left", "error", "too_large")
    error: str | None

    def __init__(self, count: int, done: Callable[[_Pending], None]) -> None:
        self._left = count
        self._done = done
        self.error = None
        self.too_large: set[tuple[str, bytes | None, bytes | None]] = set()
        """(topic, key, value) of what was refused for its size."""

    def acknowledge(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            if error.code() in _TOO_LARGE:
                self.too_large.add((message.topic(), message.key(), message.value()))
            else:
                self.error = f"a record of {message.topic()}: {error.str()}"
        self._ended()

    def refuse(self, record: ProducerRecord) -> None:
        """The client itself would not take it."""
        self.too_large.add((record.topic, record.key, record.value))
        self._ended()

    def _ended(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done(self)

    def refused(self, records: Sequence[ProducerRecord]) -> list[ProducerRecord]:
        """Those of the records that were refused for their size. Raises PublishError when others are not acknowledged."""
        if self.error is not None:
            raise PublishError(f"the broker did not acknowledge {self.error}; publish again with the same id")
        return [r for r in records if (r.topic, r.key, r.value) in self.too_large] if self.too_large else []


class Publishing:
    """Records on their way to the broker."""

    __slots__ = ("_acknowledged", "_pending", "_producer", "_records")

    def __init__(self, producer: Producer, records: Sequence[ProducerRecord]) -> None:
        self._producer, self._records = producer, records
        self._pending: _Pending | None = None
        self._acknowledged = threading.Event()
        if records:
            producer._enqueue(records, self._done)

    def _done(self, pending: _Pending) -> None:
        self._pending = pending
        self._acknowledged.set()

    def wait(self) -> None:
        """Block until every record is acknowledged; raises as `publish` does."""
        if not self._records:
            return
        if not self._acknowledged.wait(self._producer._timeout_s + 5):
            raise PublishError("the broker did not answer in time; publish again with the same id")
        assert self._pending is not None, "it is set with the event"
        refused = self._pending.refused(self._records)
        if len(self._records) > 1:
            # The broker refuses a batch as a whole: which of its records is too large shows when each goes alone.
            refused = [record for record in refused if self._is_refused(record)]
        _raise_refused(refused)

    def _is_refused(self, record: ProducerRecord) -> bool:
        try:
            self._producer.publish([record])
        except TooLargeError:
            return True
        return False


class Producer:
    """Idempotent, acks=all. A record counts as published only when the broker has acknowledged it."""

    def __init__(
        self, settings: KafkaSettings, *, client_id: str, linger_ms: float = 5, delivery_timeout_s: float = 60
    ) -> None:
        self._producer = _Producer(
            {
                **client_config(settings, client_id),
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "linger.ms": linger_ms,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 200_000,
                "message.max.bytes": MAX_DEAD_LETTER_BYTES,  # the largest of our records; for the others the broker has a limit
                "delivery.timeout.ms": int(delivery_timeout_s * 1_000),
                # Less than the delivery timeout, so that a request lost with a broker is sent again in time.
                "request.timeout.ms": int(min(10.0, delivery_timeout_s) * 1_000),
                "error_cb": _die,
            }
        )
        self._timeout_s = delivery_timeout_s
        self._lock = threading.Lock()  # records of one batch stay together and in order
        self._closed = False
        self._poller = threading.Thread(target=self._poll, name=f"{client_id}-poll", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._closed:
            self._producer.poll(0.2)

    def _enqueue(self, records: Sequence[ProducerRecord], done: Callable[[_Pending], None]) -> None:
        pending = _Pending(len(records), done)
        with self._lock:
            for record in records:
                while True:
                    try:
                        self._producer.produce(
                            record.topic,
                            value=record.value,
                            key=record.key,
                            partition=record.partition,
                            headers=list(record.headers) or None,
                            on_delivery=pending.acknowledge,
                        )
                        break
                    except BufferError:
                        self._producer.poll(0.05)
                    except KafkaException as exc:
                        if exc.args[0].code() not in _TOO_LARGE:
                            raise PublishError(f"Kafka refused a record: {exc.args[0].str()}") from exc
                        pending.refuse(record)
                        break

    def publish(self, records: Sequence[ProducerRecord]) -> None:
        """Block until every record is acknowledged.

        Raises PublishError when one is not, and TooLargeError when all are but those that Kafka refuses for their size.
        """
        self.start(records).wait()

    def start(self, records: Sequence[ProducerRecord]) -> Publishing:
        """Begin to publish; `wait` of what is returned does the rest of `publish`. Raises PublishError."""
        return Publishing(self, records)

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Wait until every record is acknowledged; raises as `publish` does."""
        refused = await self._send(records)
        if len(records) > 1:
            refused = [record for record in refused if await self._send([record])]
        _raise_refused(refused)

    async def _send(self, records: Sequence[ProducerRecord]) -> list[ProducerRecord]:
        if not records:
            return []
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[_Pending] = loop.create_future()

        def settle(pending: _Pending) -> None:
            if not acknowledged.done():  # the waiter may have been cancelled
                acknowledged.set_result(pending)

        def done(pending: _Pending) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, pending)

        self._enqueue(records, done)
        return (await acknowledged).refused(records)

    def close(self, timeout_s: float = 10) -> None:
        """Flush what is queued and stop."""
        self._producer.flush(timeout_s)
        self._closed = True
        self._poller.join(1)


def _raise_refused(records: Sequence[ProducerRecord]) -> None:
    if records:
        first = records[0]
        size = len(first.key or b"") + len(first.value or b"")
        more = f" and {len(records) - 1} more" if len(records) > 1 else ""
        raise TooLargeError(
            f"Kafka refuses a record of {first.topic} for its {size:,} bytes{more}: compare the topic's max.message.bytes "
            "with `heliograph topics diff`",
            records,
        )

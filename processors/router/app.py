"""The Faust app of one lane's router: settings under which no event was lost, and changes to the library's behaviour.

    faster      `wait_first` per message halves the throughput: the drain takes messages directly while that cannot block
    committed   the library reads records of aborted transactions unless it writes in one itself
    tolerant    one header name that is not UTF-8 would end the consumer permanently (tolerant.py)

Settings and drain come from measurements on a real broker (docs/architecture.md, "Router"): stock settings lost
acknowledged events on SIGTERM. All of it leans on private API, so the version is pinned exactly and a test fails when
the library's own code changes.
Only this module and agents.py import faust. Never: a decision.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import faust
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport

from processors.groups import router_group
from processors.router import tolerant
from runtime.kafka.consumer import HEARTBEAT_MS
from runtime.settings import Settings


class CommittedThread(AIOKafkaConsumerThread):
    """Reads what every other reader of the topic reads: nothing of a transaction that is open or was aborted."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        # The library asks for read_committed where it writes in transactions itself, and nowhere else.
        consumer: Any = self.consumer
        writes = consumer.in_transaction
        consumer.in_transaction = True
        try:
            return super()._create_worker_consumer(transport)
        finally:
            consumer.in_transaction = writes


class DrainingConsumer(Consumer):
    """Hands messages over directly while that cannot block, and the library's careful way otherwise."""

    def _new_consumer_thread(self) -> Any:
        return CommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        read_offset = self._read_offset
        acks_enabled_for = self.app.topics.acks_enabled_for
        queues = [channel.queue for channel in self.app.topics]
        flow = self.app.flow_control
        since_yield = 0
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                messages = self.getmany(timeout=1.0)
                await self.sleep(0)  # getmany may never release the loop
                if self.should_stop:
                    continue
                async for tp, message in messages:
                    since_yield += 1
                    if since_yield > 100:
                        await asyncio.sleep(0)
                        since_yield = 0
                    offset = message.offset
                    read = read_offset[tp]
                    if read is not None and offset < read:
                        continue
                    # Not `if read`, as the library has it: what follows offset 0 may be a transaction's, and never come.
                    if read is not None and offset - read > 1 and acks_enabled_for(message.topic):
                        await self._add_gap(tp, read + 1, offset)
                    if self.suspend_flow.is_set():
                        break  # a rebalance: what is left is read again from the committed offset
                    if flow.is_active() and not any(queue.full() for queue in queues):
                        await self.callback(message)
                    else:
                        await self.wait_first(self.callback(message), self.suspend_flow.wait())
                        if self.suspend_flow.is_set():
                            break
                    read_offset[tp] = offset
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise


class DrainingTransport(Transport):
    """The aiokafka transport with our consumer."""

    Consumer = DrainingConsumer


def create_app(settings: Settings, lane: str) -> faust.App:
    """A Faust app that never declares a topic, holds no table and serves no web page."""
    tolerant.install()
    app = faust.App(
        router_group(lane),
        broker=f"kafka://{settings.kafka.bootstrap_servers.replace(',', ';kafka://')}",
        value_serializer="raw",
        key_serializer="raw",
        store="memory://",
        datadir=str(Path(tempfile.gettempdir()) / f"heliograph-{os.getuid()}"),  # unused, but it insists on making one
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        cython_optimizations=True,
        stream_wait_empty=False,
        stream_buffer_maxsize=8192,
        stream_recovery_delay=0,
        broker_max_poll_records=2000,
        broker_session_timeout=10,
        broker_heartbeat_interval=HEARTBEAT_MS / 1_000,
        broker_commit_interval=1,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
    )
    app.transport = DrainingTransport(app.conf.broker_consumer, app)
    return app

"""What telling endpoints costs: `python -m bench.hooks [--facts N] [--endpoints N] [--repeat N]`.

The hooks stage, as `heliograph run hooks` runs it, reads facts out of a Kafka of its own and posts them, signed, to a sink in a process
of its own that takes everything; beside it a bare aiohttp loop, on the same event loop and as many at once, that signs and posts bodies
made beforehand to the same sink. Rounds are interleaved. Prints medians: requests a second, CPU µs a request, and both as a share of
the bare loop's.
May import senders.hooks. Never: an assertion.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import uvloop
from pydantic import SecretStr

from bench.broker import broker
from bench.e2e import listens
from bench.providers import serve
from console.commands.output import show
from local.ports import LOOPBACK, PortBook
from runtime import ids
from runtime.clock import system_clock
from runtime.kafka.consumer import Consumer
from runtime.kafka.producer import Producer
from runtime.process import Context
from runtime.sealing import Sealer
from runtime.settings import HookSettings, KafkaSettings, OutboundSettings, Settings
from runtime.status import fact, status_record
from schemas.events import DeliveryStatus, Endpoint
from senders.hooks.endpoint import MAX_IN_FLIGHT
from senders.hooks.facts import body_of
from senders.hooks.posting import HookClient
from senders.hooks.reading import Reader
from senders.hooks.stage import GROUP, Hooks
from vendors.webhook.signature import Signer, new_secret

KEY = SecretStr("a-key-of-the-benchmark-long-enough")
TENANT = "bench"


def facts(count: int) -> list[DeliveryStatus]:
    """As the senders write them."""
    now = system_clock()
    made = []
    for number in range(count):
        nid = ids.notification_id(now, TENANT, str(number))
        message_id = ids.message_id(nid, "email", "x")
        about: Any = {
            "message_id": message_id,
            "channel": "email",
            "category": "orders",
            "template_id": "order-shipped",
            "template_version": 7,
            "correlation_id": f"c-{number}",
            "provider": "mail-1",
            "recipient": f"u{number}",
            "latency_ms": 12,
        }
        made.append(fact(ids.event_id(message_id, "sent", 1), nid, TENANT, "normal", "sent", now, about, attempt=1))
    return made


def endpoint(url: str, sealer: Sealer) -> Endpoint:
    """One that wants everything."""
    endpoint_id = str(uuid4())
    return {
        "endpoint_id": endpoint_id,
        "tenant": TENANT,
        "url": f"{url}/{endpoint_id}",
        "states": [],
        "channels": [],
        "categories": [],
        "enabled": True,
        "secret": sealer.seal(new_secret(), f"{TENANT}:{endpoint_id}"),
        "previous_secret": None,
        "previous_until": None,
        "replays": 0,
        "since": 0,
        "version": 1,
        "updated_at": system_clock(),
    }


async def ours(stage: Hooks, sealer: Sealer, url: str, count: int, endpoints: int) -> tuple[float, float]:
    """(requests a second, CPU µs a request) of new endpoints that are told everything."""
    records = [endpoint(url, sealer) for _ in range(endpoints)]
    began, cpu = time.perf_counter(), time.process_time()
    for record in records:
        stage.change(record["endpoint_id"], record)
    mine = [stage.endpoints[record["endpoint_id"]] for record in records]
    while sum(each.delivered for each in mine) < count * endpoints:  # noqa: ASYNC110 nothing says it
        await asyncio.sleep(0.005)
    took, used = time.perf_counter() - began, time.process_time() - cpu
    for record in records:
        stage.change(record["endpoint_id"], None)
    return count * endpoints / took, used / (count * endpoints) * 1e6


async def bare(url: str, told: Sequence[DeliveryStatus], endpoints: int) -> tuple[float, float]:
    """The same number of requests by a loop that has the bodies already."""
    signer = Signer([new_secret()])
    bodies = [body_of("message.sent", each["occurred_at"], dict(each)) for each in told] * endpoints
    numbers = iter(range(len(bodies)))
    headers = {"Content-Type": "application/json", "User-Agent": "bare"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            for number in numbers:
                signed = signer.headers(str(uuid4()), system_clock(), bodies[number])
                async with session.post(url, data=bodies[number], headers={**headers, **signed}) as answer:
                    await answer.read()
                    assert answer.status == 200

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one() for _ in range(MAX_IN_FLIGHT * endpoints)))
        return len(bodies) / (time.perf_counter() - began), (time.process_time() - cpu) / len(bodies) * 1e6


async def measure(kafka: KafkaSettings, port: int, count: int, endpoints: int, repeat: int) -> dict[str, Any]:
    """A row of the table."""
    url, outbound = f"http://{LOOPBACK}:{port}", OutboundSettings(allow=(LOOPBACK,))
    told = facts(count)
    producer = Producer(kafka, client_id="bench")
    await producer.send([status_record(each) for each in told])
    context = Context("hooks", Settings(kafka=kafka, hooks=HookSettings(key=KEY), outbound=outbound))
    client, sealer = HookClient(outbound), Sealer(KEY)
    client.start()
    stage = Hooks(context, Consumer(kafka, client_id="hooks", group=GROUP), Reader(kafka), producer, client, sealer)
    running = asyncio.create_task(stage.run())
    while stage.not_ready() is not None:  # noqa: ASYNC110 nothing says it
        await asyncio.sleep(0.05)
    await ours(stage, sealer, url, count, 1)
    rounds = [
        (await ours(stage, sealer, url, count, endpoints), await bare(url, told, endpoints)) for _ in range(repeat)
    ]
    context.stopping.set()
    await running
    await client.close()
    producer.close()
    return {
        "endpoints": endpoints,
        "per_second": round(statistics.median(mine[0] for mine, _ in rounds)),
        "cpu_us": round(statistics.median(mine[1] for mine, _ in rounds)),
        "bare_per_second": round(statistics.median(other[0] for _, other in rounds)),
        "bare_cpu_us": round(statistics.median(other[1] for _, other in rounds)),
        "of_bare": round(statistics.median(mine[0] / other[0] for mine, other in rounds), 2),
        "of_bare_by_cpu": round(statistics.median(other[1] / mine[1] for mine, other in rounds), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hooks", description=__doc__)
    parser.add_argument("--facts", type=int, default=4_000)
    parser.add_argument("--endpoints", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve("webhook", options.serve))
        return
    book = PortBook()
    port = book.reserve("sink")
    with (
        tempfile.TemporaryDirectory() as name,
        broker(Path(name)) as kafka,
        subprocess.Popen([sys.executable, "-m", "bench.hooks", "--serve", str(port)]) as sink,
    ):
        try:
            while not listens(port):
                time.sleep(0.05)
            row = uvloop.run(measure(kafka, port, options.facts, options.endpoints, options.repeat))
        finally:
            sink.terminate()
            book.close()
    show([row], as_json=False)


if __name__ == "__main__":
    main()

"""The same routing as a Celery task with Redis as the broker, and the program that enqueues requests.

    celery --app bench.rivals.celery_app worker --pool solo --queues requests
    python -m bench.rivals.celery_app FILE COUNT      the first values of a file of base64 lines

Every message becomes a task of its channel's queue, every status one of the queue `status`; nothing takes them from there.
BENCH_REDIS is the URL, BENCH_USERS how many recipients there are.
"""

from __future__ import annotations

import base64
import os
import sys
import time
from functools import cache
from itertools import islice
from pathlib import Path

from celery import Celery

from bench.data import views
from processors.router.enrich import RouterViews, enrich_batch
from runtime.records import ConsumerRecord
from schemas.topics import STATUS, requests_topic

app = Celery("bench", broker=os.environ["BENCH_REDIS"])
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=4)


@cache
def reference() -> RouterViews:
    return views(int(os.environ["BENCH_USERS"]))


@app.task(name="route")  # type: ignore[untyped-decorator]
def route(request: str) -> None:
    record = ConsumerRecord(requests_topic("normal"), 0, 0, 0, None, base64.b64decode(request), [])
    for out in enrich_batch([record], reference(), int(time.time() * 1000)):
        value = base64.b64encode(out.value or b"").decode()
        send.apply_async((value,), queue="status" if out.topic == STATUS else "messages")


@app.task(name="send")  # type: ignore[untyped-decorator]
def send(message: str) -> None:
    """What a channel's worker would run."""


def main(path: str, count: int) -> None:
    with Path(path).open() as lines:
        for line in islice(lines, count):
            route.apply_async((line.strip(),), queue="requests")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

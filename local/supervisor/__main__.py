"""The process that keeps a local stack alive: infrastructure first, then initialisation, then the roles.

`python -m local.supervisor --state-dir DIR` runs until SIGTERM or SIGINT. A child that dies is started again
after a short wait, on the same ports; a healthy child is never touched, because every role retries by itself. Roles end
before the broker does, else their group memberships outlive them. Files in DIR:

    endpoints.json    where everything listens (public contract); exists only while the stack is up
    supervisor.json   phase, reason of a failure, and every child's pid with its start time, to recognise leftovers
    supervisor.lock   held while the supervisor lives
    secrets.json      made at the first start, kept for the next
    heliograph.toml   the settings file of every role
    logs/ data/

May import local, runtime.settings, runtime.errors. Never: what an initialiser does, and anything
a role needs to know but its settings.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from local.ports import PortBook
from local.supervisor.layout import PORT_NAMES, Stack, StackOptions
from local.supervisor.state import StateFiles, end_leftovers
from runtime.errors import HeliographError

_log = logging.getLogger(__name__)


def serve(options: StackOptions) -> int:
    """Lock the state directory and run its stack. The exit code: 0 after an orderly stop."""
    files = StateFiles(options.state_dir)
    handle = files.take_lock()
    book = PortBook()
    try:
        leftovers = end_leftovers(files)
        if leftovers:
            _log.warning("ended what an earlier stack left behind: %s", ", ".join(leftovers))
        return Stack(options, book).run()
    except HeliographError as exc:
        # `up` waits for this file, not for the exit code: it may be another process than the one that asked for the start
        files.write_status("failed", str(exc), {})
        raise
    finally:
        book.close()
        os.close(handle)


def parse_arguments(arguments: Sequence[str] | None) -> StackOptions:
    """The command line of the supervisor."""
    parser = argparse.ArgumentParser(prog="python -m local.supervisor", description="Keep a local stack alive.")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--initialiser", action="append", metavar="MODULE:FUNCTION")
    for name in PORT_NAMES:
        parser.add_argument(f"--{name}-port", type=int)
    parser.add_argument("--failover", action="store_true")
    parser.add_argument("--processes", action="append", default=[], metavar="ROLE=N")
    options = parser.parse_args(arguments)
    chosen = {name: getattr(options, f"{name}_port") for name in PORT_NAMES}
    return StackOptions(
        state_dir=options.state_dir.absolute(),
        config=options.config.absolute() if options.config else None,
        ports={name: port for name, port in chosen.items() if port is not None},
        initialisers=tuple(options.initialiser) if options.initialiser else None,
        failover=options.failover,
        processes={role: int(count) for role, _, count in (text.partition("=") for text in options.processes)},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stack until SIGTERM; a failure is one line in supervisor.json and on stderr."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        return serve(options)
    except HeliographError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    # at once: a download that is under way in a thread would hold up the end of a stack that was stopped early
    os._exit(exit_code)

"""A client of live status as small as a browser's: it joins what it is sent by id, and goes on from its last place."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Sent(NamedTuple):
    """One event."""

    kind: str
    id: str | None
    data: Any


def events_of(lines: Iterator[bytes]) -> Iterator[Sent]:
    """The events of a stream, and those without a kind that only say where it is."""
    kind, place, data = "", None, ""
    for raw in lines:
        line = raw.decode().rstrip("\n")
        name, _, value = line.partition(": ")
        if line == "":
            if kind or place is not None:
                yield Sent(kind, place, json.loads(data) if data else None)
            kind, place, data = "", None, ""
        elif name == "event":
            kind = value
        elif name == "id":
            place = value
        elif name == "data":
            data = value


@dataclass
class Watcher:
    """Reads a stream on a thread of its own until it is over, and comes back to any of its addresses."""

    address: Callable[[], str]
    """Of the stream, asked anew for each connection."""
    key: str
    sent: list[Sent] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """By event id, those of status events and of snapshots."""
    twice: list[str] = field(default_factory=list)
    """Ids that came in two status events of one connection."""
    last: str | None = None
    connections: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    refused: int | None = None

    def start(self) -> Watcher:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopped.set()

    def kinds(self) -> list[str]:
        return [one.kind for one in self.sent if one.kind]

    def _run(self) -> None:
        while not self.stopped.is_set():
            request = urllib.request.Request(self.address())
            request.add_header("Authorization", f"Bearer {self.key}")
            if self.last is not None:
                request.add_header("Last-Event-ID", self.last)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    if response.status == 204:
                        break
                    self.connections += 1
                    self._read(response)
            except urllib.error.HTTPError as exc:
                if exc.code not in (429, 503):
                    self.refused = exc.code
                    break
            except (OSError, ValueError):  # the process is gone, in the middle of a line perhaps
                pass
            self.stopped.wait(0.1)
        self.over.set()

    def _read(self, response: Any) -> None:
        seen = set[str]()
        for one in events_of(iter(response)):
            self.sent.append(one)
            if one.kind == "snapshot":
                self.facts.update((event["id"], event) for event in one.data["events"])
                seen.update(event["id"] for event in one.data["events"])
            if one.kind == "status":
                event = one.data["event"]
                if event["id"] in seen:
                    self.twice.append(event["id"])
                seen.add(event["id"])
                self.facts[event["id"]] = event
            self.last = one.id if one.id is not None else self.last
            if self.stopped.is_set():
                return

"""The consumers of a sender process: the group of a channel, and how much they fetch.

May import runtime.kafka. Never: what is in a record.
"""

from __future__ import annotations

from runtime.kafka.consumer import Consumer
from runtime.settings import KafkaSettings

MAX_POLL_INTERVAL_MS = 300_000
"""A takeover reads the ledger within one call: see senders/ledger.py, READ_TIMEOUT_S."""
QUEUED_KBYTES = 4_096
"""Records fetched ahead, beside those held: more would only be thrown away when a partition is paused."""
FETCH_BYTES = 131_072
"""Fetched of a partition at a time, as the broker keeps it: mails are compressed to a fifth and less there. One batch may be
more. The client's own default of 1 MiB is 5 MiB and more of mails, of each partition."""
FETCH_AGAIN_MS = 10
"""How long the client lets a full queue be: its default, a second, is a sixth of the mails a second."""


def sender_group(channel: str) -> str:
    """The group of a channel's senders, whatever lanes they serve: two groups over one topic would send everything twice."""
    return f"heliograph-sender-{channel}"


def dispatch_consumer(settings: KafkaSettings, channel: str) -> Consumer:
    """A member of the channel's group; what the settings say of the client goes before what is said here."""
    fetch = {"fetch.message.max.bytes": str(FETCH_BYTES), "fetch.queue.backoff.ms": str(FETCH_AGAIN_MS)}
    return Consumer(
        settings.model_copy(update={"options": {**fetch, **settings.options}}),
        client_id=f"sender-{channel}",
        group=sender_group(channel),
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        queued_kbytes=QUEUED_KBYTES,
    )


def ledger_consumer(settings: KafkaSettings, channel: str) -> Consumer:
    """A reader of the channel's ledger topics, without a group. One is kept: the first read of a fresh one takes a second."""
    return Consumer(settings, client_id=f"ledger-{channel}", group=None, queued_kbytes=65_536, detect_eof=True)

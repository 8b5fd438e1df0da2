"""Record batches written byte by byte, for what no producer of ours would ever write; and transactions that end either way.

A batch is of format 2 (KIP-98) and goes to the broker in a Produce request of our own, so that header names, timestamps,
null keys and codecs are exactly what a test says. The broker numbers the records and checks the checksum, and no more.
May import confluent_kafka and aiokafka's codecs. Never: what a consumer makes of it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aiokafka import codec
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Producer

Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]
CODECS: Mapping[Codec, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (0, lambda data: data),
    "gzip": (1, codec.gzip_encode),
    "snappy": (2, codec.snappy_encode),
    "lz4": (3, codec.lz4_encode),
    "zstd": (4, codec.zstd_encode),
}
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as bytes; header names need be no text."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp: int | None = None
    """Milliseconds; None is now."""


def varint(number: int) -> bytes:
    """A zigzag number."""
    left, out = (number << 1) ^ (number >> 63), bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    out.append(left)
    return bytes(out)


def _bytes(data: bytes | None) -> bytes:
    return varint(-1) if data is None else varint(len(data)) + data


def _record(record: Raw, delta: int, since: int, at: int) -> bytes:
    headers = b"".join(varint(len(name)) + name + _bytes(value) for name, value in record.headers)
    body = b"\0" + varint(at - since) + varint(delta) + _bytes(record.key) + _bytes(record.value)
    body += varint(len(record.headers)) + headers
    return varint(len(body)) + body


def batch(records: Sequence[Raw], compressed: Codec = "none") -> bytes:
    """A RecordBatch of format 2, outside any transaction."""
    now = int(time.time() * 1000)
    times = [now if record.timestamp is None else record.timestamp for record in records]
    attributes, compress = CODECS[compressed]
    payload = compress(
        b"".join(
            _record(record, delta, times[0], at) for delta, (record, at) in enumerate(zip(records, times, strict=True))
        )
    )
    checked = (
        struct.pack(">hiqqqhii", attributes, len(records) - 1, times[0], max(times), -1, -1, -1, len(records)) + payload
    )
    framed = struct.pack(">ibI", 0, 2, calc_crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(framed)) + framed


def produce(servers: str, topic: str, partition: int, records: Sequence[Raw], compressed: Codec = "none") -> int:
    """Write one batch and return the offset of its first record. Raises ValueError with Kafka's error code."""
    host, port = servers.rsplit(":", 1)
    data = batch(records, compressed)
    name = topic.encode()
    # Produce v7 (the first that takes zstd): header (key, version, correlation, client), transactional id, acks, timeout, topic, partition, records.
    body = struct.pack(">hhih", 0, 7, 1, -1) + struct.pack(">hhi", -1, -1, 10_000)
    body += struct.pack(">ih", 1, len(name)) + name + struct.pack(">iii", 1, partition, len(data)) + data
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        size = struct.unpack(">i", _receive(connection, 4))[0]
        answer = _receive(connection, size)
    # correlation, number of topics, name, number of partitions, partition, error, offset
    at = 4 + 4 + 2 + len(name) + 4 + 4
    error, offset = struct.unpack_from(">hq", answer, at)
    if error:
        raise ValueError(f"the broker refuses the batch with error {error}")
    return int(offset)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the broker closed the connection")
        data += more
    return data


def transaction(
    servers: str, topic: str, partition: int, records: Sequence[Raw], *, commit: bool, name: str = "stranger"
) -> None:
    """Write records in a transaction and end it."""
    producer = Producer({"bootstrap.servers": servers, "transactional.id": name})
    producer.init_transactions(_TIMEOUT_S)
    producer.begin_transaction()
    for record in records:
        producer.produce(topic, record.value, record.key, partition)
    producer.flush(_TIMEOUT_S)
    if commit:
        producer.commit_transaction(_TIMEOUT_S)
    else:
        producer.abort_transaction(_TIMEOUT_S)

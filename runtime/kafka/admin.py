"""Topic administration and the checks of a cluster before a role starts.

May import confluent_kafka. Never: which topics there should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer as _Consumer
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from runtime.clock import system_monotonic
from runtime.errors import SettingsError, TopicsError, UnavailableError
from runtime.kafka.client import Partition, client_config, ignore_error
from runtime.kafka.consumer import TO_THE_END_MS
from runtime.settings import KafkaSettings
from schemas.topics import Topic, catalogue


class Admin:
    """Topics of the cluster."""

    def __init__(self, settings: KafkaSettings, timeout_s: float = 15) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        try:
            self._admin = AdminClient({**client_config(settings, "admin"), "error_cb": ignore_error})
        except KafkaException as exc:
            raise SettingsError(f"wrong settings: HELIOGRAPH_KAFKA__OPTIONS: {exc.args[0].str()}") from exc

    def partition_counts(self) -> dict[str, int]:
        """Topic → number of partitions. Raises UnavailableError with the address that was tried."""
        try:
            metadata = self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as exc:
            raise UnavailableError(
                f"cannot reach Kafka at {self._settings.bootstrap_servers}: {exc.args[0].str()}; is it running, and is "
                "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS right?"
            ) from exc
        return {name: len(topic.partitions) for name, topic in metadata.topics.items()}

    def replication(self) -> dict[str, int]:
        """Topic → copies of its records, the least of its partitions. Raises UnavailableError."""
        try:
            metadata = self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the topics' replicas: {exc.args[0].str()}") from exc
        return {
            name: min((len(partition.replicas) for partition in topic.partitions.values()), default=0)
            for name, topic in metadata.topics.items()
        }

    def configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Topic → its configuration. Raises UnavailableError."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        if not resources:
            return {}
        answers = self._admin.describe_configs(resources, request_timeout=self._timeout_s)
        try:
            return {
                r.name: {key: entry.value for key, entry in future.result().items()} for r, future in answers.items()
            }
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the topics' configuration: {exc.args[0].str()}") from exc

    def create(self, topics: Sequence[Topic], profile: str, replication: int) -> None:
        """Create topics; one that exists already is left alone. Raises TopicsError."""
        wanted = [
            NewTopic(
                t.name,
                num_partitions=t.partitions[profile],
                replication_factor=replication,
                config=t.config_for(replication),
            )
            for t in topics
        ]
        if not wanted:
            return
        for name, future in self._admin.create_topics(wanted, operation_timeout=self._timeout_s).items():
            try:
                future.result()
            except KafkaException as exc:
                if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise TopicsError(f"cannot create {name}: {exc.args[0].str()}") from exc

    def alter_configs(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Set configuration entries; others stay. Raises TopicsError."""
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                    for key, value in entries.items()
                ],
            )
            for name, entries in changes.items()
        ]
        if not resources:
            return
        for resource, future in self._admin.incremental_alter_configs(resources).items():
            try:
                future.result()
            except KafkaException as exc:
                raise TopicsError(f"cannot configure {resource.name}: {exc.args[0].str()}") from exc

    def group_offsets(self, group: str, topics: Sequence[str]) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """(committed offset, lag) per partition of `topics`; what was never committed counts from the log's start.

        The lag is of offsets: what is left may be no record (see `with_records`). Raises UnavailableError.
        """
        counts = self.partition_counts()
        wanted = [TopicPartition(topic, n) for topic in topics for n in range(counts.get(topic, 0))]
        # Not list_consumer_group_offsets: librdkafka 2.16 dies of a null pointer when the coordinator is not there yet, or moves
        # (rd_kafka_handle_OffsetFetch asks a group that an admin client does not have). This one never joins.
        reader = _Consumer({**client_config(self._settings, "admin"), "group.id": group, "error_cb": ignore_error})
        try:
            answer = reader.committed(wanted, timeout=self._timeout_s)
            for p in answer:
                if p.error is not None:
                    raise KafkaException(p.error)
            committed = {(p.topic, p.partition): max(0, p.offset) for p in answer}
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the offsets of {group}: {exc.args[0].str()}") from exc
        finally:
            reader.close()
        return committed, self.lag_behind(committed)

    def lag_behind(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """Per partition, how many offsets its end is beyond a position. Raises UnavailableError."""
        wanted = {TopicPartition(*partition): OffsetSpec.latest() for partition in positions}
        try:
            ends = self._admin.list_offsets(
                wanted, request_timeout=self._timeout_s, isolation_level=IsolationLevel.READ_COMMITTED
            )
            return {
                (p.topic, p.partition): max(0, future.result().offset - positions[p.topic, p.partition])
                for p, future in ends.items()
            }
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the ends of partitions: {exc.args[0].str()}") from exc

    def held_back(self, topics: Sequence[str]) -> dict[Partition, int]:
        """Partitions that cannot be read past an open transaction, and the number of records behind its beginning.

        Blocks. Raises UnavailableError.
        """
        counts = self.partition_counts()
        wanted = [TopicPartition(topic, n) for topic in topics for n in range(counts.get(topic, 0))]
        ends = []
        try:
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
                asked = self._admin.list_offsets(
                    {p: OffsetSpec.latest() for p in wanted}, request_timeout=self._timeout_s, isolation_level=level
                )
                ends.append({(p.topic, p.partition): future.result().offset for p, future in asked.items()})
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the ends of topics: {exc.args[0].str()}") from exc
        stable, all_of_it = ends
        return {partition: end - stable[partition] for partition, end in all_of_it.items() if end > stable[partition]}

    def with_records(self, places: Mapping[Partition, int]) -> set[Partition]:
        """The partitions that have a record at or after an offset; one that does not answer in time counts as such."""
        return set(self.first_times(places))

    def members(self, groups: Sequence[str]) -> dict[str, int]:
        """How many processes each consumer group has now. Raises UnavailableError."""
        try:
            answers = self._admin.describe_consumer_groups(list(groups), request_timeout=self._timeout_s)
            return {group: len(future.result().members) for group, future in answers.items()}
        except KafkaException as exc:
            raise UnavailableError(f"cannot read who is in a group: {exc.args[0].str()}") from exc

    def first_times(self, places: Mapping[Partition, int]) -> dict[Partition, int | None]:
        """The time (ms) of the first record at or after an offset, for partitions that have one; None without an answer in time.

        The end of a log may hold no record: the marker of a transaction, or records of one that was aborted. Blocks for a
        fetch. Raises UnavailableError.
        """
        reader = _Consumer(
            {
                **client_config(self._settings, "admin"),
                "group.id": "reader-admin",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.message.max.bytes": 65_536,
                "fetch.wait.max.ms": TO_THE_END_MS,
                "error_cb": ignore_error,
            }
        )
        left: set[Partition] = set(places)
        found: dict[Partition, int | None] = {}
        deadline = system_monotonic() + self._timeout_s
        try:
            reader.assign([TopicPartition(t, p, offset) for (t, p), offset in places.items()])
            while left and (wait_s := deadline - system_monotonic()) > 0:
                message = reader.poll(wait_s)
                if message is None:
                    continue
                partition = (message.topic(), message.partition())
                if message.error() is None:
                    if (
                        message.offset() >= places[partition]
                    ):  # else the topic was created again, and is read from its beginning
                        found[partition] = message.timestamp()[1]
                elif message.error().code() != KafkaError._PARTITION_EOF:
                    continue
                left.discard(partition)
        except KafkaException as exc:
            raise UnavailableError(f"cannot read what a group has not read: {exc.args[0].str()}") from exc
        finally:
            reader.close()
        return {**found, **dict.fromkeys(left)}


def check_cluster(settings: KafkaSettings) -> None:
    """Raises UnavailableError when Kafka does not answer, TopicsError when a topic of the catalogue is missing."""
    counts = Admin(settings, timeout_s=10).partition_counts()
    missing = sorted(set(catalogue()) - set(counts))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TopicsError(f"topic {missing[0]}{more} does not exist; run `heliograph topics apply`")


def wait_for_broker(settings: KafkaSettings, timeout_s: float) -> None:
    """Return when the broker answers. Raises UnavailableError."""
    deadline = system_monotonic() + timeout_s
    while True:
        try:
            Admin(settings, timeout_s=2).partition_counts()
            return
        except UnavailableError:
            if system_monotonic() > deadline:
                raise

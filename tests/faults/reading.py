"""Reads one partition of the six topics, as a subscriber sees it: committed records, from the start to the end."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.faults.checker import PartitionRecords
from tests.faults.decoding import Record

HOLDINGS: Final = ("commands", "events", "rejections", "dead_letters", "table", "waiting")
PATIENCE_S: Final = 60.0


def read_partition(bootstrap_servers: str, names: Mapping[str, str], partition: int) -> PartitionRecords:
    """Read all that one partition holds.

    `names` gives the topic of each of `HOLDINGS`. Raises TimeoutError where a topic brings neither records nor its
    end for a minute, as behind a transaction that somebody has left open.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "none",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    held: dict[str, list[Record]] = {names[holding]: [] for holding in HOLDINGS}
    try:
        commands = TopicPartition(names["commands"], partition)
        _, commands_end = consumer.get_watermark_offsets(commands, timeout=PATIENCE_S)
        consumer.assign([TopicPartition(topic, partition, 0) for topic in held])
        for message in _until_all_ended(consumer, len(held)):
            held[message.topic()].append(_record_of(message))
    finally:
        consumer.close()
    return PartitionRecords(partition, commands_end, **{holding: held[names[holding]] for holding in HOLDINGS})


def _until_all_ended(consumer: Consumer, topic_count: int) -> Iterator[Any]:
    ended: set[str] = set()
    deadline = time.monotonic() + PATIENCE_S
    while len(ended) < topic_count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected {topic_count} topics to end, {len(ended)} did: {', '.join(sorted(ended))}")
        for message in consumer.consume(10_000, 0.2):
            deadline = time.monotonic() + PATIENCE_S
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(str(message.topic()))
            else:
                raise RuntimeError(f"a topic cannot be read: {error}")


def _record_of(message: Any) -> Record:
    return Record(
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=tuple(message.headers() or ()),
    )

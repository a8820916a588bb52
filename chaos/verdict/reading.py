"""Reads one partition of the six topics, as a subscriber sees it: committed records, from the start to the end."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined] # it is documented there

from chaos.verdict.checker import PartitionRecords
from chaos.verdict.decoding import Record

HOLDINGS: Final = ("commands", "events", "rejections", "dead_letters", "table", "waiting")
PATIENCE_S: Final = 60.0


def read_partition(bootstrap_servers: str, names: Mapping[str, str], partition: int) -> PartitionRecords:
    """Read all that one partition holds by now.

    `names` gives the topic of each of `HOLDINGS`. Raises TimeoutError as `read` does.
    """
    ends = ends_of(bootstrap_servers, [names[holding] for holding in HOLDINGS], partition)
    held: dict[str, list[Record]] = {topic: [] for topic in ends}
    for message in read(bootstrap_servers, ends, partition):
        held[message.topic()].append(_record_of(message))
    return PartitionRecords(
        partition, ends[names["commands"]], **{holding: held[names[holding]] for holding in HOLDINGS}
    )


def ends_of(bootstrap_servers: str, topics: list[str], partition: int) -> dict[str, int]:
    """Return where each topic ends by now, with what is not committed yet.

    A broker that answers with an error is asked again: after faults it may not know for a moment what it leads.
    """
    admin = AdminClient({"log_level": 0, "bootstrap.servers": bootstrap_servers})
    ends: dict[str, int] = {}
    give_up_at = time.monotonic() + PATIENCE_S
    while missing := [topic for topic in topics if topic not in ends]:
        asked = {TopicPartition(topic, partition): OffsetSpec.latest() for topic in missing}
        for place, answer in admin.list_offsets(asked, request_timeout=PATIENCE_S).items():
            try:
                ends[place.topic] = answer.result(PATIENCE_S).offset
            except KafkaException as error:
                if error.args[0].code() < 0 or time.monotonic() > give_up_at:  # the client's own, or for too long
                    raise
                time.sleep(0.1)
    return ends


def read(
    bootstrap_servers: str, ends: Mapping[str, int], partition: int, patience_s: float = PATIENCE_S
) -> Iterator[Any]:
    """Read the committed records of topics, each up to its end at least.

    Raises TimeoutError if an end is not reached, and nothing has come of it for `patience_s`. What lies behind an open
    transaction is not shown to a committed consumer, and it is told an end there: only `ends` tells that there is more.
    """
    consumer = Consumer(
        {
            "log_level": 0,
            "bootstrap.servers": bootstrap_servers,
            "group.id": "none",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for topic in ends])
        yield from _until_past(consumer, ends, partition, patience_s)
    finally:
        consumer.close()


def _until_past(consumer: Consumer, ends: Mapping[str, int], partition: int, patience_s: float) -> Iterator[Any]:
    reached = dict.fromkeys(ends, 0)
    deadline = time.monotonic() + patience_s
    while behind := [topic for topic, end in ends.items() if reached[topic] < end]:
        if time.monotonic() > deadline:
            places = ", ".join(f"{topic} [{partition}] at {reached[topic]} of {ends[topic]}" for topic in behind)
            raise TimeoutError(f"committed records came to no end, as behind an open transaction: {places}")
        messages: list[Any] = consumer.consume(10_000, 0.2)
        for message in messages:
            if message.topic() in behind:
                deadline = time.monotonic() + patience_s
            error = message.error()
            if error is None:
                reached[message.topic()] = message.offset() + 1
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                reached[message.topic()] = message.offset()
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

"""What happens to the logs themselves: the cleaner compacts them within seconds, or a node loses the end of one."""

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # it is documented there
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    OffsetSpec,
    PartitionMetadata,
    ResourceType,
)

from order_service.kafka.connection import ask_admin
from order_service.settings import Settings
from tests.support.service import until

CLEANER_BACKOFF: Final = {"log.cleaner.backoff.ms": "500"}
"""A node's setting: how long its cleaner rests when there is nothing to clean, 15 s by default."""
SMALL: Final = {
    "segment.ms": "1000",
    "max.compaction.lag.ms": "1000",
    "delete.retention.ms": "100",
    "min.cleanable.dirty.ratio": "0.01",
}
"""Compaction as a topic sees it within days, in seconds."""
SHORT_SEGMENTS: Final = {"segment.ms": "3000", "max.compaction.lag.ms": "3000", "min.cleanable.dirty.ratio": "0.01"}
"""Segments that end after seconds and are cleaned then, for a whole run. Workers accept such topics: what is deleted
stays in them for as long as it must."""
ALL_THREE: Final = {"min.insync.replicas": "3"}
"""No record is acknowledged while a node is away. (More than there are replicas would not do it: Kafka takes fewer.)"""
ALONE: Final = {"min.insync.replicas": "1"}
"""One replica may acknowledge records alone."""
ASK_WITHIN_S: Final = 10.0
ANSWERS_WITHIN_S: Final = 60.0
"""Within which a broker answers that may just be away."""
LOOK_EVERY_S: Final = 0.3
DATA: Final = "data"
CHECKPOINT: Final = "cleaner-offset-checkpoint"
_HEAD: Final = struct.Struct(">qi")
_ATTRIBUTES_AT: Final = 21
_IS_CONTROL: Final = 0x20
_COUNT: Final = struct.Struct(">i")
_LAST_OFFSET_AT: Final = 23
_COUNT_AT: Final = 57
_T = TypeVar("_T")


Pause = Callable[[float], object]


class Altered:
    """Other settings of topics, in force while the block runs; both ways it is tried again while no broker answers.

    One block at a time: two would put back what the other has set. Raises TimeoutError if no broker answers in time.
    """

    _ONE_AT_A_TIME = threading.Lock()

    def __init__(self, servers: str, topics: Iterable[str], values: Mapping[str, str], *, pause: Pause) -> None:
        self.admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        self._values = {topic: dict(values) for topic in topics}
        self._before: dict[str, dict[str, str | None]] = {}
        self._pause = pause

    def __enter__(self) -> Self:
        self._ONE_AT_A_TIME.acquire()
        try:
            in_time(self._set, ANSWERS_WITHIN_S, self._pause)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._before:
                in_time(lambda: self._alter(self._before), ANSWERS_WITHIN_S, self._pause)
        finally:
            self._ONE_AT_A_TIME.release()

    def _set(self) -> bool:
        if not self._before:
            self._before = {topic: self._now(topic) for topic in self._values}
        return self._alter(self._values)

    def _now(self, topic: str) -> dict[str, str | None]:
        asked = self.admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)], request_timeout=ASK_WITHIN_S)
        [found] = [future.result() for future in asked.values()]
        is_set = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        return {name: found[name].value if found[name].source == is_set else None for name in self._values[topic]}

    def _alter(self, values: Mapping[str, Mapping[str, str | None]]) -> bool:
        resources = [
            ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[_entry(*one) for one in settings.items()])
            for topic, settings in values.items()
        ]
        # A request that is not answered in time must be given up: sent later, it would undo what came after it.
        altering = self.admin.incremental_alter_configs(resources, request_timeout=ASK_WITHIN_S)
        for future in altering.values():
            future.result()
        return True


def _entry(name: str, value: str | None) -> ConfigEntry:
    operation = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
    return ConfigEntry(name, value or "", incremental_operation=operation)


def compact(
    servers: str,
    topics: Sequence[str],
    partitions: Iterable[int],
    nodes: Iterable[Path],
    *,
    within_s: float,
    pause: Pause,
) -> None:
    """Have topics compacted within seconds until the first was cleaned twice.

    The first cleaning keeps markers and tombstones, the second removes what is older than `delete.retention.ms`.
    Raises TimeoutError if that takes too long: no worker starts on such topics, and Kafka only cleans after writes.
    """
    places = [TopicPartition(topics[0], partition) for partition in partitions]
    nodes = list(nodes)

    def is_cleaned(ends: Mapping[int, int]) -> bool:
        cleaned = cleaned_to(nodes, topics[0])
        return all(cleaned.get(partition, 0) >= end for partition, end in ends.items())

    with Altered(servers, topics, SMALL, pause=pause) as altered:
        deadline = time.monotonic() + within_s
        for _ in range(2):
            # What is written to now is cleaned when the next record has come: its segment must have ended.
            ends = in_time(lambda: _ends(altered.admin, places), within_s, pause)
            while not is_cleaned(ends):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{topics[0]} was not cleaned within {within_s:.0f} s")
                pause(LOOK_EVERY_S)


def _ends(admin: AdminClient, places: list[TopicPartition]) -> dict[int, int]:
    asked = admin.list_offsets({place: OffsetSpec.latest() for place in places})
    return {place.partition: future.result(ASK_WITHIN_S).offset for place, future in asked.items()}


def in_time(act: Callable[[], _T], within_s: float, pause: Pause) -> _T:
    """Do something of which a broker is needed, again while none answers; TimeoutError if none does in time."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return act()
        except (KafkaException, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no broker answers within {within_s:.0f} s") from error
            pause(LOOK_EVERY_S)


def place_on(servers: str, topic: str, partition: int, nodes: Sequence[int]) -> None:
    """Leave a partition to some nodes, the first of which is preferred; return when all of them are in sync."""
    reassignment = AlterPartitionReassignmentsRequest(30_000, [(topic, [(partition, list(nodes), {})], {})], {})

    async def reassign(admin: Any) -> Any:
        return await admin._send_request(reassignment, admin._client.cluster.controller.nodeId)

    answer = asyncio.run(ask_admin(Settings(kafka_bootstrap_servers=servers), reassign))
    errors = (answer.error_code, answer.responses[0][1][0][1])
    if errors != (0, 0):
        raise RuntimeError(f"{topic} [{partition}] is not given to the nodes {nodes}: errors {errors}")
    is_placed = lambda: set(_partition(servers, topic, partition).isrs) == set(nodes)  # noqa: E731
    until(is_placed, f"{topic} [{partition}] is on the nodes {nodes}")


def wait_leaderless(servers: str, topic: str, partition: int) -> None:
    """Wait until no node leads a partition."""
    until(lambda: _partition(servers, topic, partition).leader == -1, f"{topic} [{partition}] has no leader")


def _partition(servers: str, topic: str, partition: int) -> PartitionMetadata:
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    return admin.list_topics(topic, timeout=ASK_WITHIN_S).topics[topic].partitions[partition]


def cleaned_to(nodes: Iterable[Path], topic: str) -> dict[int, int]:
    """Return up to which offset each partition of a topic was cleaned, as the nodes have written it down.

    Shape: a line with the version, one with the count, and of each partition its topic, number and offset.
    """
    found: dict[int, int] = {}
    for node in nodes:
        path = node / DATA / CHECKPOINT
        lines = path.read_text().splitlines()[2:] if path.exists() else []
        for line in lines:
            name, partition, offset = line.split()
            if name == topic:
                found[int(partition)] = max(int(offset), found.get(int(partition), 0))
    return found


def removed_by_compaction(nodes: Iterable[Path], topic: str) -> tuple[int, int]:
    """Return how many records compaction has removed from a topic, markers included, and how many were written.

    Each node cleans its own replica: of each partition the one counts that has lost most.
    """
    counts: dict[str, tuple[int, int]] = {}
    for node in nodes:
        for log in (node / DATA).glob(f"{topic}-*"):
            counts[log.name] = max(counts.get(log.name, (0, 0)), _removed(log))
    return sum(removed for removed, _ in counts.values()), sum(written for _, written in counts.values())


def _removed(log: Path) -> tuple[int, int]:
    """Count what is missing of a partition, and what was written. Its node may run, and replace segments meanwhile."""
    end = kept = 0
    for segment in sorted(log.glob("*.log")):
        try:
            data = segment.read_bytes()
        except FileNotFoundError:  # what is left of it is in the segment that was read before
            continue
        start = 0
        for batch_end, _ in _batches(data):
            if batch_end > len(data):  # it is being written
                break
            base, _ = _HEAD.unpack_from(data, start)
            if base >= end:
                kept += _COUNT.unpack_from(data, start + _COUNT_AT)[0]
                end = base + _COUNT.unpack_from(data, start + _LAST_OFFSET_AT)[0] + 1
            start = batch_end
    return end - kept, end


def cut_tail(node: Path, topic: str, partition: int, *, lose: int, is_transactional: bool) -> int:
    """Take at least some bytes from the end of a partition, on a node that does not run; return how many are lost.

    It is cut behind a batch, of a log of transactions behind the end of one. Whole segments go if the newest one is
    shorter than that: after a compaction it may hold nothing but the claims of the workers that came last.
    """
    lost = 0
    for segment in sorted((node / DATA / f"{topic}-{partition}").glob("*.log"), reverse=True):
        data = segment.read_bytes()
        ends = [0, *(end for end, is_control in _batches(data) if is_control or not is_transactional)]
        end = max((end for end in ends if lost + len(data) - end >= lose), default=0)
        lost += len(data) - end
        for index in segment.parent.glob(f"{segment.stem}.*index"):
            index.unlink()  # the node makes them again
        if end or not int(segment.stem):
            with segment.open("r+b") as log:
                log.truncate(end)
        else:
            segment.unlink()
        if lost >= lose:
            break
    return lost


def cut_marker(node: Path, topic: str, partition: int, *, records: int = 1) -> int:
    """Cut a partition before the marker of the last transaction of at least so many records, on a stopped node.

    Return the offset of that transaction, whose records stay. Its coordinator has ended it, and never does so again.
    """
    segment = max((node / DATA / f"{topic}-{partition}").glob("*.log"))
    data = segment.read_bytes()
    ends = list(_batches(data))
    starts = [0, *(end for end, _ in ends)]
    start, end = next(
        (start, end)
        for start, (end, is_control) in reversed([*zip(starts, ends, strict=False)])
        if not is_control and _COUNT.unpack_from(data, start + _COUNT_AT)[0] >= records
    )
    for index in segment.parent.glob(f"{segment.stem}.*index"):
        index.unlink()  # the node makes them again
    with segment.open("r+b") as log:
        log.truncate(end)
    return int(_HEAD.unpack_from(data, start)[0])


def _batches(data: bytes) -> Iterator[tuple[int, bool]]:
    """Yield where each batch of a segment ends, and whether it is a control batch.

    Shape:  base offset (8 bytes), length of what follows (4); at byte 21 two bytes of attributes, bit 5 is control; at
            byte 23 the last offset as a difference to the base offset (4); at byte 57 the number of records (4).
    Source: Kafka protocol guide, record batch.
    """
    place = 0
    while place + _ATTRIBUTES_AT + 2 <= len(data):
        _, length = _HEAD.unpack_from(data, place)
        attributes = int.from_bytes(data[place + _ATTRIBUTES_AT : place + _ATTRIBUTES_AT + 2])
        place += _HEAD.size + length
        yield place, bool(attributes & _IS_CONTROL)

"""The topics of a service in memory, a `Reader` of them, and a worker whose steps a test interleaves."""

import asyncio
from collections import defaultdict

from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.domain.identity import command_digest
from order_service.errors import LeaderAwayError
from order_service.kafka.topics import topic_names
from order_service.wire import avro
from order_service.wire.changelog import POSITION_KEY, Position, encode
from order_service.wire.commands import partition_of
from order_service.wire.headers import event_headers
from tests.support.samples import but, order_paid

NAMES = topic_names()
TOPICS = (NAMES.events, NAMES.rejections, NAMES.dead_letters, NAMES.table, NAMES.waiting)


class Log:
    """The records of all partitions. `pause` is awaited between the steps of a worker and of each reader."""

    def __init__(self, partitions, pause):
        self.partitions = partitions
        self.pause = pause
        self.without_leader = set()
        self.records = defaultdict(list)

    def append(self, topic, partition, key, value, headers=()):
        records = self.records[TopicPartition(topic, partition)]
        records.append(ConsumerRecord(topic, partition, len(records), 0, 0, key, value, None, 0, 0, tuple(headers)))
        return len(records) - 1

    async def decide(self, command, offset):
        """Write the event of a command, and the position behind it; Kafka may show the position first."""
        key = command.order_id.encode()
        partition = partition_of(key, self.partitions)
        changes = {"command_id": command.command_id, "command_digest": command_digest(command)}
        event = but(order_paid, order_id=command.order_id, **changes)
        written = [
            (NAMES.events, key, avro.encode_event(event), event_headers(event, None, offset)),
            (NAMES.table, POSITION_KEY, encode(Position(offset + 1, "worker", offset + 1, None)), ()),
        ]
        for topic, *record in written if offset % 2 else reversed(written):
            await self.pause()
            self.append(topic, partition, *record)


class LogReader:
    """What `Reader` promises, of a log in memory."""

    def __init__(self, log):
        self.names = NAMES
        self.log = log
        self.returned = []
        self.failure = None
        self.reading = {}
        self._paused = set()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def partitions(self, *topics):
        return [TopicPartition(topic, partition) for topic in topics for partition in range(self.log.partitions)]

    async def ends(self, partitions):
        await self.log.pause()
        if missing := [partition for partition in partitions if partition in self.log.without_leader]:
            raise LeaderAwayError(missing)
        ends = {partition: len(self.log.records[partition]) for partition in partitions}
        await self.log.pause()
        return ends

    @property
    def followed(self):
        return self.reading.keys() - self._paused

    def read_also(self, starts, *, without=()):
        self.reading = {partition: self.reading[partition] for partition in self.reading.keys() - without}
        self.reading |= starts
        self.resume(starts)

    def pause(self, partitions):
        assert set(partitions) <= self.reading.keys()
        self._paused |= set(partitions)

    def resume(self, partitions):
        assert set(partitions) <= self.reading.keys()
        self._paused -= set(partitions)

    def discard(self):
        pass

    async def poll(self):
        await self.log.pause()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        records = []
        for partition in self.followed:
            new = self.log.records[partition][self.reading[partition] :]
            self.reading[partition] += len(new)
            records += new
        if not records:
            await asyncio.sleep(0.001)
        self.returned += records
        await self.log.pause()  # as a lookup of schema ids
        return records

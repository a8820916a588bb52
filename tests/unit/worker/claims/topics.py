"""The topics of one partition in memory, as a claim reads them, and records of them."""

from collections.abc import Mapping

from aiokafka import ConsumerRecord, TopicPartition

from order_service.kafka.topics import topic_names
from order_service.wire import avro
from order_service.wire.changelog import BARRIER_KEY, Ends, Position
from order_service.wire.headers import event_headers
from tests.support.samples import but, create, entry_after, order_created

Made = tuple[bytes, bytes, list[tuple[str, bytes]]]

NAMES = topic_names()
CREATED = avro.encode_event(order_created)
ENTRY = but(entry_after([create]), head=avro.digest(CREATED))
BARRIER: Made = (BARRIER_KEY, b"barrier", [])
EVENT = (b"order", CREATED, event_headers(order_created, None, 3))


class Topics:
    """Partition 0 of each topic, as the reader and the clients of a claim see it."""

    def __init__(self, topics: Mapping[str, list[Made]]) -> None:
        self._records = {TopicPartition(topic, 0): records for topic, records in topics.items()}
        self._at: dict[TopicPartition, int] = {}
        self.first_offsets: dict[str, int] = {}

    def assign(self, places):
        self._at = dict.fromkeys(places, 0)

    def assignment(self):
        return set(self._at)

    def seek(self, place, offset):
        self._at[place] = offset

    def pause(self, *places):
        pass

    def resume(self, *places):
        pass

    async def position(self, place):
        return self._at[place]

    async def end_offsets(self, places):
        return {place: len(self._records.get(place, [])) for place in places}

    async def getmany(self, *places, timeout_ms, max_records):  # noqa: ARG002, as aiokafka's
        fetched = {}
        for place in places:
            first = self._at[place]
            records = self._records.get(place, [])[first : first + max_records]
            self._at[place] += len(records)
            fetched[place] = [
                ConsumerRecord(place.topic, 0, offset, 0, 0, key, value, None, len(key), len(value), tuple(headers))
                for offset, (key, value, headers) in enumerate(records, first)
            ]
        return {place: records for place, records in fetched.items() if records}

    async def starts(self, places):
        return {place: self.first_offsets.get(place.topic, 0) for place in places}

    async def ends(self, places):
        return await self.end_offsets(places)


def at(next_offset: int, *, ends: Ends | None = None, waiting_count: int | None = 0) -> Position:
    return Position(next_offset, "worker", 10, None, 0, ends or Ends(), waiting_count)

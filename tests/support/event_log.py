"""A log as the topics hold it, without a Kafka: events and rejections with their places."""

import asyncio

from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.domain.messages import Event
from order_service.errors import DamagedError, LeaderAwayError
from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import topic_names
from order_service.views.share import Unread
from order_service.wire.avro import encode_event
from tests.support.samples import digest_of

EVENTS = TopicPartition("orders.events.v1", 0)
REJECTIONS = TopicPartition("orders.rejections.v1", 0)
START = {EVENTS: 0, REJECTIONS: 0}


def seens(messages, offset=0):
    """Put messages behind each other, from this offset on."""
    return [OutcomeRecord(message, 0, at, digest_of(message), at) for at, message in enumerate(messages, offset)]


def order_of(views, order_id):
    """Return an order as it is now, None if it does not exist."""
    return views.orders([order_id]).get(order_id)


def after(before, seen):
    """Return the positions behind these."""
    moved = dict(before)
    for one in seen:
        moved[EVENTS if isinstance(one.message, Event) else REJECTIONS] = one.offset + 1
    return {place: offset for place, offset in moved.items() if offset != before[place]}


def record_of(event, place, offset):
    """Return an event as a consumer reads it."""
    value, key = encode_event(event), event.order_id.encode()
    return ConsumerRecord(place.topic, place.partition, offset, 0, 0, key, value, None, 0, 0, ())


class Log:
    """What a projector reads, in the place of a `Reader`: partitions that a test fills and cuts."""

    names = topic_names()

    def __init__(self, ends):
        self.end_of = dict(ends)
        self.start_of = dict.fromkeys(ends, 0)
        self.records = []
        self.without_leader = set()
        self.told = dict.fromkeys(ends)
        """Where fetches said that partitions end, all that is not committed yet included."""
        self.at = {}
        self.away = None
        """Why the schema registry cannot be asked."""
        self.damaged = None
        """The partition whose next batch is damaged."""
        self.begun = []
        """The partitions that were read, each time that reading began."""

    def write(self, place, event):
        self.records.append(record_of(event, place, self.end_of[place]))
        self.end_of[place] += 1

    async def partitions(self, *_topics):
        return list(self.end_of)

    async def leaderless(self, places):
        return [place for place in places if place in self.without_leader]

    async def ends(self, places):
        self._check_leaders(places)
        return {place: self.end_of[place] for place in places}

    async def starts(self, places):
        self._check_leaders(places)
        return {place: self.start_of[place] for place in places}

    def _check_leaders(self, places):
        if found := self.without_leader.intersection(places):
            raise LeaderAwayError(found)

    def without_leader_now(self):
        return sorted(self.without_leader)

    async def behind(self, _ends):
        return 0

    async def lag(self):
        return 0

    async def position(self, place):
        return self.at.get(place)

    def log_end_since(self, place, _since_s):
        return self.told[place]

    async def look_up(self, _records):
        return self.away

    async def follow_many(self, starts, *, learn):
        assert not learn, "one partition's unknown schema holds no other one up"
        self.begun.append(set(starts))
        self.at = at = dict(starts)
        while True:
            found = []
            for record in self.records:
                place = TopicPartition(record.topic, record.partition)
                if record.offset >= at.get(place, record.offset + 1):
                    found.append(record)
                    at[place] = record.offset + 1
            if (place := self.damaged) is not None and place in starts and not found:
                raise DamagedError(place, at[place])
            yield found
            await asyncio.sleep(0.005)


class Progress:
    """Keeps what a projector reports."""

    def __init__(self):
        self.behind = []
        self.left = []
        self.leaderless = set()
        self.unread = Unread()

    def report_left(self, left):
        self.left.append(left)

    def report_lag(self, lag):
        self.behind.append(lag)

    def report_stopped(self, records):
        pass

    def report_leaderless(self, partitions):
        self.leaderless = set(partitions)

    def report_unread(self, unread):
        self.unread = unread

"""What a `Reader` asks aiokafka, and what it makes of the answers: here one that a test plays."""

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest
from aiokafka.errors import CorruptRecordException, KafkaTimeoutError
from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.errors import DamagedError, KafkaAwayError, LeaderAwayError
from order_service.kafka.reader import Reader
from order_service.kafka.topics import topic_names
from order_service.settings import Settings

NAMES = topic_names()
LED, AWAY = TopicPartition(NAMES.events, 0), TopicPartition(NAMES.events, 1)
NONE = -1


class Played:
    """An aiokafka consumer of one topic with two partitions. Like aiokafka, it asks for all ends or for none."""

    def __init__(self):
        self.leaders = {LED: 1, AWAY: 1}
        self.known = None
        """What the client knows of the leaders, if that is not how they are now."""
        self.told = dict.fromkeys(self.leaders, 0)
        self.asked = 0
        cluster = SimpleNamespace(leader_for_partition=lambda place: (self.known or self.leaders)[place])
        self._client = SimpleNamespace(
            cluster=cluster, get_random_node=lambda: 1, send=self._send, add_topic=lambda _topic: None
        )

    async def _send(self, _node, _request):
        partitions = [{"partition": place.partition, "leader": leader} for place, leader in self.leaders.items()]
        topic = {"error_code": 0, "topic": NAMES.events, "partitions": partitions}
        return SimpleNamespace(to_object=lambda: {"topics": [topic]})

    async def end_offsets(self, places):
        self.asked += 1
        self.known = None  # it looks for the leaders again
        if any(self.leaders[place] == NONE for place in places):
            raise KafkaTimeoutError("Failed to get offsets by times in 10000 ms")
        return dict.fromkeys(places, 7)

    beginning_offsets = end_offsets

    def assignment(self):
        return set(self.leaders)

    def last_poll_timestamp(self, place):
        return self.told[place]

    def last_stable_offset(self, _place):
        return 7

    async def position(self, _place):
        return 5


@pytest.fixture
async def played():
    return Played()


@pytest.fixture
async def reader(played):
    made = Reader(Settings())
    await made._consumer.stop()
    made._consumer = played
    return made


async def test_a_partition_without_a_leader_is_named_at_once_and_the_others_are_asked(reader, played):
    played.leaders[AWAY] = NONE
    assert await reader.leaderless([LED, AWAY]) == [AWAY]
    for ask in (reader.ends, reader.starts):
        with pytest.raises(LeaderAwayError, match=rf"^partition 1 of {NAMES.events} has no leader"):
            await ask([LED, AWAY])
        assert played.asked == 0
        assert await ask([LED]) == {LED: 7}
        played.asked = 0


async def test_a_leader_that_is_lost_while_it_is_asked_is_named_too(reader, played):
    played.known, played.leaders = dict(played.leaders), {LED: 1, AWAY: NONE}
    with pytest.raises(LeaderAwayError):
        await reader.ends([LED, AWAY])
    assert played.asked == 1


async def test_what_the_client_believes_of_a_leader_that_is_back_is_asked_again(reader, played):
    played.known = {LED: 1, AWAY: NONE}
    assert await reader.leaderless([LED, AWAY]) == []
    assert await reader.ends([LED, AWAY]) == {LED: 7, AWAY: 7}


async def test_a_kafka_that_does_not_answer_is_away_as_before(reader, played):
    async def give_up(_places):
        raise KafkaTimeoutError

    played.end_offsets = give_up
    with pytest.raises(KafkaAwayError) as caught:
        await reader.ends([LED, AWAY])
    assert type(caught.value) is KafkaAwayError


async def test_the_silence_of_a_partition_without_a_leader_is_not_the_silence_of_kafka(reader, played, monkeypatch):
    monkeypatch.setattr("order_service.kafka.reader.SILENT_S", -1.0)
    assert await reader.lag() is None
    played.leaders = {LED: NONE, AWAY: NONE}
    assert await reader.lag() == 4
    assert reader.without_leader_now() == [LED, AWAY]


DAMAGED, WHOLE = TopicPartition(NAMES.rejections, 1), TopicPartition(NAMES.events, 1)


class Draining(Played):
    """A consumer of two partitions that drains one after the other, as aiokafka does, one of them with a bad batch.

    Where it meets the damage, it raises, and drops what it has drained. Its positions are behind what it dropped: at
    once for the other partition, at the next call for this one.
    """

    def __init__(self, damaged_at):
        super().__init__()
        self.damaged_at = damaged_at
        self.positions = {}
        self._passed = False

    def assign(self, places):
        self.positions = dict.fromkeys(places, 0)
        self._passed = False

    def seek(self, place, offset):
        self.positions[place] = offset

    async def position(self, place):
        return self.positions[place]

    async def getmany(self, *places, timeout_ms, max_records):  # noqa: ARG002, as in aiokafka
        found = {}
        for place in sorted(places or self.positions):
            if self._passed and place == DAMAGED and self.damaged_at is not None:
                self.positions[place] = self.damaged_at
            offsets = range(self.positions[place], 10)[:max_records]
            if place == DAMAGED and self.damaged_at is not None and self.damaged_at in (offsets or [self.damaged_at]):
                self._passed = True
                raise CorruptRecordException(f"Invalid CRC - {place}")
            if offsets:
                found[place] = [ConsumerRecord(*place, offset, 0, 0, b"", b"", None, 0, 0, ()) for offset in offsets]
                self.positions[place] = offsets[-1] + 1
                max_records -= len(offsets)
        return found


@pytest.mark.parametrize("damaged_at", [0, 6])
async def test_a_damaged_batch_is_reported_with_its_offset_and_no_other_record_is_lost(reader, damaged_at):
    reader._consumer = played = Draining(damaged_at)
    reader.begin({WHOLE: 3, DAMAGED: 0})
    before = [record.offset for record in await reader.poll(learn=False)] if damaged_at else []
    assert before == list(range(damaged_at))
    for _ in range(2):
        with pytest.raises(DamagedError, match=rf"a batch of {NAMES.rejections}-1 is damaged") as caught:
            await reader.poll(learn=False)
        assert (caught.value.topic_partition, caught.value.offset) == (DAMAGED, damaged_at)
    played.damaged_at = None
    records = await reader.poll(learn=False)
    assert [record.offset for record in records if record.topic == WHOLE.topic] == list(range(3, 10))
    assert [record.offset for record in records if record.topic == DAMAGED.topic] == list(range(damaged_at, 10))


async def test_a_slow_answer_hides_no_damage(reader, monkeypatch):
    reader._consumer = played = Draining(6)
    reader.begin({WHOLE: 10, DAMAGED: 0})
    quick = played.getmany
    slow: list[dict[TopicPartition, list[ConsumerRecord]]] = [{}, {}]

    async def getmany(*places, **arguments):
        return slow.pop() if places and slow else await quick(*places, **arguments)

    monkeypatch.setattr(played, "getmany", getmany)
    assert [record.offset for record in await reader.poll(learn=False)] == list(range(6))
    slow += [{}, {}]
    with pytest.raises(DamagedError):
        await reader.poll(learn=False)


async def test_damage_of_a_partition_that_is_not_named_is_reported_and_nothing_is_lost(reader, monkeypatch):
    reader._consumer = played = Draining(None)
    reader.begin({WHOLE: 3, DAMAGED: 10})
    whole = played.getmany

    async def fail(**arguments):
        await whole(**arguments)
        raise CorruptRecordException("Invalid CRC")

    monkeypatch.setattr(played, "getmany", fail)
    with pytest.raises(KafkaAwayError, match="Invalid CRC"):
        await reader.poll(learn=False)
    monkeypatch.setattr(played, "getmany", whole)
    assert [record.offset for record in await reader.poll(learn=False)] == list(range(3, 10))


class Pausing(Draining):
    """A consumer whose paused partitions return nothing. It drops its pauses with its assignment, as aiokafka does."""

    def __init__(self, damaged_at=None):
        super().__init__(damaged_at)
        self.paused = set()

    def assign(self, places):
        super().assign(places)
        self.paused = set()

    def pause(self, *places):
        assert set(places) <= self.positions.keys()
        self.paused |= set(places)

    def resume(self, *places):
        self.paused -= set(places)

    async def getmany(self, *places, timeout_ms, max_records):
        kept, self.positions = (
            self.positions,
            {place: offset for place, offset in self.positions.items() if place not in self.paused},
        )
        try:
            return await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)
        finally:
            self.positions = {**kept, **self.positions}


async def offsets_of(reader):
    records = await reader.poll(learn=False)
    return {place: [each.offset for each in records if each.topic == place.topic] for place in (WHOLE, DAMAGED)}


async def test_partitions_that_are_read_also_move_no_other_one(reader):
    reader._consumer = Pausing()
    reader.begin({WHOLE: 3})
    assert await offsets_of(reader) == {WHOLE: [*range(3, 10)], DAMAGED: []}
    reader.read_also({DAMAGED: 8})
    assert reader._consumer.positions == {WHOLE: 10, DAMAGED: 8}
    reader.read_also({DAMAGED: 7}, without=[WHOLE])
    assert reader._consumer.positions == {DAMAGED: 7}


async def test_a_paused_partition_is_read_on_from_where_it_stopped_or_from_a_new_offset(reader):
    reader._consumer = Pausing()
    reader.begin({WHOLE: 3, DAMAGED: 5})
    reader.pause([DAMAGED])
    assert await offsets_of(reader) == {WHOLE: [*range(3, 10)], DAMAGED: []}
    reader.resume([DAMAGED])
    assert await offsets_of(reader) == {WHOLE: [], DAMAGED: [*range(5, 10)]}
    reader.pause([DAMAGED])
    reader.read_also({DAMAGED: 9})
    assert await offsets_of(reader) == {WHOLE: [], DAMAGED: [9]}


async def test_a_paused_partition_stays_paused_when_others_are_assigned_or_damaged(reader):
    reader._consumer = Pausing(damaged_at=6)
    reader.begin({WHOLE: 3})
    reader.pause([WHOLE])
    reader.read_also({DAMAGED: 4})
    assert await offsets_of(reader) == {WHOLE: [], DAMAGED: [4, 5]}
    assert reader._consumer.paused == {WHOLE}


class Registry:
    """Looks ids up for a reader, and does not answer until a test lets it."""

    def __init__(self):
        self.asked = 0
        self.answers = False

    def are_known(self, values):
        return not any(values)

    async def learn(self, values):
        if any(values):
            self.asked += 1
            if not self.answers:
                await asyncio.sleep(1000)


async def test_a_registry_that_did_not_answer_is_not_asked_again_at_once(reader, monkeypatch):
    monkeypatch.setattr("order_service.kafka.reader.LOOK_UP_S", 0.01)
    reader._ids = registry = Registry()
    unknown = ConsumerRecord(*LED, 0, 0, 0, b"", b"unknown", None, 0, 0, ())
    for _ in range(3):
        assert "does not answer" in str(await reader.look_up([unknown]))
    assert registry.asked == 1
    assert await reader.look_up([dataclasses.replace(unknown, value=None)]) is None
    registry.answers = True
    monkeypatch.setattr("order_service.kafka.reader.LOOK_UP_AGAIN_S", 0.0)
    assert await reader.look_up([unknown]) is None
    assert registry.asked == 2


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
async def test_a_wall_clock_that_steps_is_not_taken_for_a_silent_kafka(reader, played, monkeypatch, step_s):
    now = 5000.0
    clocks = SimpleNamespace(monotonic=lambda: now, time=lambda: now + step_s)
    monkeypatch.setattr("order_service.kafka.reader.time", clocks)
    played.told = dict.fromkeys(played.leaders, int(now * 1000))
    assert await reader.lag() == 4
    now += 5.0
    assert await reader.lag() == 4
    now += 6.0
    assert await reader.lag() is None
    played.told[LED] += 1
    assert await reader.lag() is None  # the other one is still silent
    played.told[AWAY] += 1
    assert await reader.lag() == 4


class Ending(Played):
    """A consumer of two partitions that returns one record of each partition that is not paused, and then no more."""

    def __init__(self):
        super().__init__()
        self.positions = {}
        self.fetched = []
        self.paused = set()

    def assign(self, partitions):
        self.paused = set()
        self.positions = dict.fromkeys(partitions, 0)

    def seek(self, partition, offset):
        self.positions[partition] = offset

    def assignment(self):
        return set(self.positions)

    async def position(self, partition):
        return self.positions[partition]

    def pause(self, *partitions):
        self.paused |= set(partitions)

    async def getmany(self, **_):
        self.fetched.append(self.positions.keys() - self.paused)
        fetched = {
            partition: [SimpleNamespace(**partition._asdict(), offset=self.positions[partition], value=None)]
            for partition in self.fetched[-1]
        }
        for partition in fetched:
            self.positions[partition] += 1
        return fetched


async def test_partitions_that_are_read_to_the_end_are_fetched_no_more(reader):
    reader._consumer = ending = Ending()
    ends = {LED: 1, AWAY: 3}
    records = [record async for records in reader.between(dict.fromkeys(ends, 0), ends) for record in records]
    assert len(records) == 4
    assert ending.fetched == [{LED, AWAY}, {AWAY}, {AWAY}]
    assert ending.paused == {LED, AWAY}

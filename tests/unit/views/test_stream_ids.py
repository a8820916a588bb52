"""Ids of streams of many partitions: at most 200 bytes, and a reader that resumes with one misses no event."""

import asyncio
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, make_url, select

from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import topic_names
from order_service.views import checkpoints as stored
from order_service.views import queries
from order_service.views.checkpoints import ID_MAX_BYTES, Checkpoint, id_bytes
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import FORM, checkpoints, form, open_database, positions, prepare
from order_service.web.http.cursors import (
    read_checkpoint_position,
    read_offsets,
    write_checkpoint_position,
    write_offsets,
)
from order_service.web.live import positions as live_positions
from order_service.web.live.positions import LogPosition, position_of
from tests.support.event_log import EVENTS, REJECTIONS
from tests.support.samples import but, created, digest_of, order_created

TOPIC = EVENTS.topic
LARGEST = 10**18 - 1
A, B = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize(
    "offsets",
    [
        {},
        {(TOPIC, 0): 0},
        {(TOPIC, number): 10**number for number in range(12)},
        {(TOPIC, number): 999_999_999 for number in range(1000)},
    ],
)
def test_the_size_of_an_id_is_known_before_it_is_written(offsets):
    assert id_bytes((partition, offset) for (_, partition), offset in offsets.items()) == len(write_offsets(offsets))


@pytest.mark.parametrize("beyond", [{}, {0: 5}, dict.fromkeys(range(1000), LARGEST), {9999: LARGEST, 1: 2}])
def test_an_id_has_the_partitions_beyond_its_checkpoint_for_which_there_is_room(beyond):
    checkpoint = Checkpoint(0, A, B, ())
    text = write_checkpoint_position(checkpoint, beyond, ID_MAX_BYTES)
    assert len(text) <= ID_MAX_BYTES
    read = read_checkpoint_position(text, TOPIC)
    assert read is not None
    assert (read.checkpoint_id, read.anchor_id) == (A, B)
    assert read.beyond.items() <= {(TOPIC, partition): offset for partition, offset in beyond.items()}.items()
    assert len(read.beyond) >= min(len(beyond), 6)
    assert read_offsets(text, TOPIC) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0-1",
        "c1.2.0-1",
        f"c{A}",
        f"c{A}.{A.upper()}",
        f"c{A}.{A}.",
        f"c{A}.{A}.1",
        f"c{A}.{A}.1-2.x",
        f"c{A}.{A}" + "-" * 16_000,
        f"c{A}.{A}" + ".0" * 8_000,
    ],
)
def test_another_text_names_no_checkpoint(text):
    assert read_checkpoint_position(text, TOPIC) is None


class Shop:
    """A log, the views that projectors build from it, and readers of all events or of a user's."""

    def __init__(self, engine, partitions):
        self.names = topic_names()
        self.views = Views(engine, self.names)
        self.log: list[list[Any]] = [[] for _ in range(partitions)]
        self.start = {TopicPartition(topic, n): 0 for topic in (TOPIC, REJECTIONS.topic) for n in range(partitions)}
        self.projections = [Projection(engine, self.names) for _ in range(2)]
        self.numbers = count()
        self.now_s = 0
        self.engine = engine
        self.runner = asyncio.Runner()
        self.open()

    def open(self):
        self.at = self.projections[0].positions(self.start)

    def write(self, partition, user_id):
        event = but(order_created, order_id=f"order-{next(self.numbers)}", fact=but(created, user_id=user_id))
        offset = self.log[partition][-1].offset + 1 + len(self.log[partition]) % 2 if self.log[partition] else 0
        self.log[partition].append(OutcomeRecord(event, partition, offset, digest_of(event), offset))  # gaps: markers

    def write_some(self, counts):
        for partition, number in counts.items():
            for each in range(number):
                self.write(partition, "dana" if each % 2 else "erin")

    def project(self, most):
        """Apply so many records of each partition of `most`, by its projector, the two side by side."""
        for index, projection in enumerate(self.projections):
            read, to = [], {}
            for partition, limit in most.items():
                place = TopicPartition(TOPIC, partition)
                new = [record for record in self.log[partition] if record.offset >= self.at[place]][:limit]
                if partition % 2 == index and new:
                    read += new
                    to[place] = new[-1].offset + 1
            if read:
                assert projection.apply(read, self.at, to) == []
                self.at |= to

    def store(self, seconds):
        """Store a checkpoint so many seconds after the last one."""
        self.now_s += seconds
        offsets = [self.at[TopicPartition(TOPIC, partition)] for partition in range(len(self.log))]
        with self.engine.begin() as connection:
            stored.store(connection, offsets, self.now_s)

    def rebuild(self):
        """Make views of an older form again, as an update does."""
        with self.engine.begin() as connection:
            connection.execute(form.update().values(form=FORM - 1))
        assert prepare(self.engine)
        self.open()

    def lose_checkpoint(self):
        """Lose the newest checkpoint, as a crash of the database may; one that is kept for long is older."""
        newest = checkpoints.c.total == select(func.max(checkpoints.c.total)).scalar_subquery()
        with self.engine.begin() as connection:
            connection.execute(checkpoints.delete().where(newest, checkpoints.c.is_hourly.is_(False)))


class Reader:
    """Reads as a connection does, and checks at each event that it has missed none."""

    def __init__(self, shop, user_id):
        self.shop, self.user_id = shop, user_id
        self.received = set()
        self.position = self.begin(self.shop.views.offsets())
        self.from_offsets = {partition: offset for (_, partition), offset in self.position._offsets.items()}
        self.last_id = self.position.id
        self.ids = [self.last_id]

    def begin(self, offsets, checkpoint=None):
        of_events = {each: offset for each, offset in offsets.items() if each[0] == TOPIC}
        newest = checkpoint or self.shop.views.newest_checkpoint()
        return LogPosition(self.shop.views, TOPIC, self.user_id, of_events, newest)

    def reconnect(self):
        ends = {each: 0 for each in self.shop.views.offsets() if each[0] == TOPIC}
        resumed = position_of(self.last_id, self.shop.views, TOPIC, ends)
        assert resumed is not None
        self.position = self.begin(*resumed)
        self.show(self.position.id)

    def show(self, event_id):
        self.last_id = event_id
        self.ids.append(event_id)

    def due(self, partition):
        """Return the offsets of the events that this reader is to get."""
        return [
            record.offset
            for record in self.shop.log[partition]
            if record.offset >= self.from_offsets[partition] and self.user_id in {None, record.message.fact.user_id}
        ]

    def take(self, most):
        """Read up to so many events; where there are no more, send what a heartbeat has."""
        newest = self.shop.views.newest_checkpoint()
        while page := self.shop.runner.run(self.position.page()):
            for recorded in page:
                if most == 0:
                    return
                most -= 1
                if self.position.advance(recorded):
                    self.position.pass_checkpoint(newest, {})  # as in a live stream: it may be further than the reader
                    self.check(recorded)
                    self.show(self.position.id)
        self.position.pass_checkpoint(newest, {})
        self.show(self.position.id)

    def check(self, recorded):
        """Check that all events of the partition before this one were received."""
        self.received.add((recorded.partition, recorded.offset))
        before = [offset for offset in self.due(recorded.partition) if offset < recorded.offset]
        assert all((recorded.partition, offset) in self.received for offset in before), "an event was skipped"

    def check_all(self):
        everything = {(number, offset) for number in range(len(self.shop.log)) for offset in self.due(number)}
        assert everything <= self.received


PARTITIONS = 4
partition_counts = st.dictionaries(st.integers(0, PARTITIONS - 1), st.integers(1, 5), min_size=1)
steps = st.one_of(
    partition_counts.map(lambda counts: lambda shop, _: shop.write_some(counts)),
    partition_counts.map(lambda counts: lambda shop, _: shop.project(counts)),
    st.integers(0, 12).map(lambda most: lambda _, readers: [reader.take(most) for reader in readers]),
    st.sampled_from(
        [
            lambda shop, _: shop.store(10),
            lambda shop, _: shop.store(stored.HOUR_S),
            lambda shop, _: shop.rebuild(),
            lambda shop, _: shop.lose_checkpoint(),
            lambda _, readers: [reader.reconnect() for reader in readers],
        ]
    ),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=10, max_size=40), st.integers(34, 60))
def test_a_reader_that_resumes_never_misses_an_event(monkeypatch, todo, id_max_bytes):
    """Whatever partitions and projectors do, and wherever the reader is cut off."""
    monkeypatch.setattr(live_positions, "ID_MAX_BYTES", id_max_bytes)
    monkeypatch.setattr(live_positions, "PAGE", 3)
    monkeypatch.setattr(LogPosition, "_needs_checkpoint", lambda _: True)
    with TemporaryDirectory() as directory:
        engine = open_database(make_url(f"sqlite:///{Path(directory)}/views.db"), writes=True)
        prepare(engine)
        shop = Shop(engine, PARTITIONS)
        shop.store(0)
        readers = [Reader(shop, None), Reader(shop, "dana")]
        for step in todo:
            step(shop, readers)
        shop.project(dict.fromkeys(range(PARTITIONS), 1000))
        for reader in readers:
            reader.reconnect()
            reader.take(10_000)
            reader.check_all()
            assert all(len(each) <= id_max_bytes for each in reader.ids)
        shop.runner.close()
        engine.dispose()


MANY = 1000
BILLION = 10**9


@pytest.fixture
def large(engine, monkeypatch):
    """A log of a thousand partitions with a billion events each, of which the views hold none but the positions."""
    monkeypatch.setattr(stored, "APART_S", 0)
    shop = Shop(engine, MANY)
    with engine.begin() as connection:
        connection.execute(positions.update().values(next_offset=BILLION))
    for partition in range(MANY):
        shop.write(partition, "erin")  # it was read long ago
        shop.log[partition] = [OutcomeRecord(shop.log[partition][0].message, partition, BILLION - 1, b"", 0)]
    shop.open()
    yield shop
    shop.runner.close()


@pytest.mark.parametrize("user_id", [None, "dana"])
def test_ids_of_a_thousand_partitions_are_short_and_resume(large, user_id):
    chance = Random(1)
    assert large.projections[0].store_checkpoint()
    reader = Reader(large, user_id)
    first = reader.last_id
    for _ in range(2):
        for partition in chance.sample(range(MANY), 150):
            large.write(partition, chance.choice(["dana", "erin"]))
        large.project(dict.fromkeys(range(MANY), 10))
        reader.take(chance.randint(50, 100))
        reader.reconnect()
        assert large.projections[1].store_checkpoint()
    reader.take(10_000)
    reader.check_all()
    assert reader.last_id.startswith("c"), "it names a checkpoint"
    assert all(len(each) <= ID_MAX_BYTES for each in reader.ids)
    assert len(write_offsets(reader.position._offsets)) > 14_000

    received, reader.received = reader.received, set()
    reader.reconnect()
    reader.take(10_000)
    assert reader.received == set(), "it has passed the newest checkpoint, so nothing is repeated"
    reader.last_id = first
    reader.reconnect()
    reader.take(10_000)
    assert reader.received == received

    long_id = write_offsets({(TOPIC, number): BILLION for number in range(MANY)})
    reader.last_id, reader.received = long_id, set()
    reader.reconnect()
    assert reader.last_id == long_id, "an id of the form that holds all offsets stays valid"
    reader.take(10_000)
    assert reader.received == received
    assert len(reader.last_id) <= ID_MAX_BYTES


def test_a_reader_that_is_behind_moves_its_id_before_it_has_read_every_partition(large, monkeypatch):
    monkeypatch.setattr(queries, "STEP_OFFSETS", 1)
    large.projections[0].store_checkpoint()
    reader = Reader(large, None)
    stored_here = [large.views.newest_checkpoint()]
    for _ in range(2):
        for partition in range(0, MANY, 50):
            for _ in range(3):
                large.write(partition, "dana")
        large.project(dict.fromkeys(range(MANY), 10))
        assert large.projections[0].store_checkpoint()
        stored_here.append(large.views.newest_checkpoint())
    passed = [reader.position._passed]
    while len(passed) < len(stored_here):
        reader.take(10)
        if reader.position._passed != passed[-1]:
            passed.append(reader.position._passed)
    assert passed == stored_here
    reader.check_all()


def test_an_id_of_another_database_is_of_no_checkpoint_here(large):
    assert position_of(f"c{A}.{B}.0-5", large.views, TOPIC, {}) is None
    large.projections[0].store_checkpoint()
    newest = large.views.newest_checkpoint()
    resumed: Any = position_of(f"c{newest.checkpoint_id}.{'0' * 16}.1-7", large.views, TOPIC, {})
    offsets, checkpoint = resumed
    assert checkpoint == newest
    assert offsets[TOPIC, 1] == BILLION, "an offset before the checkpoint does not move a reader back behind it"

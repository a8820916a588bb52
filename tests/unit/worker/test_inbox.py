"""The inbox: what lanes may queue, and what a turn takes of each."""

from aiokafka import ConsumerRecord

from order_service.worker.inbox import HIGH, HIGH_BYTES, LOW, TAKEN_BYTES, Inbox
from tests.support.samples import pay

LANES = 300
TURN = 2_000


class Fetched:
    """An inbox, and the partitions that are fetched for it: those that it has not paused."""

    def __init__(self, lane_count):
        self.fetched = set(range(lane_count))
        self.inbox = Inbox(self.fetched.discard, self.fetched.add)
        self.count = dict.fromkeys(range(lane_count), 0)
        self.bytes = 0
        for partition in range(lane_count):
            self.inbox.open(partition)

    def put(self, partition, count, size_bytes=100):
        value = b"x" * size_bytes
        record = ConsumerRecord("commands", partition, 0, 0, 0, b"", value, None, 0, size_bytes, ())
        self.inbox.put(partition, [(record, pay)] * count)
        self.count[partition] += count
        self.bytes += count * size_bytes

    def fill(self, count, size_bytes=100):
        """Put runs of so many commands until every partition is paused."""
        while self.fetched:
            for partition in sorted(self.fetched):
                self.put(partition, count, size_bytes)

    def take(self, closed=frozenset()):
        taken = self.inbox.take(TURN, set(closed))
        size = sum(len(record.value) for lane in taken.values() for record, _ in lane)
        for partition, lane in taken.items():
            self.count[partition] -= len(lane)
        self.bytes -= size
        return taken, size


def test_a_single_lane_queues_as_many_as_it_may_alone():
    world = Fetched(LANES)
    while 7 in world.fetched:
        world.put(7, 100)
    assert world.count[7] == HIGH.of_lane
    assert world.fetched == set(range(LANES)) - {7}


def test_the_commands_of_all_lanes_are_bounded_however_many_lanes_there_are():
    world = Fetched(LANES)
    world.fill(100)
    assert sum(world.count.values()) <= 2 * HIGH.of_worker + LANES * 100
    assert min(world.count.values()) >= HIGH.of_worker / LANES


def test_the_size_of_all_lanes_is_bounded_however_many_lanes_there_are():
    world = Fetched(LANES)
    world.fill(1, 200_000)
    assert world.bytes <= 2 * HIGH_BYTES.of_worker + LANES * 200_000


def test_a_lane_that_queues_little_is_fetched_although_others_queue_all_that_a_worker_may():
    world = Fetched(20)
    for partition in range(10):
        while partition in world.fetched:
            world.put(partition, 500)
    world.put(15, 500)
    assert 15 in world.fetched


def test_each_paused_lane_is_fetched_again_when_it_is_short():
    world = Fetched(LANES)
    world.fill(100)
    while any(world.count.values()):
        world.take()
    assert world.fetched == set(range(LANES))


def test_a_lane_alone_is_fetched_again_before_it_is_empty():
    world = Fetched(1)
    world.fill(1_000)
    while not world.fetched:
        world.take()
    assert 0 < world.count[0] < LOW.of_lane


def test_a_turn_takes_a_bounded_size_and_every_lane_has_its_time():
    """Large commands of all lanes in one transaction could not be committed within the deadline."""
    world = Fetched(LANES)
    for partition in range(LANES):
        world.put(partition, 2, 1024 * 1024)
    served = set()
    for _ in range(LANES * 1024 * 1024 // TAKEN_BYTES.of_worker + 1):
        taken, size = world.take()
        assert size <= TAKEN_BYTES.of_worker + 1024 * 1024
        served |= taken.keys()
    assert served == set(range(LANES))


def test_a_turn_takes_the_same_of_each_lane_and_all_that_one_lane_alone_has():
    world = Fetched(4)
    for partition in range(4):
        world.put(partition, 1_000)
    taken, _ = world.take()
    assert {partition: len(lane) for partition, lane in taken.items()} == dict.fromkeys(range(4), 500)
    taken, _ = world.take(closed={0, 1, 2})
    assert {partition: len(lane) for partition, lane in taken.items()} == {3: 500}


def test_another_lane_comes_first_each_time():
    world = Fetched(3)
    firsts = []
    for _ in range(4):
        for partition in range(3):
            world.put(partition, 1)
        firsts.append(next(iter(world.take()[0])))
    assert firsts == [0, 1, 2, 0]


def test_what_a_closed_lane_had_queued_no_longer_counts():
    world = Fetched(2)
    world.fill(1_000)
    for partition in range(2):
        world.inbox.close(partition)
        world.inbox.open(partition)
        world.fetched.add(partition)
    world.put(0, 1)
    assert world.inbox._count_of_all == 1
    assert world.inbox._bytes_of_all == 100

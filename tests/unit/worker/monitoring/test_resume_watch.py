"""Parked lanes that an operator resumes: the end of the operations tells."""

import asyncio

from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from structlog.testing import capture_logs

from order_service.worker.monitoring.resume_watch import LOOK_EVERY_S, ResumeWatch


class Operations:
    """The ends of the operations topic, and a watch of it at a time that the test sets."""

    def __init__(self):
        self.ends = dict.fromkeys(range(4), 0)
        self.asked = []
        self.error = None
        self.now = 100.0
        self.watch = ResumeWatch("operations", self._read, clock=lambda: self.now)

    async def _read(self, partitions):
        self.asked.append([partition for _, partition in partitions])
        if self.error is not None:
            raise self.error
        return {TopicPartition(topic, partition): self.ends[partition] for topic, partition in partitions}

    def look(self, *parked, claiming=()):
        """Return what was resumed, `LOOK_EVERY_S` later."""
        self.now += LOOK_EVERY_S
        return asyncio.run(self.watch.resumed(parked, claiming))


def test_a_lane_is_resumed_by_a_record_that_comes_after_it_was_parked():
    operations = Operations()
    operations.ends[1] = 7
    assert operations.look(1, 2) == []
    operations.ends[1] = 8
    assert operations.look(1, 2) == [1]
    assert operations.look(2, claiming=[1]) == []
    assert operations.look(1, 2) == [], "the claim has parked it again: the same record does not count twice"
    operations.ends[1] = 9
    assert operations.look(1, 2) == [1]


def test_a_record_that_came_while_the_lane_was_claimed_again_counts():
    operations = Operations()
    operations.look(1)
    operations.look(claiming=[1])
    operations.ends[1] = 1
    assert operations.look(1) == [1], "the claim that it came too late for has parked the lane again"


def test_a_record_that_came_before_the_first_claim_parked_the_lane_counts():
    operations = Operations()
    assert operations.look(claiming=[1]) == []
    operations.look(claiming=[1])
    assert operations.asked == [[1]], "the end of a lane that is claimed is read once"
    operations.ends[1] = 1
    assert operations.look(1) == [1], "the claim may have read the topics before"


def test_a_record_that_came_between_a_claim_and_the_first_look_counts():
    operations = Operations()
    asyncio.run(operations.watch.note([1, 2]))
    operations.ends[1] = 1
    assert operations.look(1, 2) == [1]
    operations.ends[2] = 1
    asyncio.run(operations.watch.note([2]))
    assert operations.asked == [[1, 2], [1, 2]], "a known end stays valid"
    assert operations.look(2) == [2]


def test_a_record_that_came_while_the_lane_ran_does_not_count():
    operations = Operations()
    operations.look(1)
    operations.look()  # it runs
    operations.ends[1] = 1
    assert operations.look(1) == []


def test_the_broker_is_asked_only_while_lanes_are_parked_and_at_once_for_a_new_one():
    operations = Operations()
    assert operations.look() == []
    assert operations.asked == []
    operations.look(2, 1)
    operations.now -= LOOK_EVERY_S  # no time has passed
    operations.look(1, 2)
    operations.now -= LOOK_EVERY_S
    operations.look(1, 2, 3)
    assert operations.asked == [[1, 2], [1, 2, 3]]


def test_a_missing_right_is_logged_once_and_its_end_is_read_later():
    operations = Operations()
    operations.error = TopicAuthorizationFailedError("operations")
    with capture_logs() as logs:
        assert [operations.look(1), operations.look(1)] == [[], []]
    assert [line["event"] for line in logs] == ["Resumed lanes are not noticed: the operations cannot be read."]
    operations.error = None
    assert operations.look(1) == []
    operations.ends[1] = 1
    assert operations.look(1) == [1]

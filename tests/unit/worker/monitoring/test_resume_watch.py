"""Parked lanes that an operator resumes: the end of the operations tells."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from structlog.testing import capture_logs

from order_service.errors import TopicsError
from order_service.worker.monitoring import resume_watch
from order_service.worker.monitoring.resume_watch import ENDS_READ_WITHIN_S, LOOK_EVERY_S, CommittedEnds, ResumeWatch


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

    def claim(self, *partitions):
        """Read the ends before these partitions are claimed."""
        asyncio.run(self.watch.read_before_claims(partitions))

    def look(self, *parked):
        """Return what was resumed, `LOOK_EVERY_S` later."""
        self.now += LOOK_EVERY_S
        return asyncio.run(self.watch.resumed(lambda: parked))


def claimed():
    """Make operations whose partition 1 ends at 7, before lanes 1 and 2 are claimed."""
    operations = Operations()
    operations.ends[1] = 7
    operations.claim(1, 2)
    return operations


def test_a_lane_is_resumed_by_a_record_that_comes_after_its_claim_began():
    operations = claimed()
    assert operations.look(1, 2) == []
    operations.ends[1] = 8
    assert operations.look(1, 2) == [1]
    assert operations.look(2) == [], "lane 1 is claimed again"
    assert operations.look(1, 2) == [], "the claim has parked it again: the same record does not count twice"
    operations.ends[1] = 9
    assert operations.look(2) == []
    assert operations.look(1, 2) == [1], "it came while the lane was claimed again, maybe too late for that claim"


def test_an_end_that_is_known_stays_valid_while_the_partition_is_assigned():
    operations = claimed()
    operations.ends = dict.fromkeys(range(4), 9)
    operations.claim(1, 2, 3)
    assert operations.asked == [[1, 2], [3]]
    assert operations.look(1, 2, 3) == [1, 2]
    operations.claim(3)
    operations.ends[1] = 10
    operations.claim(1, 3)
    assert operations.look(1, 3) == [], "another worker had it in between"


def test_the_broker_is_asked_only_while_lanes_are_parked_and_not_too_often():
    operations = claimed()
    assert operations.look() == []
    operations.look(2, 1)
    operations.now -= LOOK_EVERY_S  # no time has passed
    operations.look(1, 2)
    assert operations.asked == [[1, 2], [1, 2]]


@pytest.mark.parametrize("error", [TopicAuthorizationFailedError("operations"), TopicsError("it is missing")])
def test_a_lane_whose_end_was_not_read_before_its_claim_counts_as_resumed_once(error):
    operations = Operations()
    operations.error = error
    with capture_logs() as logs:
        operations.claim(1)
        assert operations.look(1) == []
    assert [line["event"] for line in logs] == ["The operations topic cannot be read; resumed lanes are not detected."]
    operations.error = None
    assert operations.look(1) == [1], "an operator may have recorded it meanwhile"
    assert operations.look(1) == []


def test_an_end_that_was_read_when_claims_no_longer_waited_for_it_does_not_count():
    operations = Operations()

    async def read_late(_partitions):
        operations.now += ENDS_READ_WITHIN_S + 0.1
        return {TopicPartition("operations", 1): 1}

    operations.watch._read_ends = read_late
    operations.claim(1)
    assert operations.look(1) == [1]


def test_an_end_that_was_read_while_the_lane_was_claimed_again_counts_when_it_is_parked():
    operations = claimed()
    operations.ends[2] = 1
    parked = iter([[2], []])
    operations.now += LOOK_EVERY_S
    assert asyncio.run(operations.watch.resumed(lambda: next(parked))) == []
    assert operations.look(2) == [2]


async def test_a_partition_without_a_leader_hides_no_other(monkeypatch):
    led, away = TopicPartition("operations", 0), TopicPartition("operations", 1)
    cluster = SimpleNamespace(leader_for_partition=lambda partition: -1 if partition == away else 1)

    async def leaderless(*_):
        return [away]

    async def end_offsets(partitions):
        assert partitions
        return dict.fromkeys(partitions, 5)

    client: Any = SimpleNamespace(_client=SimpleNamespace(cluster=cluster), end_offsets=end_offsets)
    monkeypatch.setattr(resume_watch, "leaderless", leaderless)
    ends = CommittedEnds({})
    ends._client = client
    assert await ends.read([led, away]) == {led: 5}
    assert await ends.read([away]) == {}

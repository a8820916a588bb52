"""The steps of a rebuild, on topics in memory: what the takeover writes, and what a second rebuild finds."""

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from msgspec import structs

from order_service.errors import DamagedError, KafkaAwayError
from order_service.operations import takeover
from order_service.operations.rebuild import rebuild as rebuilding
from order_service.operations.rebuild.rebuild import Wanted, _Rebuilding
from order_service.operations.rebuild.rebuild_plan import PartitionLook, Progress
from order_service.operations.takeover import KEPT
from order_service.settings import Settings
from order_service.wire import changelog
from tests.support.samples import create
from tests.unit.operations.topics_in_memory import (
    EVENTS,
    OPERATIONS,
    TABLE,
    WAITING,
    MemoryLock,
    MemoryReader,
    Topics,
    honest,
    named,
    no_sleep,
)


class MemoryClients:
    """The clients of a rebuild. `fenced` has the owners that were fenced, `hidden` what open transactions hide."""

    def __init__(self, topics):
        self.topics = topics
        self.fenced = []
        self.hidden = {}

    async def ends(self, partitions):
        return {
            partition: self.topics.ends[partition[0]] + self.hidden.get(partition[0], 0) for partition in partitions
        }

    async def fence(self, owner):
        self.fenced.append(owner)


class Rebuild:
    """A rebuild of partition 0 that is confirmed. `failpoint` is called after each step."""

    def __init__(self, monkeypatch, topics, failpoint=lambda _: None, *, accept_loss=False):
        reader: Any = MemoryReader(topics)
        clients: Any = MemoryClients(topics)
        self.topics, self.reader, self.clients, self.fenced = topics, reader, clients, clients.fenced

        @asynccontextmanager
        async def claiming(*_):
            yield MemoryLock(topics)

        async def fence(owner, _arguments):
            self.fenced.append(owner)

        async def no_rights(*_):
            """Return: all rights are granted."""

        async def all_owners(*_):
            return ["orders-worker-one", "orders-worker-two"]

        monkeypatch.setattr(takeover, "claiming", claiming)
        monkeypatch.setattr(takeover, "fence", fence)
        monkeypatch.setattr(rebuilding, "check_rights", no_rights)
        monkeypatch.setattr(rebuilding, "ask_admin", all_owners)
        look = PartitionLook(reader, 0, 1, Progress(lambda _: None, lambda _: None))
        wanted = Wanted("user:test", "a test", is_confirmed=True, accept_loss=accept_loss)
        self._rebuilding = _Rebuilding(reader, Settings(), look, 0, wanted, "operation", clients, no_sleep, failpoint)

    async def running(self):
        return await rebuilding._run(self._rebuilding, dict(self.topics.ends), settled_at=0.0)

    def run(self):
        """Run it, and return its result."""
        return asyncio.run(self.running())


class Killed(BaseException):
    """The process of the rebuild is gone."""


def killed_at(step):
    """Return a failpoint that ends the rebuild at this step."""

    def reached(name):
        if name == step:
            raise Killed

    return reached


def set_position(topics, **changes):
    """Change the newest position."""
    index, position = topics.position()
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(position, **changes)))


def lost_waiting_room(waiting_count):
    """Lose the waiting room of a partition; its position has this number of waiting commands."""
    topics = honest()
    set_position(topics, waiting_count=waiting_count)
    topics.records[WAITING].clear()
    topics.ends[WAITING] = 0
    return topics


@pytest.mark.parametrize("waiting_count", [None, 0, 2])
def test_commands_of_a_lost_waiting_room_wait_again(monkeypatch, waiting_count):
    topics = lost_waiting_room(waiting_count)
    result = Rebuild(monkeypatch, topics).run()
    assert (result.is_written, result.waiting_added) == (True, 2)
    assert len(topics.records[OPERATIONS]) == 1


def test_a_takeover_that_is_killed_does_not_hide_a_lost_waiting_room(monkeypatch):
    topics = Topics()
    topics.append(WAITING, changelog.BARRIER_KEY, b"of the first claim")
    topics.send(named(create, "o-1"))
    set_position(topics, ends=structs.replace(topics.position()[1].ends, waiting=2))
    topics.records[WAITING].clear()
    topics.ends[WAITING] = 0
    with pytest.raises(Killed):
        Rebuild(monkeypatch, topics, killed_at("rebuild.locked")).run()
    result = Rebuild(monkeypatch, topics).run()
    assert (result.is_intact, result.is_written) == (False, True)
    assert len(topics.records[WAITING]) == 1, "an empty one would be a loss for the next claim"


def test_a_takeover_that_is_killed_does_not_hide_a_truncated_waiting_room(monkeypatch):
    topics = honest()
    set_position(topics, ends=structs.replace(topics.position()[1].ends, waiting=topics.ends[WAITING] + 1))
    with pytest.raises(Killed):
        Rebuild(monkeypatch, topics, killed_at("rebuild.locked")).run()
    assert Rebuild(monkeypatch, topics).run().is_written


def meanwhile(step, act):
    """Return a failpoint that calls `act` once at this step, in a thread with its own event loop."""

    def reached(name):
        nonlocal act
        if name == step:
            act, acting = (lambda: None), threading.Thread(target=act)
            acting.start()
            acting.join()

    return reached


def test_a_partition_that_a_second_operator_has_repaired_is_not_written_again(monkeypatch):
    topics = honest()
    topics.records[TABLE].clear()
    other = Rebuild(monkeypatch, topics)
    rebuild = Rebuild(monkeypatch, topics, meanwhile("rebuild.fenced", other.run))
    result = rebuild.run()
    assert (result.is_intact, result.is_written, result.refusal) == (True, False, "")
    assert len(topics.records[OPERATIONS]) == 1


def test_all_workers_are_fenced_if_the_table_loses_its_last_records_meanwhile(monkeypatch):
    topics = lost_waiting_room(2)

    def lose_table():
        del topics.records[TABLE][3:]

    rebuild = Rebuild(monkeypatch, topics, meanwhile("takeover.locked", lose_table))
    assert rebuild.run().is_written
    assert {"orders-worker-one", "orders-worker-two"} <= set(rebuild.fenced)


async def no_answer(*_):
    """Wait for a coordinator that never answers."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("hangs", ["lock", "owner", "all owners"])
def test_a_coordinator_that_does_not_answer_ends_the_takeover_in_time(monkeypatch, hangs):
    topics = lost_waiting_room(2)
    if hangs == "all owners":
        topics.records[TABLE].clear()
    rebuild = Rebuild(monkeypatch, topics)
    monkeypatch.setattr(takeover, "START_WITHIN_S", 0.5, raising=False)
    if hangs == "lock":
        monkeypatch.setattr(takeover, "claiming", asynccontextmanager(hanging_lock))
    monkeypatch.setattr(takeover, "fence", no_answer)
    monkeypatch.setattr(MemoryClients, "fence", no_answer)
    with pytest.raises(KafkaAwayError, match="did not start within"):
        asyncio.run(asyncio.wait_for(rebuild.running(), 5))


async def hanging_lock(*_):
    yield await no_answer()


@pytest.mark.parametrize("damaged", [EVENTS, None])
def test_a_refusal_after_the_first_write_says_that_what_was_written_is_kept(monkeypatch, damaged):
    topics = honest()
    topics.records[TABLE].clear()

    def take_over():
        """Take the lock as a claim does, and damage the events."""
        MemoryLock(topics)
        if damaged:
            rebuild.reader.error = DamagedError(TopicPartition(EVENTS, 0), 10**6)
        else:
            topics.append(EVENTS, *[getattr(topics.records[EVENTS][0], name) for name in ("key", "value", "headers")])

    rebuild = Rebuild(monkeypatch, topics, meanwhile("rebuild.begun", take_over))
    refusal = rebuild.run().refusal
    assert "damaged" in refusal if damaged else "does not follow" in refusal
    assert refusal.endswith(f"; {KEPT}")


def test_an_open_transaction_of_another_program_is_named_with_what_to_do(monkeypatch):
    topics = honest()
    topics.append(TABLE, b"o-1", None)
    monkeypatch.setattr(takeover, "VISIBLE_WITHIN_S", 0.0)
    rebuild = Rebuild(monkeypatch, topics)
    rebuild.clients.hidden = {EVENTS: 2}
    with pytest.raises(KafkaAwayError, match=f"open on {EVENTS} partition 0 .*hanging-transactions.md"):
        rebuild.run()

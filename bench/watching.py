"""Watching committed events from outside: how fast a topic grows, when each event was seen, that none is wrong."""

import gc
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from confluent_kafka import Consumer, IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from msgspec import Struct

from order_service.wire import avro
from tests.support.service import Service, WorkerProcess

STILL_S = 2.0
SILENCE_S = 30.0


class WrongResult(Exception):
    """An event was lost, doubled or out of order: no figure is worth anything then."""


class Ends:
    """The ends of a topic as a committed reader knows them (last stable offsets), summed over its partitions."""

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
        self._places = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in range(partitions)}

    def sum(self) -> int:
        """Ask the broker."""
        found = self._admin.list_offsets(self._places, isolation_level=IsolationLevel.READ_COMMITTED)
        return sum(int(future.result(30).offset) for future in found.values())

    def until_first(self, *, every_s: float = 0.005, within_s: float = 60.0) -> float:
        """Wait until the sum grows, and give the time (monotonic) at which it was seen to."""
        before, give_up_at = self.sum(), time.monotonic() + within_s
        while self.sum() == before:
            if time.monotonic() > give_up_at:
                raise WrongResult(f"no new event within {within_s:.0f} s")
            time.sleep(every_s)
        return time.monotonic()


class Growing(Protocol):
    """What grows until all is done."""

    def sum(self) -> int:
        """Return how much is done."""


def growth_per_s(
    ends: Growing,
    goal: int,
    *workers: WorkerProcess,
    every_s: float = 0.03,
    silence_s: float = SILENCE_S,
    grown: Callable[[float, int], None] = lambda _now, _end: None,
) -> float:
    """Return the records per second from the first commit that is seen to the last.

    Only what came after that first commit counts. It is the last when nothing came for 2 s and the goal is reached;
    transaction markers take an offset too, and are left out by the share that they have of all. `grown` is called with
    the time (monotonic) and the count whenever that has grown.
    """
    first: tuple[float, int] | None = None
    last = (time.monotonic(), 0)
    while True:
        end = ends.sum()  # a first answer can take 3 s
        now = time.monotonic()
        if end != last[1]:
            last = now, end
            first = first or last
            grown(now, end)
        if end >= goal and now - last[0] > STILL_S:
            break
        for worker in workers:
            if worker.process.poll() is not None:
                raise WrongResult(f"{worker.name} ended with {worker.process.returncode}")
        if now - last[0] > silence_s:
            raise WrongResult(f"{end} of {goal} events, and for {silence_s:.0f} s no more of them")
        time.sleep(every_s)
    if first is None or first == last:
        raise WrongResult("all was there before the first look: take a larger size")
    return (last[1] - first[1]) * goal / last[1] / (last[0] - first[0])


class Seen(Struct, frozen=True):
    """When a command was sent and its event was decided and seen (monotonic ns, and seconds since 1970)."""

    sent_ns: int
    seen_ns: int
    occurred_at: float
    partition: int

    @property
    def latency_ms(self) -> float:
        """The time from produce to the event in a consumer's hands."""
        return (self.seen_ns - self.sent_ns) / 1e6


def listen(pipe: "Connection[Any, Any]", servers: str, topic: str, partitions: int) -> None:
    """Take committed events as they come, in a process of its own: say when ready, end at a count, tell all."""
    gc.disable()  # a collection here would look like a pause of the service
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "none",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 10,
        }
    )
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    for place in places:
        place.offset = consumer.get_watermark_offsets(place, timeout=30)[1]
    consumer.assign(places)
    consumer.poll(0.5)
    pipe.send("ready")
    taken = list(_take(consumer, pipe))
    pipe.send([_seen(seen_ns, partition, value) for seen_ns, partition, value in taken])


def _take(consumer: Consumer, pipe: "Connection[Any, Any]") -> Iterable[tuple[int, int, bytes]]:
    """Take what comes until the count is reached that the pipe names; a little longer, to see what is too much."""
    goal, count, last_at = float("inf"), 0, time.monotonic()
    while True:
        message = consumer.poll(0.05)
        if message is not None and message.error() is None:
            yield time.monotonic_ns(), message.partition() or 0, message.value() or b""
            count, last_at = count + 1, time.monotonic()
            continue
        if pipe.poll():
            goal, last_at = pipe.recv(), time.monotonic()
        silence_s = time.monotonic() - last_at
        if goal != float("inf") and silence_s > (0.5 if count >= goal else SILENCE_S):
            return


def _seen(seen_ns: int, partition: int, value: bytes) -> Seen:
    event = avro.decode_event(value)
    return Seen(int(event.correlation_id or 0), seen_ns, event.occurred_at.timestamp(), partition)


def check(service: Service, command_count: int) -> None:
    """See that every command has one event, and every order's versions run from 1 without a hole."""
    events = service.events()
    repeated = [command for command, times in Counter(event.command_id for event in events).items() if times > 1]
    if len(events) != command_count or repeated:
        refused = Counter(rejection.reason for rejection in service.rejections())
        raise WrongResult(
            f"{len(events)} events for {command_count} commands, {len(repeated)} doubled; refused: {dict(refused)}; "
            f"dead letters: {len(service.dead_letters())}"
        )
    versions: defaultdict[str, list[int]] = defaultdict(list)
    for event in events:
        versions[event.order_id].append(event.version)
    if any(found != list(range(1, len(found) + 1)) for found in versions.values()):
        raise WrongResult("the versions of an order have a hole or are out of order")

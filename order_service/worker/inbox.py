"""The inbox: commands that were read and are not taken into a turn yet, per lane."""

from collections import deque
from collections.abc import Callable
from typing import Final

from aiokafka import ConsumerRecord
from msgspec import Struct

from order_service.domain.messages import Command
from order_service.errors import DecodeError

HIGH: Final = 8_000
"""Commands at which a lane's partition pauses; one more run, of 1 MiB at most, can be on its way then."""
LOW: Final = 2_000
HIGH_BYTES: Final = 16 * 1024 * 1024
MOST_BYTES: Final = 4 * 1024 * 1024
"""Taken of a lane at once: what is made of it must be committed within the deadline."""

Received = tuple["ConsumerRecord[bytes, bytes]", Command | DecodeError]
"""A record of the commands topic, and what it was decoded to."""


class Run(Struct, frozen=True):
    """Records of one partition that were fetched together: the `number`-th run since its partition's `seek`."""

    seek: int
    number: int
    records: list["ConsumerRecord[bytes, bytes]"]


class Inbox:
    """A queue per lane. `pause` and `resume` are called with a partition when its queue is long, and short again."""

    def __init__(self, pause: Callable[[int], None], resume: Callable[[int], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._queues: dict[int, deque[Received]] = {}
        self._bytes: dict[int, int] = {}
        self._paused: set[int] = set()
        self._held: set[int] = set()
        self._turn = 0

    def open(self, partition: int) -> None:
        """Begin, or begin anew, the queue of a partition."""
        self._queues[partition] = deque()
        self._bytes[partition] = 0
        self._paused.discard(partition)

    def close(self, partition: int) -> None:
        """Drop what is in the queue of a partition: it is in the log, and read again by whoever decides it."""
        self._queues.pop(partition, None)
        self._paused.discard(partition)
        self._held.discard(partition)

    def hold(self, partition: int) -> None:
        """Stop the fetching of a partition while its runs wait for something else."""
        self._held.add(partition)
        self._pause(partition)

    def release(self, partition: int) -> None:
        """Fetch a held partition again, unless its queue is long."""
        if partition in self._held:
            self._held.discard(partition)
            if partition in self._queues and partition not in self._paused:
                self._resume(partition)

    def put(self, partition: int, received: list[Received]) -> None:
        """Add what was read of a partition."""
        queue = self._queues[partition]
        queue.extend(received)
        self._bytes[partition] += sum(map(_size, received))
        if (len(queue) >= HIGH or self._bytes[partition] >= HIGH_BYTES) and partition not in self._paused:
            self._paused.add(partition)
            self._pause(partition)

    def is_empty(self, partition: int) -> bool:
        """Tell whether nothing is queued for a partition."""
        return not self._queues.get(partition)

    def has_any(self, closed: set[int]) -> bool:
        """Tell whether `take` would give anything."""
        return any(queue and partition not in closed for partition, queue in self._queues.items())

    def take(self, most: int, closed: set[int]) -> dict[int, list[Received]]:
        """Take up to `most` commands, evenly over the lanes and beginning with another one each time.

        Lanes in `closed` are passed over: they can take no more for now.
        """
        filled = sorted(partition for partition, queue in self._queues.items() if queue and partition not in closed)
        if not filled:
            return {}
        self._turn += 1
        first = self._turn % len(filled)
        taken = {}
        for lanes_left, partition in zip(range(len(filled), 0, -1), filled[first:] + filled[:first], strict=True):
            taken[partition] = self._take_from(partition, max(1, most // lanes_left))
            most -= len(taken[partition])
        return taken

    def _take_from(self, partition: int, most: int) -> list[Received]:
        queue, size = self._queues[partition], 0
        taken: list[Received] = []
        while queue and len(taken) < most and size < MOST_BYTES:
            taken.append(queue.popleft())
            size += _size(taken[-1])
        self._bytes[partition] -= size
        if partition in self._paused and len(queue) <= LOW and self._bytes[partition] < HIGH_BYTES // 4:
            self._paused.discard(partition)
            if partition not in self._held:
                self._resume(partition)
        return taken


def _size(received: Received) -> int:
    return len(received[0].value or b"")

"""The inbox: for each lane, the commands that were fetched but are not yet part of a turn."""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiokafka import ConsumerRecord
from msgspec import Struct

from order_service.domain.messages import Command
from order_service.errors import DecodeError
from order_service.wire.commands import decode_command

HIGH: Final = 8_000
"""Queued commands at which a partition is paused. One more run, of 1 MiB or one record, may still arrive."""
LOW: Final = 2_000
"""Queued commands at which a paused partition is resumed."""
HIGH_BYTES: Final = 16 * 1024 * 1024
MAX_BYTES: Final = 4 * 1024 * 1024
"""Bytes taken from a lane in one turn: the outcomes must be committed within the deadline."""

Received = tuple["ConsumerRecord[bytes, bytes]", Command | DecodeError]
"""A record of the commands topic, and its command or decode error."""


class Run(Struct, frozen=True):
    """Records of one partition that were fetched together: the `number`-th run since its partition's `seek`."""

    seek: int
    number: int
    records: list["ConsumerRecord[bytes, bytes]"]


class Inbox:
    """A queue per lane. It calls `pause` and `resume` with a partition whose queue has become long, or short again."""

    def __init__(self, pause: Callable[[int], None], resume: Callable[[int], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._queues: dict[int, deque[Received]] = {}
        self._bytes: dict[int, int] = {}
        self._paused: set[int] = set()
        self._held: set[int] = set()
        self._turn = 0

    def open(self, partition: int) -> None:
        """Start an empty queue for a partition."""
        self._queues[partition] = deque()
        self._bytes[partition] = 0
        self._paused.discard(partition)

    def close(self, partition: int) -> None:
        """Drop the queue of a partition. Its commands stay in the log, where the next owner reads them again."""
        self._queues.pop(partition, None)
        self._paused.discard(partition)
        self._held.discard(partition)

    def hold(self, partition: int) -> None:
        """Pause fetching of a partition while its runs wait, for example for the schema registry."""
        self._held.add(partition)
        self._pause(partition)

    def release(self, partition: int) -> None:
        """Resume fetching of a held partition, unless its queue is long."""
        if partition in self._held:
            self._held.discard(partition)
            if partition in self._queues and partition not in self._paused:
                self._resume(partition)

    def put(self, partition: int, received: list[Received]) -> None:
        """Add received commands to the queue of a partition."""
        queue = self._queues[partition]
        queue.extend(received)
        self._bytes[partition] += sum(map(_size, received))
        if (len(queue) >= HIGH or self._bytes[partition] >= HIGH_BYTES) and partition not in self._paused:
            self._paused.add(partition)
            self._pause(partition)

    def is_empty(self, partition: int) -> bool:
        """Return whether no command is queued for a partition."""
        return not self._queues.get(partition)

    def has_commands(self, closed: set[int]) -> bool:
        """Return whether `take` would return any command."""
        return any(queue and partition not in closed for partition, queue in self._queues.items())

    def take(self, limit: int, closed: set[int]) -> dict[int, list[Received]]:
        """Take up to `limit` commands, evenly over the lanes, starting with a different lane each time.

        Lanes in `closed` are skipped: they accept no commands for now.
        """
        filled = sorted(partition for partition, queue in self._queues.items() if queue and partition not in closed)
        if not filled:
            return {}
        self._turn += 1
        first = self._turn % len(filled)
        taken = {}
        for lanes_left, partition in zip(range(len(filled), 0, -1), filled[first:] + filled[:first], strict=True):
            taken[partition] = self._take_from(partition, max(1, limit // lanes_left))
            limit -= len(taken[partition])
        return taken

    def _take_from(self, partition: int, limit: int) -> list[Received]:
        queue, size = self._queues[partition], 0
        taken: list[Received] = []
        while queue and len(taken) < limit and size < MAX_BYTES:
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


def decode_record(record: Any, *, is_past: bool = False) -> Received:
    """Return a record with its command or decode error. One that `is_past` may have the ids of an earlier version.

    The error is a new object. A raised one references its frames, which reference a record of up to 6 MiB, until the
    garbage collector runs. 3,000 of them took 3 GB.
    """
    try:
        return record, decode_command(record.value, is_past=is_past)
    except DecodeError as error:
        return record, DecodeError(error.reason, error.detail)

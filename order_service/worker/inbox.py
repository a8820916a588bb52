"""The inbox: for each lane, the commands that were fetched but are not yet part of a turn."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiokafka import ConsumerRecord
from msgspec import Struct

from order_service.domain.messages import Command
from order_service.errors import DecodeError
from order_service.wire.commands import decode_command
from order_service.worker.bounds import Bound

MIB: Final = 1024 * 1024
HIGH: Final = Bound(8_000, 64_000)
"""Queued commands at which a partition is paused. One more run, of 1 MiB or one record, may still arrive."""
HIGH_BYTES: Final = Bound(16 * MIB, 128 * MIB)
LOW: Final = Bound(2_001, 16_000)
"""Queued commands below which a paused partition is resumed: the commands of one turn are left."""
LOW_BYTES: Final = Bound(4 * MIB, 32 * MIB)
TAKEN_BYTES: Final = Bound(4 * MIB, 48 * MIB)
"""Bytes taken in one turn: the outcomes must be committed within the deadline."""

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
        self._first = 0
        self._count_of_all = 0
        self._bytes_of_all = 0

    def open(self, partition: int) -> None:
        """Start an empty queue for a partition."""
        self.close(partition)
        self._queues[partition] = deque()
        self._bytes[partition] = 0

    def close(self, partition: int) -> None:
        """Drop the queue of a partition. Its commands stay in the log, where the next owner reads them again."""
        self._count_of_all -= len(self._queues.pop(partition, ()))
        self._bytes_of_all -= self._bytes.pop(partition, 0)
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
        self._queues[partition].extend(received)
        size = sum(map(_size, received))
        self._count_of_all += len(received)
        self._bytes[partition] += size
        self._bytes_of_all += size
        if partition not in self._paused and self._has_reached(HIGH, HIGH_BYTES, partition):
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

        Lanes in `closed` are skipped: they accept no commands for now. Lanes that are left because the commands are
        large come first the next time.
        """
        filled = sorted(partition for partition, queue in self._queues.items() if queue and partition not in closed)
        if not filled:
            return {}
        start = bisect_left(filled, self._first)
        in_sequence = filled[start:] + filled[:start]
        self._first = in_sequence[0] + 1
        bytes_after = self._bytes_of_all - TAKEN_BYTES.of_worker
        taken = {}
        for lanes_left, partition in zip(range(len(filled), 0, -1), in_sequence, strict=True):
            bytes_left = self._bytes_of_all - bytes_after
            if bytes_left <= 0:
                self._first = partition
                break
            share = min(TAKEN_BYTES.of_lane, max(1, bytes_left // lanes_left))
            taken[partition] = self._take_from(partition, max(1, limit // lanes_left), share)
            limit -= len(taken[partition])
        return taken

    def _take_from(self, partition: int, limit: int, limit_bytes: int) -> list[Received]:
        queue, size = self._queues[partition], 0
        taken: list[Received] = []
        while queue and len(taken) < limit and size < limit_bytes:
            taken.append(queue.popleft())
            size += _size(taken[-1])
        self._count_of_all -= len(taken)
        self._bytes[partition] -= size
        self._bytes_of_all -= size
        if partition in self._paused and not self._has_reached(LOW, LOW_BYTES, partition):
            self._paused.discard(partition)
            if partition not in self._held:
                self._resume(partition)
        return taken

    def _has_reached(self, commands: Bound, size: Bound, partition: int) -> bool:
        lane_count = len(self._queues)
        return commands.is_reached(len(self._queues[partition]), self._count_of_all, lane_count) or size.is_reached(
            self._bytes[partition], self._bytes_of_all, lane_count
        )


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

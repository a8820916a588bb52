"""Follows the changelog of the waiting room, and lists the users that commands wait for."""

import asyncio
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.domain.messages import CreateOrder
from order_service.kafka.reader import Reader
from order_service.operations.overview.bounded_reads import ends_of_a_read, in_slices
from order_service.wire.changelog import decode_waiting

OFFSETS_MAX: Final = 20_000
"""How many offsets one call reads. The next call goes on."""
USERS_MAX: Final = 50
"""How many users are listed."""


class WaitingUser(Struct, frozen=True):
    """A user that commands wait for. `since` and `order_id` are those of the oldest command.

    `user_id` is None for commands whose create is not in the waiting room: they wait for an order, not for a user.
    """

    user_id: str | None
    command_count: int
    since: datetime
    order_id: str


class WaitingRoom(Struct, frozen=True):
    """The users that commands wait for, the longest waiting first. `is_complete` is False while it is still read."""

    is_complete: bool
    command_count: int
    user_count: int
    users: list[WaitingUser]


class _Waiting(Struct, frozen=True):
    user_id: str | None
    order_id: str
    since: datetime


class WaitingUsers:
    """What waits, as of the last `read`. It holds no command, only who waits for what since when."""

    def __init__(self, offsets_max: int = OFFSETS_MAX) -> None:
        self._offsets_max = offsets_max
        self._waiting: dict[bytes, _Waiting] = {}
        self._read_to: dict[TopicPartition, int] = {}

    async def read(self, reader: Reader) -> WaitingRoom:
        """Read what is new. Raises HistoryError for a command that cannot be decoded."""
        partitions = await reader.led_partitions(reader.names.waiting)
        starts, ends = await reader.starts(partitions), await reader.ends(partitions)
        if any(ends[each] < offset for each, offset in self._read_to.items() if each in ends):  # it was recreated
            self._waiting, self._read_to = {}, {}
        begins = {each: max(starts[each], self._read_to.get(each, 0)) for each in partitions}
        stops = ends_of_a_read(begins, ends, self._offsets_max)
        async for records in reader.between(begins, stops):
            async for taken in in_slices(records):
                self._apply(taken)
        self._read_to |= stops
        # Sorting a full waiting room takes a second: in this thread, every request would wait for that.
        return await asyncio.to_thread(list_users, [*self._waiting.values()], is_complete=stops == ends)

    def _apply(self, records: Iterable[ConsumerRecord]) -> None:
        for record in records:
            if record.value is None:
                self._waiting.pop(record.key, None)
            elif not record.key.startswith(b"\0"):  # positions, releases and barriers
                waiting = decode_waiting(record.value)
                command = waiting.command
                user_id = command.user_id if isinstance(command, CreateOrder) else None
                self._waiting[record.key] = _Waiting(user_id, command.order_id, waiting.queued_at)


def list_users(entries: Collection[_Waiting], *, is_complete: bool = True) -> WaitingRoom:
    """Return the users of waiting commands. The commands behind the create of an order count for its user."""
    oldest_first = sorted(entries, key=lambda each: each.since)
    user_of = {each.order_id: each.user_id for each in oldest_first if each.user_id is not None}
    by_user: dict[str | None, list[_Waiting]] = {}
    for each in oldest_first:
        by_user.setdefault(user_of.get(each.order_id), []).append(each)
    users = [
        WaitingUser(user_id, len(waiting), waiting[0].since, waiting[0].order_id)
        for user_id, waiting in by_user.items()
    ]
    return WaitingRoom(is_complete, len(oldest_first), len(users), users[:USERS_MAX])

"""The position of a reader in its stream. Its id is the `Last-Event-ID` that resumes there.

In the log of all events, an id holds the next offset of each partition. With many partitions that is too long, and the
id names a checkpoint that the reader has passed in every partition. So a reader that resumes never misses an event, and
gets those again that it received after the checkpoint in partitions for which the id had no room.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from order_service.views.checkpoints import ID_MAX_BYTES, Checkpoint, id_bytes
from order_service.views.queries import Offsets, StoredEvent, Views
from order_service.web.http.cursors import (
    read_checkpoint_position,
    read_offsets,
    write_checkpoint_position,
    write_offsets,
)

PAGE: Final = 100
"""How many events a page has at most. One of all events covers as many offsets; those of a user are found by an index.
"""


class OrderPosition:
    """A position in the history of an order: after a version."""

    def __init__(self, views: Views, order_id: str, version: int) -> None:
        self._views = views
        self._order_id = order_id
        self._version = version

    @property
    def id(self) -> str:
        """The version, as text."""
        return str(self._version)

    async def page(self) -> Sequence[StoredEvent]:
        """Return the next events of the order."""
        return await asyncio.to_thread(self._views.history, self._order_id, after_version=self._version, limit=PAGE)

    def advance(self, recorded: StoredEvent) -> bool:
        """Move past an event; return False if the position is already past it."""
        if recorded.event.version <= self._version:
            return False
        self._version = recorded.event.version
        return True

    def advance_to(self, offsets: Offsets) -> None:
        """Do nothing: the version alone is the position."""

    def pass_checkpoint(self, checkpoint: Checkpoint | None, reached: Offsets) -> None:
        """Do nothing: a version is short."""


class LogPosition:
    """A position in the log of all events, of which a user receives only their own."""

    def __init__(
        self, views: Views, topic: str, user_id: str | None, offsets: Offsets, checkpoint: Checkpoint | None = None
    ) -> None:
        self._views = views
        self._topic = topic
        self._user_id = user_id
        self._offsets = offsets
        self._is_long = False
        self._passed: Checkpoint | None = None
        """The newest checkpoint that the position has passed in every partition, as far as it is known."""
        self._beyond: dict[int, int] = {}
        """The next offset of each partition that is past that checkpoint."""
        self._step: Checkpoint | None = None
        """The checkpoint that a reader that is behind passes next."""
        self.pass_checkpoint(checkpoint, {})

    @property
    def id(self) -> str:
        """The next offset of each partition, as text, or a checkpoint where that is too long."""
        if self._passed is None or not self._needs_checkpoint():
            return write_offsets(self._offsets)
        return write_checkpoint_position(self._passed, self._beyond, ID_MAX_BYTES)

    async def page(self) -> Sequence[StoredEvent]:
        """Return the next events that the reader may see; without any, move to the end of the views.

        Where ids name checkpoints, all events up to one checkpoint come before those up to the next one. Partition by
        partition, the id would not move until the last partition is read.
        """
        while True:
            ends = await asyncio.to_thread(self._views.offsets)
            step = await self._next_step(ends)
            starts, until = self._spans(ends if step is None else step.by_partition(self._topic))
            page = await asyncio.to_thread(self._views.events_of, starts, until, user_id=self._user_id, limit=PAGE)
            if page:
                return page
            self.advance_to(until)
            if step is not None and not starts:
                self.pass_checkpoint(step, {})
                self._step = None
            elif not starts or self._user_id is not None:
                return page

    def advance(self, recorded: StoredEvent) -> bool:
        """Move past an event; return False if the position is already past it."""
        if recorded.offset < self._offsets.get((self._topic, recorded.partition), 0):
            return False
        self._move(recorded.partition, recorded.offset + 1)
        return True

    def advance_to(self, offsets: Offsets) -> None:
        """Move to `offsets`, never back: a user with few orders would otherwise read the events of all others again."""
        for (topic, partition), offset in offsets.items():
            if topic == self._topic and offset > self._offsets.get((topic, partition), -1):
                self._move(partition, offset)

    def pass_checkpoint(self, checkpoint: Checkpoint | None, reached: Offsets) -> None:
        """Use a newer checkpoint for ids if it is passed. The reader has received everything before `reached`."""
        if checkpoint is None or (self._passed is not None and checkpoint.total <= self._passed.total):
            return
        self.advance_to(reached)
        if checkpoint.is_passed_by(self._offsets, self._topic):
            self._passed = checkpoint
            self._beyond = {}
            passed = dict(enumerate(checkpoint.offsets))
            for (_, partition), offset in self._offsets.items():
                if offset > passed.get(partition, 0):
                    self._beyond[partition] = offset

    def _move(self, partition: int, offset: int) -> None:
        self._offsets[self._topic, partition] = offset
        if self._passed is not None:
            self._beyond[partition] = offset

    def _needs_checkpoint(self) -> bool:
        """Return whether an id of all offsets is too long. Offsets only grow, so it stays so."""
        if not self._is_long:
            self._is_long = id_bytes((partition, at) for (_, partition), at in self._offsets.items()) > ID_MAX_BYTES
        return self._is_long

    async def _next_step(self, ends: Offsets) -> Checkpoint | None:
        """Return the checkpoint to read up to, or None to read up to the ends of the views.

        A checkpoint past the ends is of views that are being built again.
        """
        if self._user_id is not None or not self._needs_checkpoint():
            return None
        if self._step is None:
            total = sum(self._offsets.values())
            self._step = await asyncio.to_thread(self._views.next_checkpoint, total)
        return self._step if self._step is not None and self._step.is_passed_by(ends, self._topic) else None

    def _spans(self, until: Offsets) -> tuple[Offsets, Offsets]:
        """Return where the next page begins and ends on the way to `until`, for each partition that it reads."""
        starts: Offsets = {}
        ends: Offsets = {}
        left = PAGE
        for topic_partition, end in sorted(until.items()):
            start = self._offsets.get(topic_partition, 0)
            if topic_partition[0] != self._topic or start >= end:
                continue
            starts[topic_partition] = start
            ends[topic_partition] = end if self._user_id is not None else min(end, start + left)
            left -= ends[topic_partition] - start
            if left <= 0 and self._user_id is None:
                break
        return starts, ends


StreamPosition = OrderPosition | LogPosition


def position_of(
    event_id: str, views: Views, topic: str, partitions: Offsets
) -> tuple[Offsets, Checkpoint | None] | None:
    """Return the next offsets of a `Last-Event-ID`, and the checkpoint that it names; None if it is no id of this log.

    A checkpoint may be of fewer `partitions`: of the others, nothing has been received.
    """
    if (position := read_checkpoint_position(event_id, topic)) is None:
        offsets = read_offsets(event_id, topic)
        return None if offsets is None else (offsets, None)
    checkpoint = views.checkpoint(position.checkpoint_id, position.anchor_id)
    if checkpoint is None:
        return None
    passed = dict.fromkeys(partitions, 0) | checkpoint.by_partition(topic)
    beyond = {each: max(offset, passed.get(each, 0)) for each, offset in position.beyond.items()}
    return passed | beyond, checkpoint

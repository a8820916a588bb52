"""Checkpoints: stored positions in all partitions of the events, which the id of an event in a stream can name.

With many partitions, an id that holds an offset for each of them is too long for a header. A reader resumes at a
checkpoint that it has passed in every partition. So nothing is lost, whatever the clocks say.

A checkpoint has a random id, and names the checkpoint of the hour before it, its anchor. So an id of a stream can be
resumed after the checkpoint itself was deleted, or was lost in a crash of the database, and no other one is mistaken
for it.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.engine import Connection

from order_service.views.tables import checkpoints

ID_MAX_BYTES: Final = 200
"""Maximum size of the id of an event in a stream, if there is a checkpoint that its reader has passed."""
STORED_FROM_BYTES: Final = 150
"""The size of the offsets of all partitions, as text, from which on checkpoints are stored: before they are needed."""
STORE_EVERY_S: Final = 10.0
"""How often a projector stores a checkpoint, if it has moved a position since."""
APART_S: Final = 5
"""The least time between two checkpoints: several projectors store them."""
HOUR_S: Final = 3600
KEPT_S: Final = 24 * HOUR_S
"""How long every checkpoint is kept."""
HOURLY_KEPT_S: Final = 90 * 24 * HOUR_S
"""How long the first checkpoint of each hour is kept."""
DELETED_MAX: Final = 100
"""How many old checkpoints of each kind are deleted with a new one: more would hold up the projector."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[int, ...]).decode

NEWEST: Final = select(checkpoints).order_by(checkpoints.c.total.desc()).limit(1)
"""The query for the newest checkpoint."""


class Checkpoint(Struct, frozen=True):
    """A stored position: the next offset of each partition of the events, and their sum.

    No offset of a checkpoint is less than that of one with a smaller `total`.
    """

    total: int
    checkpoint_id: str
    anchor_id: str
    offsets: tuple[int, ...]

    def is_passed_by(self, offsets: Mapping[tuple[str, int], int], topic: str) -> bool:
        """Return whether none of these next offsets is before the checkpoint."""
        return all(offsets.get((topic, partition), 0) >= offset for partition, offset in enumerate(self.offsets))

    def by_partition(self, topic: str) -> dict[tuple[str, int], int]:
        """Return the next offset of each partition."""
        return {(topic, partition): offset for partition, offset in enumerate(self.offsets)}


def id_bytes(offsets: Iterable[tuple[int, int]]) -> int:
    """Return the size of an id that holds these partitions and offsets: `<partition>-<offset>`, joined by dots."""
    return max(0, sum(len(str(partition)) + len(str(offset)) + 2 for partition, offset in offsets) - 1)


def checkpoint_of(row: Any) -> Checkpoint:
    """Return the checkpoint that a row holds."""
    return Checkpoint(row.total, row.checkpoint_id, row.anchor_id, _decode(row.offsets))


def store(connection: Connection, offsets: Sequence[int], now_s: int) -> bool:
    """Store these committed positions, and delete checkpoints that are too old. No other transaction may do so now.

    Return whether a checkpoint holds these positions. None is stored while another one is too new, or while the views
    are built again and have not reached the newest one.
    """
    last = connection.execute(NEWEST).first()
    if last is not None:
        before = _decode(last.offsets)
        if before == tuple(offsets):
            return True
        if any(old > new for old, new in zip_longest(before, offsets, fillvalue=0)):
            return False
        if now_s - APART_S < last.stored_at_s <= now_s:  # one from the future was stored before the clock was set back
            return False
    anchor = None if last is None else _anchor_after(connection, last)
    checkpoint_id = secrets.token_hex(8)
    row = {
        "total": sum(offsets),
        "checkpoint_id": checkpoint_id,
        "anchor_id": checkpoint_id if anchor is None else anchor.checkpoint_id,
        "stored_at_s": now_s,
        "is_hourly": anchor is None or anchor.stored_at_s // HOUR_S != now_s // HOUR_S,
        "offsets": _encode(offsets),
    }
    connection.execute(checkpoints.insert(), row)
    for is_hourly, kept_s in ((False, KEPT_S), (True, HOURLY_KEPT_S)):
        is_old = checkpoints.c.is_hourly == is_hourly, checkpoints.c.stored_at_s < now_s - kept_s
        some = select(checkpoints.c.total).where(*is_old).limit(DELETED_MAX)
        connection.execute(checkpoints.delete().where(checkpoints.c.total.in_(some)))
    return True


def _anchor_after(connection: Connection, last: Any) -> Any:
    """Return the newest checkpoint of those that are kept for long, or None if it was deleted."""
    if last.is_hourly:
        return last
    return connection.execute(select(checkpoints).where(checkpoints.c.checkpoint_id == last.anchor_id)).first()

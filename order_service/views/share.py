"""The share of a projector: the partitions that it reads, if several projectors share them."""

from collections.abc import Collection, Iterable
from typing import Final

from aiokafka.structs import TopicPartition
from msgspec import Struct

SEEN_WITHIN_S: Final = 20
"""A projector that was not seen for longer does not run. It is seen every `BEAT_EVERY_S`."""
BEAT_EVERY_S: Final = 5.0
UNREAD_AFTER_S: Final = 20.0
"""How long to wait, before partitions are reported as unread, for a projector that starts a little later."""


class Share(Struct, frozen=True):
    """The partitions, of both topics, whose number modulo `count` is `index`."""

    index: int = 0
    count: int = 1

    def holds(self, topic_partition: TopicPartition) -> bool:
        """Return whether a partition belongs to this share."""
        return bool(topic_partition.partition % self.count == self.index)


class Unread(Struct, frozen=True):
    """Partitions that no running projector reads, and the indexes of the projectors that are missing."""

    partitions: tuple[TopicPartition, ...] = ()
    indexes: tuple[int, ...] = ()


def unread(partitions: Iterable[TopicPartition], own: Share, running: Collection[Share]) -> Unread:
    """Return the partitions that no share of the running projectors holds. They may have different counts."""
    missing = tuple(each for each in sorted(partitions) if not any(share.holds(each) for share in running))
    return Unread(missing, tuple(sorted({each.partition % own.count for each in missing})))

"""How far one read of a topic goes: the work for a page must not depend on how much was written."""

from collections.abc import Mapping

from aiokafka.structs import TopicPartition


def ends_of_a_read(
    begins: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int], offsets_max: int
) -> dict[TopicPartition, int]:
    """Return where to stop, so that all partitions together have `offsets_max` offsets at most, each its share."""
    behind = [each for each, end in ends.items() if end > begins[each]]
    share = max(1, offsets_max // max(1, len(behind)))
    return {each: min(end, begins[each] + share) if each in behind else end for each, end in ends.items()}

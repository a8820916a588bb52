"""Which member of the group stands by for which partition. The leader decides it with the assignment. Pure.

A member that stands by says so with its data: the word `standbys=`, and the partitions for which it stands by now.
With its assignment it gets the same word with those of the next generation.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from aiokafka import TopicPartition

WORD: Final = "standbys="


def encode_standbys(partitions: Iterable[int]) -> str:
    """Return the word that names these partitions."""
    return WORD + ",".join(map(str, sorted(partitions)))


def decode_standbys(words: Iterable[str]) -> frozenset[int] | None:
    """Return the partitions that the word of a member names, or None without such a word: it does not stand by."""
    for word in words:
        if word.startswith(WORD):
            return frozenset(int(number) for number in word.removeprefix(WORD).split(",") if number.isdecimal())
    return None


def inherited(
    lost: Iterable[TopicPartition], held: Mapping[str, int], stood_by: Mapping[str, frozenset[int]]
) -> dict[str, list[TopicPartition]]:
    """Return which of the `lost` partitions, which no member holds, each member takes because it stands by for them.

    `held` has the number of partitions of each member. No member gets more than an even share by this.
    """
    sizes = Counter(dict(held))
    lost = sorted(lost)
    share, larger_shares = divmod(len(lost) + sizes.total(), len(sizes))
    heir_of = {partition: member for member, partitions in stood_by.items() for partition in partitions}
    taken: dict[str, list[TopicPartition]] = {member: [] for member in sizes}
    for partition in lost:
        heir = heir_of.get(partition.partition)
        if heir is None:
            continue
        has_larger_share = sum(size > share for size in sizes.values()) < larger_shares
        if sizes[heir] < share or (sizes[heir] == share and has_larger_share):
            taken[heir].append(partition)
            sizes[heir] += 1
    return taken


def standby_plan(
    assigned: Mapping[str, Iterable[TopicPartition]], stood_by: Mapping[str, frozenset[int]]
) -> dict[str, frozenset[int]]:
    """Return the partitions for which each member of `stood_by` stands by: none of its own, each by one member.

    A member goes on with a partition, unless it has too many: of the partitions of one worker, so that they are spread
    over all when that worker is lost; or of all.
    """
    owner_of = {each.partition: member for member, partitions in assigned.items() for each in partitions}
    owned = Counter(owner_of.values())
    plan: dict[str, set[int]] = {member: set() for member in stood_by}
    pairs: Counter[tuple[str, str]] = Counter()

    def add(member: str, partition: int) -> None:
        plan[member].add(partition)
        pairs[owner_of[partition], member] += 1

    previous = {partition: member for member, partitions in stood_by.items() for partition in partitions}
    for partition, member in sorted(previous.items()):
        owner = owner_of.get(partition)
        if owner is None or owner == member:
            continue
        others = len(stood_by) - (owner in stood_by)
        is_spread = pairs[owner, member] < math.ceil(owned[owner] / others)
        if is_spread and len(plan[member]) < math.ceil(len(owner_of) / len(plan)):
            add(member, partition)
    kept = {partition for partitions in plan.values() for partition in partitions}
    for partition, owner in sorted(owner_of.items()):
        others_of_owner = [member for member in plan if member != owner]
        if partition not in kept and others_of_owner:
            add(min(others_of_owner, key=lambda each: (pairs[owner, each], len(plan[each]), each)), partition)
    return {member: frozenset(partitions) for member, partitions in plan.items()}

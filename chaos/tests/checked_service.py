"""A service as the checker sees it: whether all of its commands are decided, and what is found in its log."""

from collections import Counter

from chaos.verdict.checker import Terms, check_partition
from chaos.verdict.judging import user_of
from chaos.verdict.reading import read_partition
from tests.support.service import vars_of


def found(service, **changes):
    """Check all that there is, by terms with these changes; gives what was found, by kind."""
    counts: Counter[str] = Counter()
    terms = Terms(service.partitions, service.names.commands, user_of, **changes)
    for partition in range(service.partitions):
        records = read_partition(service.bootstrap_servers, vars_of(service.names), partition)
        counts.update(check_partition(records, terms).counts)
    return counts


def is_settled(service):
    """Return whether all commands are decided, as far as the positions say."""
    ends: Counter[int] = Counter()
    for message in service.read(service.names.commands):
        ends[message.partition()] = message.offset() + 1
    positions = service.positions()
    return all(partition in positions and positions[partition].next_offset >= end for partition, end in ends.items())


def is_decided(service):
    return is_settled(service) and not service.waiting()

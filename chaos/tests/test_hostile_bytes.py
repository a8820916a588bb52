"""Twenty thousand damaged messages between good ones, through a live worker: it lives on, and keeps each of them."""

import itertools

from chaos.faults.damaged_bytes import MARK, mutated
from chaos.tests.checked_service import found, is_decided
from tests.support.service import histories, until

BAD = 20_000
MOST_GROWTH = 50_000_000


def mixed(seed, bad, good):
    """Put a good command after every so many bad messages, which come under the key of its order."""
    step = bad // len(good)
    damaged = mutated(seed)
    for command in good:
        yield from ((command.order_id, data) for data in itertools.islice(damaged, step))
        yield command


def test_twenty_thousand_damaged_messages_leave_a_worker_as_it_was(service):
    worker = service.start_worker().wait_lanes(4)
    service.send(mixed("first", BAD // 4, histories(10)))
    until(lambda: is_decided(service), "the first are decided")
    before = worker.resident_bytes()
    good = histories(100, first=100)
    service.send(mixed("then", BAD, good))
    until(lambda: is_decided(service), "all are decided")
    assert worker.process.poll() is None
    assert worker.resident_bytes() - before < MOST_GROWTH
    assert found(service) == {}
    assert {command.command_id for command in good} <= {event.command_id for event in service.events()}
    assert MARK not in worker.log()

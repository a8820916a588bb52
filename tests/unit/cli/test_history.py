"""The history of an order: how events and rejections stand together, and what breaks its proof."""

import pytest

from order_service.cli.history import Chain, interleaved, steps
from order_service.domain.messages import Event
from order_service.domain.refusals import Status
from order_service.kafka.reader import OutcomeRecord
from tests.support.samples import EARLIER, but, digest_of, events, order_created, order_paid, ship_refused


def seen(message, offset=0, command_offset=None):
    return OutcomeRecord(message, 0, offset, digest_of(message), command_offset)


HISTORY = [seen(event, offset, command_offset=2 * offset) for offset, event in enumerate(events)]


def test_a_whole_history_has_no_fault_and_ends_delivered():
    chain = Chain()
    assert [step.fault for step in steps(HISTORY, chain)] == [""] * 5
    assert (chain.order.status, chain.version) == (Status.DELIVERED, 5)


@pytest.mark.parametrize(
    ("history", "fault"),
    [
        pytest.param(HISTORY[1:], "version 2 follows version 0", id="its beginning is missing"),
        pytest.param(HISTORY[:2] + HISTORY[3:], "version 4 follows version 2", id="an event is missing"),
        pytest.param([*HISTORY, HISTORY[4]], "version 5 follows version 5", id="an event stands twice"),
        pytest.param(
            [seen(but(order_created, actor="user:eve")), *HISTORY[1:]],
            "previous_digest of version 2 differs from the digest of version 1 in Kafka",
            id="an event was changed",
        ),
        pytest.param(
            [seen(but(order_paid, version=1, previous_digest=None))],
            "OrderPaid cannot follow an order that is absent",
            id="the rules forbid it",
        ),
    ],
)
def test_a_broken_history_is_told(history, fault):
    assert fault in [step.fault for step in steps(history, Chain())]


def test_a_rejection_stands_where_its_command_stood():
    refused = seen(ship_refused, command_offset=3)
    assert list(interleaved([refused, *HISTORY])) == [*HISTORY[:2], refused, *HISTORY[2:]]


def test_an_event_of_the_service_itself_is_placed_by_its_time():
    own = [seen(event) for event in events]
    early, late = seen(but(ship_refused, rejected_at=EARLIER)), seen(ship_refused)
    assert list(interleaved([*own, early])) == [early, *own]
    assert [isinstance(found.message, Event) for found in interleaved([*own, late])] == [True, False, *[True] * 4]

"""The records of operations."""

from datetime import UTC, datetime
from typing import Any

import pytest

from order_service.errors import DecodeError
from order_service.wire import operations
from order_service.wire.operations import (
    DeadLettersApplied,
    DeadLettersDiscarded,
    DeadLettersPlanned,
    LaneResumed,
    Operation,
    PartitionRebuilt,
    PlannedCommand,
)

ACT: dict[str, Any] = {
    "id": "op-1",
    "at": datetime(2026, 11, 30, 12, tzinfo=UTC),
    "actor": "user:alice",
    "reason": "disk",
}
PLANNED = PlannedCommand(offset=3, order_id="order-1", command_id="command-1", version=2, result="OrderPaid")


@pytest.mark.parametrize(
    "operation",
    [
        LaneResumed(**ACT, previous_position=5, position=7, skipped_order_ids=("order-1",), lost={"events": (1, 2)}),
        PartitionRebuilt(**ACT, position=7, orders=2, waiting=1, changed=3, removed=0),
        PartitionRebuilt(**ACT, position=7, orders=2, waiting=1, changed=3, removed=1, lost=("events: 1",)),
        DeadLettersPlanned(**ACT, commands=(PLANNED,)),
        DeadLettersApplied(**ACT, plan_id="op-0", sent={3: 9}, order_ids=("order-1",)),
        DeadLettersDiscarded(**ACT, offsets=(4, 5)),
    ],
)
def test_each_operation_is_decoded_as_it_was_encoded(operation: Operation) -> None:
    value = operations.encode(operation)
    assert operations.decode(value) == operation
    assert b'"at":"2026-11-30T12:00:00Z"' in value


def test_the_orders_that_an_operation_names() -> None:
    assert operations.order_ids_of(LaneResumed(**ACT, skipped_order_ids=("order-1",))) == ("order-1",)
    assert operations.order_ids_of(DeadLettersPlanned(**ACT, commands=(PLANNED,))) == ("order-1",)
    assert operations.order_ids_of(DeadLettersDiscarded(**ACT, offsets=(4,))) == ()


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"{}", b'{"operation":"other"}', b"[1]"])
def test_other_values_are_refused(value: bytes | None) -> None:
    with pytest.raises(DecodeError, match="bad_operation"):
        operations.decode(value)

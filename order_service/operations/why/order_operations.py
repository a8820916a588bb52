"""Finds the operations on one order without reading its partition from the start.

Most operations are compared with the order's outcomes, which the caller has, and with dead letters, which are few.
Only a resumed lane needs commands: those that it skipped, and those that were undecided at that time.
"""

from collections.abc import Iterable, Sequence

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.errors import DamagedError, DecodeError
from order_service.kafka.reader import Reader
from order_service.operations.why.order_records import OrderRecords
from order_service.wire.operations import LaneResumed, Operation, PartitionRebuilt, decode, order_ids_of

Recorded = tuple[ConsumerRecord, Operation]
"""A record of the operations topic, and its operation."""


class CommandSpan(Struct):
    """The commands to compare with: from an offset on, up to an offset and to a time in milliseconds since 1970 UTC."""

    first: int
    before: int = 0
    until_ms: int = 0


async def operations_on(reader: Reader, order_id: str, outcomes: Sequence[ConsumerRecord]) -> list[Operation]:
    """Return the operations on an order, as `why` finds them. `outcomes` are its events and rejections.

    Records of operations that cannot be decoded are left to `verify`.
    """
    recorded = await _recorded(reader, order_id)
    if not recorded:
        return []
    names = reader.names
    records = OrderRecords(names, order_id.encode())
    known = [*outcomes, *await _of_order(reader, order_id, names.dead_letters)]
    for record in known:
        records.take(record)
    first_ms = min((record.timestamp for record in known), default=None)
    if (span := command_span(order_id, recorded, first_ms)) is not None:
        for record in await _of_order(reader, order_id, names.commands, span):
            records.take(record)
    for record, operation in recorded:
        records.take_operation(record, operation)
    on_order = {operation.offset for operation in records.operations}
    return [operation for record, operation in recorded if record.offset in on_order]


def command_span(order_id: str, recorded: Iterable[Recorded], first_ms: int | None) -> CommandSpan | None:
    """Return which commands decide whether these operations are on an order. None if that is known without them.

    `first_ms` is the time of the order's oldest known outcome.
    """
    span: CommandSpan | None = None
    for record, operation in recorded:
        if order_id in order_ids_of(operation):
            continue
        first, before = 0, 0
        if isinstance(operation, PartitionRebuilt) or (isinstance(operation, LaneResumed) and operation.lost):
            if first_ms is not None and first_ms <= record.timestamp:  # it concerns every order that was there
                continue
        elif isinstance(operation, LaneResumed):
            positions = [each for each in (operation.previous_position, operation.position) if each is not None]
            first, before = min(positions, default=0), operation.position or 0
        else:
            continue
        span = span or CommandSpan(first)
        span.first = min(span.first, first)
        span.before = max(span.before, before)
        span.until_ms = max(span.until_ms, record.timestamp)
    return span


async def _recorded(reader: Reader, order_id: str) -> list[Recorded]:
    recorded = []
    partitions = await reader.partitions_of(order_id, reader.names.operations)
    async for record in reader.until(await reader.ends(partitions)):
        try:
            recorded.append((record, decode(record.value)))
        except DecodeError:
            continue
    return recorded


async def _of_order(reader: Reader, order_id: str, topic: str, span: CommandSpan | None = None) -> list[ConsumerRecord]:
    """Return the records of an order in a topic, up to a damaged batch."""
    partitions: list[TopicPartition] = await reader.partitions_of(order_id, topic)
    starts, ends = await reader.starts(partitions), await reader.ends(partitions)
    if span is not None:
        starts = {partition: max(start, span.first) for partition, start in starts.items()}
    of_order: list[ConsumerRecord] = []
    try:
        async for records in reader.between(starts, ends):
            of_order += [record for record in records if record.key == order_id.encode()]
            if span is not None and any(_is_behind(record, span) for record in records[-1:]):
                break
    except DamagedError:  # `why` and `verify` report it
        pass
    return of_order


def _is_behind(record: ConsumerRecord, span: CommandSpan) -> bool:
    return bool(record.offset >= span.before and record.timestamp > span.until_ms)

"""The records of what operators did to a partition: JSON, in a topic that is kept for ever.

A record is in the partition that it is about. Its key is the id of the operation, which is the same in every partition
that one call changed.
"""

from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from order_service.errors import DecodeError


class Act(Struct, frozen=True, kw_only=True):
    """Who did something, when, and why. `actor` is `TYPE:ID` as in commands."""

    id: str
    at: datetime
    actor: str
    reason: str


class LaneResumed(Act, frozen=True, kw_only=True, tag_field="operation", tag="lane_resumed"):
    """A parked lane may go on, from `position` (None: where it was, or nothing was known).

    Commands from `previous_position` on were skipped if it moved forwards, and are decided again if it moved back.
    `lost` has the topics that ended before their recorded end, or with a damaged batch: the offset of the first lost
    record or of the damage, and the recorded or actual end.
    """

    previous_position: int | None = None
    position: int | None = None
    skipped_order_ids: tuple[str, ...] = ()
    lost: dict[str, tuple[int, int]] = {}


class PartitionRebuilt(Act, frozen=True, kw_only=True, tag_field="operation", tag="partition_rebuilt"):
    """The changelogs of a partition were written again: the numbers of records that were changed or removed.

    `lost` has a line for each loss that was accepted: a topic or an order that shows it.
    """

    position: int
    orders: int
    waiting: int
    changed: int
    removed: int
    lost: tuple[str, ...] = ()


class PlannedCommand(Struct, frozen=True, kw_only=True):
    """A dead letter of a plan: what its command would result in, and the version that its order has before it.

    The command is sent with `expected_version`; None: as it is. If `asks_user`, the result depends on a user who could
    not be checked.
    """

    offset: int
    order_id: str
    command_id: str
    version: int
    result: str
    expected_version: int | None = None
    asks_user: bool = False


class DeadLettersPlanned(Act, frozen=True, kw_only=True, tag_field="operation", tag="dead_letters_planned"):
    """A plan was made for dead letters of this partition. The id of the operation is the id of the plan.

    `partitions` are all that the plan has a record in.
    """

    commands: tuple[PlannedCommand, ...]
    partitions: tuple[int, ...] = ()


class DeadLettersApplied(Act, frozen=True, kw_only=True, tag_field="operation", tag="dead_letters_applied"):
    """Commands of a plan were sent again: the offset of each dead letter, with the offset of the new command.

    `order_ids` are their orders in the same sequence; the new commands are in the partitions of these.
    """

    plan_id: str
    sent: dict[int, int]
    order_ids: tuple[str, ...]


class DeadLettersDiscarded(Act, frozen=True, kw_only=True, tag_field="operation", tag="dead_letters_discarded"):
    """An operator decided that these dead letters need no further action."""

    offsets: tuple[int, ...]


Operation = LaneResumed | PartitionRebuilt | DeadLettersPlanned | DeadLettersApplied | DeadLettersDiscarded


def order_ids_of(operation: Operation) -> tuple[str, ...]:
    """Return the orders that an operation names."""
    if isinstance(operation, LaneResumed):
        return operation.skipped_order_ids
    if isinstance(operation, DeadLettersPlanned):
        return tuple(command.order_id for command in operation.commands)
    if isinstance(operation, DeadLettersApplied):
        return operation.order_ids
    return ()


def letter_offsets_of(operation: Operation) -> tuple[int, ...]:
    """Return the offsets of the dead letters that an operation is about."""
    if isinstance(operation, DeadLettersPlanned):
        return tuple(command.offset for command in operation.commands)
    if isinstance(operation, DeadLettersApplied):
        return tuple(operation.sent)
    return operation.offsets if isinstance(operation, DeadLettersDiscarded) else ()


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final[msgspec.json.Decoder[Operation]] = msgspec.json.Decoder(Operation)


def encode(operation: Operation) -> bytes:
    """Encode an operation as JSON. Times are RFC 3339 in UTC."""
    return _encode(operation)


def decode(value: bytes | None) -> Operation:
    """Decode an operation. Raises DecodeError for anything else; unknown fields are ignored."""
    try:
        return _decoder.decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError("bad_operation", str(error)) from error

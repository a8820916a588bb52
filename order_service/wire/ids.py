"""The ids that a command needs before it can be answered, because every answer contains them."""

from typing import TypeVar

from order_service.domain.messages import FOREIGN_ID_MUST_BE, ID_MUST_BE, Command
from order_service.domain.validation import is_foreign_id, is_id
from order_service.errors import DecodeError
from order_service.wire.dead_letters import DeadLetterReason as Why

_C = TypeVar("_C", bound=Command)


def with_ids(command: _C, *, is_past: bool = False) -> _C:
    """Return the command; raise DecodeError if its command_id, order_id or correlation_id is out of range.

    A rejection must contain all three, so such a command becomes a dead letter. The correlation_id of a command that
    `is_past` can be empty: version 0.1 accepted it.
    As patterns of the struct, msgspec would check them in twice the time, which is half the time of decoding JSON.
    """
    if not is_id(command.command_id):
        raise _invalid_id("command_id", ID_MUST_BE)
    if not is_id(command.order_id):
        raise _invalid_id("order_id", ID_MUST_BE)
    correlation_id = command.correlation_id
    if correlation_id is not None and not is_foreign_id(correlation_id) and not (is_past and correlation_id == ""):
        raise _invalid_id("correlation_id", FOREIGN_ID_MUST_BE)
    return command


def _invalid_id(name: str, must_be: str) -> DecodeError:
    return DecodeError(Why.BAD_SHAPE, f"Expected {must_be} - at `$.{name}`")

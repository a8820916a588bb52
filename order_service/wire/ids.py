"""The ids that a command must have before it can be answered at all."""

from typing import TypeVar

from order_service.domain.content import is_id
from order_service.domain.messages import ID_PATTERN, Command
from order_service.errors import DecodeError
from order_service.wire.reasons import DeadLetterReason as Why

_C = TypeVar("_C", bound=Command)


def with_ids(command: _C) -> _C:
    """Give the command back, or raise DecodeError if its command_id or order_id is none.

    As a pattern of the struct msgspec would check them, in twice the time: half of what decoding JSON takes.
    """
    if not is_id(command.command_id):
        raise _no_id("command_id")
    if not is_id(command.order_id):
        raise _no_id("order_id")
    return command


def _no_id(name: str) -> DecodeError:
    return DecodeError(Why.BAD_SHAPE, f"Expected `str` matching regex {ID_PATTERN!r} - at `$.{name}`")

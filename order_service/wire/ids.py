"""The ids that a command needs before it can be answered, because every answer contains them."""

import re
from typing import Final, TypeVar

from order_service.domain.messages import ID_PATTERN, Command
from order_service.domain.validation import is_id
from order_service.errors import DecodeError
from order_service.wire.dead_letters import DeadLetterReason as Why

_C = TypeVar("_C", bound=Command)

CORRELATION_ID_PATTERN: Final = r"^[^\x00-\x1f\x7f-\x9f]{0,200}\Z"
"""Up to 200 characters, no control characters; HTTP accepts only those that a header can contain."""
_is_correlation_id: Final = re.compile(CORRELATION_ID_PATTERN).match


def with_ids(command: _C) -> _C:
    """Return the command; raise DecodeError if its command_id, order_id or correlation_id is out of range.

    A rejection must contain all three, so such a command becomes a dead letter.
    As patterns of the struct, msgspec would check them in twice the time, which is half the time of decoding JSON.
    """
    if not is_id(command.command_id):
        raise _invalid_id("command_id")
    if not is_id(command.order_id):
        raise _invalid_id("order_id")
    if command.correlation_id is not None and not _is_correlation_id(command.correlation_id):
        raise _invalid_id("correlation_id", CORRELATION_ID_PATTERN)
    return command


def _invalid_id(name: str, pattern: str = ID_PATTERN) -> DecodeError:
    return DecodeError(Why.BAD_SHAPE, f"Expected `str` matching regex {pattern!r} - at `$.{name}`")

"""The records of the changelogs: one byte that tells the form, then MessagePack.

Keys:    an order's table record has the order's id; a waiting command has `<order_id> NUL <offset>`;
         the position of a partition and the barrier of a claim have keys of their own, which no id can be.
Raises:  HistoryError for a form or shape that this version does not know: better late than wrong.
"""

from datetime import datetime
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from order_service.domain.answer import Entry
from order_service.errors import HistoryError

POSITION_KEY: Final = b"\0position"
BARRIER_KEY: Final = b"\0barrier"
_FORM: Final = b"\x01"
_T = TypeVar("_T")


class Position(Struct, frozen=True, array_like=True):
    """How far a partition is decided, and by whom.

    `next_offset` is the first command that is not decided; `owner` the transactional id that may write. By the end that
    the commands had, and the time of the last one that was decided (None before the first), a topic that was recreated
    or cut off is noticed.
    """

    next_offset: int
    owner: str
    end_offset: int
    last_timestamp_ms: int | None


class Waiting(Struct, frozen=True, array_like=True):
    """A command that waits, as it came: its bytes, headers (names with values) and times."""

    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int
    came_at: datetime


_encode: Final = msgspec.msgpack.Encoder().encode
_entries: Final = msgspec.msgpack.Decoder(Entry)
_positions: Final = msgspec.msgpack.Decoder(Position)
_waiting: Final = msgspec.msgpack.Decoder(Waiting)


def encode(record: Entry | Position | Waiting) -> bytes:
    """Encode the value of a changelog record."""
    return _FORM + _encode(record)


def decode_entry(data: bytes) -> Entry:
    """Decode the table's record of an order."""
    return _decode(_entries, data)


def decode_position(data: bytes) -> Position:
    """Decode the position of a partition."""
    return _decode(_positions, data)


def decode_waiting(data: bytes) -> Waiting:
    """Decode a waiting command."""
    return _decode(_waiting, data)


def waiting_key(order_id: str, offset: int) -> bytes:
    """Name a waiting command in its changelog."""
    return f"{order_id}\0{offset}".encode()


def _decode(decoder: "msgspec.msgpack.Decoder[_T]", data: bytes) -> _T:
    if data[:1] != _FORM:
        raise HistoryError(f"a changelog record has form {data[:1]!r}, this version knows {_FORM!r}")
    try:
        return decoder.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HistoryError(f"a changelog record cannot be read: {error}") from error

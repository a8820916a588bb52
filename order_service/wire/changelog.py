"""The records of the changelogs: one format byte, then MessagePack.

Keys:    an order's table record has the order's id; a waiting command has `<order_id> NUL <offset>`;
         the position of a partition, its release and a claim's barrier (which has no meaning) have constant keys,
         which are not valid ids. The value of a release is the owner that writes no more to the partition.
Forms:   1 for entries and positions, 2 for waiting commands, 3 for short entries.
Raises:  HistoryError for an unknown format byte or shape: a worker must stop rather than decide on data that cannot be
         read.
"""

from datetime import datetime
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from order_service.domain.entry import Entry, FullEntry, ShortEntry
from order_service.domain.messages import Command
from order_service.errors import HistoryError
from order_service.wire.trace_context import TraceContext

POSITION_KEY: Final = b"\0position"
BARRIER_KEY: Final = b"\0barrier"
RELEASE_KEY: Final = b"\0released"
REBUILDING: Final = -1
"""The `waiting_count` of a position while a rebuild writes the changelogs: no waiting room has it, so claims park."""
_FORM: Final = b"\x01"
_WAITING_FORM: Final = b"\x02"
_SHORT_FORM: Final = b"\x03"
_T = TypeVar("_T")


class Ends(Struct, frozen=True, array_like=True):
    """Lower bounds of the end offsets of a partition's topics: records after them are newer or were not yet known.

    They date from the owner's previous transaction: a transaction's records are acknowledged after its position.
    """

    events: int = 0
    rejections: int = 0
    dead_letters: int = 0
    waiting: int = 0


class Position(Struct, frozen=True, array_like=True):
    """The position of a partition, and its owner.

    `next_offset` is the offset after the last decided command; `owner` is the transactional id that may write. The end
    offset of the commands and the timestamp of the last decided one (None before the first) reveal a recreated or
    truncated topic. No undecided command is before `read_to`, which is past control records and aborted commands.
    `ends` and the number of commands in the waiting room reveal lost records (None: unknown).
    """

    next_offset: int
    owner: str
    end_offset: int
    last_timestamp_ms: int | None
    read_to: int = 0
    ends: Ends | None = None
    waiting_count: int | None = None

    @property
    def resume_at(self) -> int:
        """The offset at which a lane resumes reading."""
        return max(self.next_offset, self.read_to)


class WaitingCommand(Struct, frozen=True, array_like=True, gc=False):
    """A command in the waiting room, with the parts of its record that the outcome needs.

    The command is stored decoded, because its bytes may need a schema that only the receiving process knew.
    `timestamp_ms` is the time of its record. Records of earlier versions end with `traceparent`. Those versions read
    newer records, too, and leave out what follows it.
    """

    command: Command
    offset: int
    queued_at: datetime
    traceparent: bytes | None
    tracestate: bytes | None = None
    timestamp_ms: int | None = None

    @property
    def trace(self) -> TraceContext | None:
        """The trace that the command belongs to, or None."""
        return None if self.traceparent is None else TraceContext(self.traceparent, self.tracestate)

    @property
    def undecided_since_ms(self) -> float:
        """Since when it has been undecided, in milliseconds since 1970 UTC. Without a timestamp: since it was read."""
        return self.queued_at.timestamp() * 1000 if self.timestamp_ms is None else self.timestamp_ms

    @property
    def key(self) -> bytes:
        """The key of the command's record in the changelog."""
        return waiting_key(self.command.order_id, self.offset)


class _Open(Struct, tag="created", gc=False):
    """What `is_open` reads of an open order; the other states have their own tags."""


class _Paid(Struct, tag="paid", gc=False):
    pass


class _Shipped(Struct, tag="shipped", gc=False):
    pass


class _Delivered(Struct, tag="delivered", gc=False):
    pass


class _Cancelled(Struct, tag="cancelled", gc=False):
    pass


_StateTag = _Open | _Paid | _Shipped | _Delivered | _Cancelled


class _State(Struct, array_like=True, gc=False):
    """The state of an entry without its fields: a fifth of the time of decoding it."""

    order: _StateTag


class _Age(Struct, array_like=True, gc=False):
    """What `has_been_closed` reads of an entry."""

    order: _StateTag
    created_at: msgspec.Raw
    changed_at: datetime


_encode: Final = msgspec.msgpack.Encoder().encode
_entries: Final = msgspec.msgpack.Decoder(FullEntry)
_short_entries: Final = msgspec.msgpack.Decoder(ShortEntry)
_states: Final = msgspec.msgpack.Decoder(_State)
_ages: Final = msgspec.msgpack.Decoder(_Age)
_positions: Final = msgspec.msgpack.Decoder(Position)
_waiting: Final = msgspec.msgpack.Decoder(WaitingCommand)
_FORMS: Final[dict[type[Struct], bytes]] = {
    FullEntry: _FORM,
    ShortEntry: _SHORT_FORM,
    Position: _FORM,
    WaitingCommand: _WAITING_FORM,
}


def encode(record: Entry | Position | WaitingCommand) -> bytes:
    """Encode the value of a changelog record."""
    return _FORMS[type(record)] + _encode(record)


def decode_entry(data: bytes) -> Entry:
    """Decode the table's record of an order."""
    if data[:1] == _SHORT_FORM:
        return _decode(_short_entries, _SHORT_FORM, data)
    return _decode(_entries, _FORM, data)


def is_open(data: bytes) -> bool:
    """Return whether the order of a table's record is neither delivered nor cancelled."""
    return data[:1] != _SHORT_FORM and not _is_closed(_decode(_states, _FORM, data).order)


def has_been_closed(data: bytes, since: datetime) -> bool:
    """Return whether a table's record is the full entry of an order that was closed at or before `since`."""
    if data[:1] == _SHORT_FORM:
        return False
    age = _decode(_ages, _FORM, data)
    return _is_closed(age.order) and age.changed_at <= since


def _is_closed(state: _StateTag) -> bool:
    return type(state) is _Delivered or type(state) is _Cancelled


def decode_position(data: bytes) -> Position:
    """Decode the position of a partition."""
    return _decode(_positions, _FORM, data)


def decode_waiting(data: bytes) -> WaitingCommand:
    """Decode a waiting command."""
    return _decode(_waiting, _WAITING_FORM, data)


def waiting_command(
    command: Command, offset: int, queued_at: datetime, trace: TraceContext | None, timestamp_ms: int
) -> WaitingCommand:
    """Return a command in the waiting room, with the trace that it belongs to and the time of its record."""
    traceparent, tracestate = (None, None) if trace is None else (trace.traceparent, trace.tracestate)
    return WaitingCommand(command, offset, queued_at, traceparent, tracestate, timestamp_ms)


def waiting_key(order_id: str, offset: int) -> bytes:
    """Return the key of a waiting command in its changelog."""
    return f"{order_id}\0{offset}".encode()


def _decode(decoder: "msgspec.msgpack.Decoder[_T]", form: bytes, data: bytes) -> _T:
    if data[:1] != form:
        raise HistoryError(f"a changelog record has format byte {data[:1]!r}, this version reads {form!r}")
    try:
        return decoder.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HistoryError(f"a changelog record cannot be read: {error}") from error

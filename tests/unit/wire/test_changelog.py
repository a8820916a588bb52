"""The records of the changelogs: what goes in comes out, and what cannot be ours is refused."""

import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from msgspec import structs

from order_service.domain.messages import Command
from order_service.errors import HistoryError
from order_service.wire.changelog import (
    Position,
    WaitingCommand,
    decode_entry,
    decode_position,
    decode_waiting,
    encode,
    has_been_closed,
    is_open,
    waiting_command,
    waiting_key,
)
from order_service.wire.trace_context import TraceContext
from tests.support.samples import NOW, cancel, create, deliver, entry_after, pay, ship, short_of
from tests.unit.wire import strategies

ENTRY = entry_after([create, pay, cancel])
SHORT = short_of(ENTRY)
POSITION = Position(next_offset=7, owner="orders-worker-1", end_offset=9, last_timestamp_ms=1_767_603_600_000)
WAITING = WaitingCommand(
    command=create,
    offset=42,
    queued_at=datetime(2026, 1, 5, 9, tzinfo=UTC) + timedelta(microseconds=1),
    traceparent=b"00-1",
    tracestate=b"shop=1",
    timestamp_ms=1_767_603_600_000,
)
CODECS = [
    pytest.param(decode_entry, ENTRY, id="entry"),
    pytest.param(decode_entry, SHORT, id="short entry"),
    pytest.param(decode_position, POSITION, id="position"),
    pytest.param(decode_waiting, WAITING, id="waiting"),
]


@pytest.mark.parametrize(("decode", "record"), CODECS)
def test_a_record_comes_out_as_it_went_in(decode, record):
    assert decode(encode(record)) == record


@pytest.mark.parametrize(("decode", "record"), CODECS)
@pytest.mark.parametrize("form", [b"", b"\0", b"\x04"])
def test_another_form_is_refused_and_named(decode, record, form):
    reads = b"\x01" if decode is decode_entry else encode(record)[:1]
    with pytest.raises(HistoryError, match=re.escape(f"has format byte {form!r}, this version reads {reads!r}")):
        decode(form + (encode(record)[1:] if form else b""))


@pytest.mark.parametrize(("decode", "record"), CODECS)
def test_every_truncation_is_refused(decode, record):
    data = encode(record)
    for size in range(1, len(data)):
        with pytest.raises(HistoryError, match="a changelog record cannot be read"):
            decode(data[:size])


@pytest.mark.parametrize(("decode", "record"), CODECS)
def test_a_flipped_bit_gives_a_record_or_is_refused(decode, record):
    good = encode(record)
    for bit in range(8, len(good) * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        try:
            damaged = decode(bytes(data))
        except HistoryError:
            continue
        assert isinstance(damaged, type(record))


@pytest.mark.parametrize(("decode", "record"), CODECS)
def test_another_kind_of_record_is_refused(decode, record):
    for other in (ENTRY, POSITION, WAITING):
        if type(other) is not type(record) and not (decode is decode_entry and other is ENTRY):
            with pytest.raises(HistoryError):
                decode(encode(other))


def test_a_short_entry_is_smaller_and_of_a_form_that_versions_before_refuse():
    delivered = entry_after([create, pay, ship, deliver])
    short = short_of(delivered)
    assert encode(short)[:1] == b"\x03"
    assert len(encode(short)) < len(encode(delivered)) / 2


def test_the_short_form_of_an_open_order_is_refused():
    fields = msgspec.msgpack.decode(encode(entry_after([create, pay]))[1:])
    with pytest.raises(HistoryError, match="cannot be read"):
        decode_entry(b"\x03" + msgspec.msgpack.encode([*fields[:4], 2]))


@pytest.mark.parametrize(
    ("entry", "open_", "closed"),
    [
        pytest.param(entry_after([create]), True, False, id="created"),
        pytest.param(entry_after([create, pay, ship]), True, False, id="shipped"),
        pytest.param(entry_after([create, pay, ship, deliver]), False, True, id="delivered"),
        pytest.param(ENTRY, False, True, id="cancelled"),
        pytest.param(SHORT, False, False, id="forgotten already"),
    ],
)
def test_closed_orders_that_remember_are_found_without_decoding_them(entry, open_, closed):
    data = encode(entry)
    assert (is_open(data), has_been_closed(data, NOW)) == (open_, closed)
    assert not has_been_closed(data, NOW - timedelta(microseconds=1))


@given(strategies.commands)
def test_every_command_comes_out_of_the_waiting_room_as_it_went_in(command):
    waiting = WaitingCommand(command, 42, NOW, None)
    assert decode_waiting(encode(waiting)) == waiting


def test_a_waiting_command_kept_as_bytes_is_refused():
    """Form 1: only a process that knew the schema id in those bytes could read them."""
    with pytest.raises(HistoryError, match="form"):
        decode_waiting(b"\x01" + encode(WAITING)[1:])


def test_waiting_commands_are_read_across_versions_without_what_was_added():
    """A rollback, or a worker of an earlier version beside this one, reads what this version has written."""

    class Earlier(msgspec.Struct, frozen=True, array_like=True):
        command: Command
        offset: int
        queued_at: datetime
        traceparent: bytes | None

    earlier = Earlier(create, 42, WAITING.queued_at, b"00-1")
    form, written = encode(WAITING)[:1], encode(WAITING)[1:]
    read = decode_waiting(form + msgspec.msgpack.encode(earlier))
    assert read == structs.replace(WAITING, tracestate=None, timestamp_ms=None)
    assert msgspec.msgpack.decode(written, type=Earlier) == earlier


@pytest.mark.parametrize("trace", [None, TraceContext(b"00-1"), TraceContext(b"00-1", b"shop=1")])
def test_a_waiting_command_keeps_its_trace(trace):
    assert decode_waiting(encode(waiting_command(create, 42, NOW, trace, 7))).trace == trace


def test_keys_of_waiting_commands_tell_orders_and_offsets_apart():
    assert waiting_key("order-1", 23) == b"order-1\x0023"


def test_a_position_of_an_earlier_version_is_read_and_knows_no_ends():
    earlier = msgspec.msgpack.encode([7, "orders-worker-1", 9, 1_767_603_600_000])
    position = decode_position(encode(POSITION)[:1] + earlier)
    assert position == POSITION
    assert (position.resume_at, position.ends, position.waiting_count) == (7, None, None)

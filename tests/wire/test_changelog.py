"""The records of the changelogs: what goes in comes out, and what cannot be ours is refused."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from order_service.errors import HistoryError
from order_service.wire.changelog import (
    Position,
    Waiting,
    decode_entry,
    decode_position,
    decode_waiting,
    encode,
    waiting_key,
)
from tests.samples import cancel, create, entry_after, pay

ENTRY = entry_after([create, pay, cancel])
POSITION = Position(next_offset=7, owner="orders-worker-1", end_offset=9, last_timestamp_ms=1_767_603_600_000)
WAITING = Waiting(
    offset=42,
    key=None,
    value=b"\0\xff",
    headers=(("traceparent", b"00"), ("empty", None)),
    timestamp_ms=1_767_603_600_000,
    came_at=datetime(2026, 1, 5, 9, tzinfo=UTC) + timedelta(microseconds=1),
)
CODECS = [
    pytest.param(decode_entry, ENTRY, id="entry"),
    pytest.param(decode_position, POSITION, id="position"),
    pytest.param(decode_waiting, WAITING, id="waiting"),
]


@pytest.mark.parametrize(("decode", "record"), CODECS)
def test_a_record_comes_out_as_it_went_in(decode, record):
    assert decode(encode(record)) == record


@pytest.mark.parametrize(("decode", "record"), CODECS)
@pytest.mark.parametrize("form", [b"", b"\0", b"\x02"])
def test_another_form_is_refused_and_named(decode, record, form):
    with pytest.raises(HistoryError, match=re.escape(f"has form {form!r}, this version knows {encode(record)[:1]!r}")):
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
        if other is not record:
            with pytest.raises(HistoryError):
                decode(encode(other))


def test_keys_of_waiting_commands_tell_orders_and_offsets_apart():
    assert waiting_key("order-1", 23) == b"order-1\x0023"

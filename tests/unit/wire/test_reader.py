"""Our reader of messages beside fastavro: what it reads, fastavro reads the same; what it does not, it leaves to it."""

from io import BytesIO

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from order_service.domain.messages import Event, Rejection
from order_service.wire import avro
from order_service.wire.schemas.catalogue import SCHEMAS
from tests.support import samples
from tests.unit.wire import strategies
from tests.unit.wire.extremes import EXTREMES, longs
from tests.unit.wire.table import CASES

some = settings(max_examples=150, deadline=None)
every_message = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
messages = st.one_of(strategies.commands, strategies.events, strategies.rejections)


def encode(message):
    """Encode any message."""
    match message:
        case Event():
            return avro.encode_event(message)
        case Rejection():
            return avro.encode_rejection(message)
        case _:
            return avro.encode_command(message)


def read(data):
    """Read with ours; if it gives a message, fastavro must give the same."""
    schema = SCHEMAS.by_id[int.from_bytes(data[1:5], "big")]
    message = avro._usual(data, schema)
    if message is not None:
        other = avro._by_fastavro(data, schema)
        assert message == other
        assert encode(message) == encode(other)
    return message


@every_message
def test_it_reads_what_was_released(case):
    assert read(case.golden) == case.message


@some
@given(messages)
def test_it_reads_what_we_write_or_leaves_it(message):
    assert read(encode(message)) in (message, None)


@some
@given(messages)
def test_it_reads_what_fastavro_writes_or_leaves_it(message):
    values, kind = structs.asdict(message), type(message)
    if isinstance(message, Event):
        values, kind = values | structs.asdict(message.fact), type(message.fact)
    if values.get("lines") is not None:
        values["lines"] = [structs.asdict(line) for line in values["lines"]]
    data, schema = BytesIO(), SCHEMAS.newest[kind]
    fastavro.schemaless_writer(data, schema.avro, values)
    assert read(schema.prefix + data.getvalue()) in (message, None)


def with_number(message, number):
    """Return the message with a number that may be any."""
    name = "version" if isinstance(message, Event | Rejection) else "expected_version"
    return samples.but(message, **{name: number})


@every_message
@pytest.mark.parametrize("number", [0, -1, 63, 64, 2**31, 2**62 - 1, -(2**62)])
def test_it_reads_every_number_of_63_bits(case, number):
    message = with_number(case.message, number)
    assert read(encode(message)) == message


@every_message
@pytest.mark.parametrize("number", [2**62, 2**63 - 1, -(2**62) - 1, -(2**63)])
def test_it_leaves_greater_numbers_to_fastavro(case, number):
    message = with_number(case.message, number)
    assert read(encode(message)) is None
    assert case.decode(encode(message)) == message


@every_message
def test_cut_short_or_longer_it_is_left(case):
    assert all(read(case.golden[:length]) is None for length in range(5, len(case.golden)))
    assert read(case.golden + b"\0") is None


@every_message
def test_whatever_bit_is_flipped(case):
    for bit in range(5 * 8, len(case.golden) * 8):
        data = bytearray(case.golden)
        data[bit // 8] ^= 1 << bit % 8
        read(bytes(data))


@every_message
def test_whatever_number_stands_anywhere(case):
    for at in range(5, len(case.golden)):
        for extreme in EXTREMES:
            read(case.golden[:at] + extreme + case.golden[at + 1 :])
            read(case.golden[:at] + extreme + case.golden[at:])


@every_message
@some
@given(data=st.binary(max_size=200))
def test_whatever_bytes_follow_the_schema_id(case, data):
    read(case.golden[:5] + data)


@some
@given(messages, st.data())
def test_whatever_a_byte_of_any_message_is_replaced_by(message, data):
    encoded = encode(message)
    at = data.draw(st.integers(5, len(encoded)))
    other = data.draw(st.binary(max_size=3))
    read(encoded[:at] + other + encoded[at + data.draw(st.integers(0, 3)) :])


def test_lines_in_several_blocks_are_read_and_blocks_that_tell_their_size_left():
    empty = avro.encode_command(samples.but(samples.create, lines=()))
    full = avro.encode_command(samples.create)
    start = next(at for at, (one, other) in enumerate(zip(empty, full, strict=False)) if one != other)
    line = full[start + 1 : start + 1 + len(full) - len(empty) - 1]  # all lines there are
    count, end = len(samples.create.lines), empty[start + 1 :]
    assert full == full[:start] + longs(count) + line + b"\0" + end
    assert len(read(full[:start] + (longs(count) + line) * 2 + b"\0" + end).lines) == 2 * count
    sized = full[:start] + longs(-count) + longs(len(line)) + line + b"\0" + end
    assert read(sized) is None
    assert avro.decode_avro_command(sized) == samples.create

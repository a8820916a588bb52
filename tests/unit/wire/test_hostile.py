"""Bytes that wish us ill: always a value or a DecodeError, within bounded time and memory."""

import tracemalloc

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from order_service.domain.messages import CreateOrder
from order_service.errors import DecodeError
from order_service.wire.avro import MAX_COMMAND_BYTES, decode_event, decode_rejection, encode_command
from order_service.wire.commands import decode_command, encode_json_command
from order_service.wire.schemas.catalogue import SCHEMAS
from tests.support import samples
from tests.unit.wire import strategies
from tests.unit.wire.extremes import EXTREMES, longs
from tests.unit.wire.table import CASES, CORPUS, DECODERS, GOLDEN, value_or_error

some = settings(max_examples=100, deadline=None)
every_message = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
MIB = 1024 * 1024


@every_message
def test_a_flipped_bit_gives_a_value_or_an_error(case):
    for bit in range(len(case.golden) * 8):
        data = bytearray(case.golden)
        data[bit // 8] ^= 1 << bit % 8
        value_or_error(case.decode, case.encode, bytes(data))


@every_message
def test_a_number_out_of_range_anywhere_gives_a_value_or_an_error(case):
    for at in range(5, len(case.golden)):
        for extreme in EXTREMES:
            value_or_error(case.decode, case.encode, case.golden[:at] + extreme + case.golden[at + 1 :])


@every_message
@some
@given(data=st.binary(max_size=200))
def test_random_bytes_behind_a_schema_id_give_a_value_or_an_error(case, data):
    value_or_error(case.decode, case.encode, case.golden[:5] + data)


@some
@given(st.binary(max_size=300))
@example(b"")
@example(b"\0")
@example(b"{")
def test_random_bytes_give_a_value_or_an_error(data):
    value_or_error(decode_command, encode_command, data)
    value_or_error(decode_command, encode_command, b"{" + data)
    for decode in (decode_event, decode_rejection):
        with pytest.raises(DecodeError):
            decode(data)


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda file: file.name)
def test_a_flipped_bit_in_json_gives_a_value_or_an_error(file):
    golden = file.read_bytes()
    for bit in range(len(golden) * 8):
        data = bytearray(golden)
        data[bit // 8] ^= 1 << bit % 8
        value_or_error(decode_command, encode_command, bytes(data))


@pytest.mark.parametrize(("decode", "encode"), DECODERS)
def test_what_the_fuzzer_found_gives_a_value_or_an_error(decode, encode):
    found = [file.read_bytes() for file in CORPUS.iterdir()]
    assert found
    for data in found:
        value_or_error(decode, encode, data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | strategies.numbers
    | strategies.texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strategies.texts, inner, max_size=3),
    max_leaves=6,
)


@some
@given(st.sampled_from(samples.commands), st.data())
def test_any_json_in_place_of_a_value_gives_a_value_or_an_error(command, data):
    fields = msgspec.json.decode(encode_json_command(command))
    name = data.draw(st.sampled_from([*fields, "decide_by", "surprise"]))
    fields[name] = data.draw(json_values)
    value_or_error(decode_command, encode_command, msgspec.json.encode(fields))


def _create_with(tail):
    """Make a CreateOrder that is whole up to its lines."""
    empty = encode_command(samples.but(samples.create, lines=()))
    full = encode_command(samples.create)
    same = next(at for at, (one, other) in enumerate(zip(empty, full, strict=False)) if one != other)
    return full[:same] + tail


def _deliver(*strings):
    schema = SCHEMAS.newest[type(samples.deliver)]
    return schema.prefix + b"".join(strings)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(_create_with(longs(2**60)), id="2^60 lines promised, none there"),
        pytest.param(_create_with(longs(-(2**60)) + longs(2**60)), id="2^60 lines in a block of 2^60 bytes"),
        pytest.param(_create_with(longs(-(2**63)) + longs(0)), id="a count that has no positive twin"),
        pytest.param(_create_with(longs(2**31) + bytes(200_000)), id="many lines of empty strings"),
        pytest.param(_create_with((longs(-1) + longs(5) + bytes(5)) * 30_000), id="many blocks of one line"),
        pytest.param(_create_with(b"\0" * 4 + b"\0" + longs(2**60)), id="2^60 entries of metadata promised"),
        pytest.param(
            _create_with(b"\0" * 4 + b"\0" + longs(2**60) + bytes(200_000)), id="the same key again and again"
        ),
        pytest.param(_deliver(longs(2**60)), id="a string of 2^60 bytes"),
        pytest.param(_deliver(longs(-1)), id="a string of -1 bytes"),
        pytest.param(_deliver(b"\x80" * 200_000 + b"\0"), id="a length of 200,000 bytes"),
        pytest.param(b'{"type":' + b"[" * 200_000, id="JSON nested 200,000 deep"),
        pytest.param(b'{"x":' + b'{"a":' * 40_000 + b"1" + b"}" * 40_001, id="objects nested 40,000 deep"),
        pytest.param(b'{"type":"CreateOrder","lines":[' + b"{}," * 80_000 + b"{}]}", id="80,000 empty lines"),
        pytest.param(b'{"type":"PayOrder","amount":1' + b"0" * 250_000 + b"}", id="a number of 250,000 digits"),
        pytest.param(b'{"type":"PayOrder","amount":1e' + b"9" * 250_000 + b"}", id="an exponent of 250,000 digits"),
        pytest.param(b'{"type":"' + b"A" * 250_000 + b'"}', id="a type of 250,000 letters"),
        pytest.param(b'{"type":"DeliverOrder","' + b"A" * 250_000 + b'":1}', id="a name of 250,000 letters"),
    ],
)
def test_a_bomb_costs_little_memory_and_says_little(bomb):
    assert len(bomb) <= MAX_COMMAND_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as caught:
            decode_command(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * MIB
    assert len(caught.value.detail) < 200


def test_the_most_lines_that_fit_cost_little_memory():
    lines = 50_000
    data = _create_with(longs(lines) + bytes(5 * lines) + b"\0" * 6)
    tracemalloc.start()
    try:
        command = decode_command(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(command, CreateOrder)
    assert len(command.lines) == lines
    assert peak < 64 * MIB

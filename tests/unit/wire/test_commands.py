"""Commands as JSON: what producers may send, the reason for what they may not, and the key they send it under."""

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from order_service.domain.identity import command_digest
from order_service.domain.messages import DeliverOrder
from order_service.errors import DecodeError
from order_service.wire.commands import check_key, decode_command, encode_json_command, partition_of
from order_service.wire.dead_letters import DeadLetterReason
from tests.support import samples
from tests.unit.wire.table import GOLDEN

SECRET = "hunter2"


def deliver(fields="", head='"command_id": "deliver-1", "order_id": "order-1", "actor": "service:shop"'):
    """Write a DeliverOrder with these fields more."""
    return f'{{"type": "DeliverOrder", {head}{fields and ", "}{fields}}}'.encode()


def create(fields="", lines='[{"sku": "mug-blue", "quantity": 2, "unit_price": 1250}]'):
    """Write a CreateOrder with these fields more."""
    return (
        '{"type": "CreateOrder", "command_id": "create-1", "order_id": "order-1", "actor": "user:dana", '
        f'"user_id": "dana", "currency": "EUR", "lines": {lines}{fields and ", "}{fields}}}'
    ).encode()


@pytest.mark.parametrize("command", samples.commands, ids=lambda command: type(command).__name__)
def test_a_command_has_the_json_it_had_when_it_was_released(command):
    golden = (GOLDEN / f"{type(command).__name__}.json").read_bytes().rstrip(b"\n")
    assert encode_json_command(command) == golden
    assert decode_command(golden) == command


@pytest.mark.parametrize(
    ("value", "field", "meant"),
    [
        pytest.param(deliver(), "expected_version", None, id="what is not given is at its default"),
        pytest.param(deliver('"expected_version": null'), "expected_version", None, id="null is not given"),
        pytest.param(deliver('"expected_version": -0'), "expected_version", 0, id="minus nought is nought"),
        pytest.param(
            b'{\n\t"actor"  :"a", ' + deliver()[1:] + b" \n", "actor", "service:shop", id="the last of two names"
        ),
        pytest.param(deliver('"correlation_id": "\\ud83d\\ude00"'), "correlation_id", "\N{GRINNING FACE}", id="a pair"),
        pytest.param(deliver('"actor": "\\u0000"'), "actor", "\0", id="a NUL is a character"),
        pytest.param(
            deliver('"decide_by": "2026-01-05T10:00:00.1239+01:00"'),
            "decide_by",
            samples.NOW.replace(microsecond=123_000),
            id="a time comes back in UTC and whole milliseconds",
        ),
    ],
)
def test_what_json_means(value, field, meant):
    command = decode_command(value)
    assert isinstance(command, DeliverOrder)
    assert getattr(command, field) == meant


@pytest.mark.parametrize("before", [b" ", b"\n", b"\r\n\t ", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n"])
def test_a_byte_order_mark_and_spaces_may_come_before_json(before):
    assert decode_command(before + deliver()) == decode_command(deliver())


@pytest.mark.parametrize("number", ["1250.0", "1250.000", "1.25e3", "1.25E+3", "12500e-1", "125000.0e-2"])
def test_a_number_whose_fraction_is_zero_is_an_integer(number):
    """The command has the same digest, so either is a repeat of the other."""
    written = create(lines=f'[{{"sku": "mug-blue", "quantity": 2.0, "unit_price": {number}}}]')
    assert decode_command(written) == decode_command(create())
    assert command_digest(decode_command(written)) == command_digest(decode_command(create()))


@pytest.mark.parametrize(
    ("number", "meant"), [("-0.0", 0), ("0e999999999", 0), ("9007199254740993.0", 2**53 + 1), (f"1.{'0' * 9999}", 1)]
)
def test_a_whole_number_keeps_all_its_digits(number, meant):
    command = decode_command(deliver(f'"expected_version": {number}'))
    assert command.expected_version == meant


def test_a_time_comes_back_in_utc():
    command = decode_command(deliver('"decide_by": "2026-01-05T10:00:00.123999+01:00"'))
    assert str(command.decide_by) == "2026-01-05 09:00:00.123000+00:00"


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        pytest.param(None, "empty", "the record has no value: commands are never deleted", id="a tombstone"),
        pytest.param(b"", "empty", "the record has no value: commands are never deleted", id="no bytes"),
        pytest.param(b"[]", "unknown_format", "the first byte is neither 0", id="not an object"),
        pytest.param(b" \n", "unknown_format", "the first byte is neither 0", id="spaces alone"),
        pytest.param(b"\xef\xbb\xbf", "unknown_format", "the first byte is neither 0", id="a byte order mark alone"),
        pytest.param(
            b"\xa0" + deliver(), "unknown_format", "the first byte is neither 0", id="another space before it"
        ),
        pytest.param(
            b"\x0b" + deliver(), "unknown_format", "the first byte is neither 0", id="a vertical tab before it"
        ),
        pytest.param(b"\n[]", "unknown_format", "the first byte is neither 0", id="a line feed before an array"),
        pytest.param(b" \0\0\0\0\0", "unknown_format", "the first byte is neither 0", id="a space before Avro"),
        pytest.param(
            b" \xef\xbb\xbf" + deliver(), "unknown_format", "the first byte is neither 0", id="a mark after a space"
        ),
        pytest.param(
            b"\xef\xbb\xbf" * 2 + deliver(), "unknown_format", "the first byte is neither 0", id="two byte order marks"
        ),
        pytest.param(deliver().decode().encode("utf-16"), "unknown_format", "the first byte is neither 0", id="UTF-16"),
        pytest.param(b"\x01\0\0\0\0", "unknown_format", "the first byte is neither 0", id="another magic byte"),
        pytest.param(b"{", "not_json", "truncated", id="one brace"),
        pytest.param(deliver() + b"x", "not_json", "trailing characters", id="more after it"),
        pytest.param(deliver() + deliver(), "not_json", "trailing characters", id="two commands"),
        pytest.param(deliver('"expected_version": NaN'), "not_json", "malformed", id="NaN"),
        pytest.param(deliver('"expected_version": 01'), "not_json", "malformed", id="a leading zero"),
        pytest.param(deliver('"correlation_id": "\\ud800"'), "not_json", "", id="the first half of a pair"),
        pytest.param(deliver('"correlation_id": "\\ud800 and more"'), "not_json", "", id="the first half, then more"),
        pytest.param(deliver('"correlation_id": "\\ud800\\u0041"'), "not_json", "", id="the first half, then another"),
        pytest.param(deliver('"correlation_id": "\\udc00x"'), "not_json", "surrogate", id="the second half of a pair"),
        pytest.param(deliver('"correlation_id": "\0"'), "not_json", "invalid character", id="a bare NUL"),
        pytest.param(
            b'{"type": "DeliverOrder", "actor": "\xff"}',
            "not_json",
            "a string is not UTF-8",
            id="a string not in UTF-8",
        ),
        pytest.param(
            b'{"type": "DeliverOrder", "actor": "\xed\xa0\x80"}', "not_json", "not UTF-8", id="a surrogate in UTF-8"
        ),
        pytest.param(b'{"\xff": 1}', "bad_shape", "required field `type`", id="a name not in UTF-8"),
        pytest.param(b'{"type": ' + b"[" * 9_999, "not_json", "nested too deeply", id="nested too deeply"),
        pytest.param(b"{}", "bad_shape", "required field `type`", id="no type"),
        pytest.param(b'{"type": "hunter2"}', "bad_shape", "`type` must be one of CreateOrder, ", id="an unknown type"),
        pytest.param(b'{"type": "OrderPaid"}', "bad_shape", "`type` must be one of", id="an event is no command"),
        pytest.param(b'{"type": 5}', "bad_shape", "Expected `str` - at `$.type`", id="a type that is no string"),
        pytest.param(b'{"type": "DeliverOrder"}', "bad_shape", "required field `command_id`", id="a field missing"),
        pytest.param(deliver('"hunter2": 1'), "bad_shape", "contains an unknown field", id="an unknown field"),
        pytest.param(deliver('"Actor": "x"'), "bad_shape", "contains an unknown field", id="case matters"),
        pytest.param(
            create(lines='[{"sku": "x", "quantity": 1, "unit_price": 1, "hunter2": 1}]'),
            "bad_shape",
            "contains an unknown field",
            id="an unknown field of a line",
        ),
        pytest.param(create(lines="5"), "bad_shape", "Expected `array`, got `int` - at `$.lines`", id="no lines"),
        pytest.param(
            create(lines='[{"sku": 5}]'), "bad_shape", "got `int` - at `$.lines[0].sku`", id="a number for a sku"
        ),
        pytest.param(create('"metadata": {"hunter2": 1}'), "bad_shape", "`$.metadata[...]`", id="metadata of numbers"),
        pytest.param(deliver('"expected_version": "1"'), "bad_shape", "got `str`", id="a string for a number"),
        pytest.param(deliver('"expected_version": true'), "bad_shape", "got `bool`", id="true for a number"),
        pytest.param(deliver('"expected_version": 1.5'), "bad_shape", "got `float`", id="a fraction for a number"),
        pytest.param(deliver('"expected_version": 1e-2'), "bad_shape", "got `float`", id="a negative exponent"),
        pytest.param(
            deliver(f'"expected_version": {2**53}.5'),
            "bad_shape",
            "got `float`",
            id="a fraction that a double cannot hold",
        ),
        pytest.param(deliver('"expected_version": 1e-9999999999999999999'), "bad_shape", "float", id="almost nought"),
        pytest.param(
            deliver('"expected_version": 1e9999999999999999999'), "bad_shape", "out of range", id="a vast exponent"
        ),
        pytest.param(
            deliver('"expected_version": 9223372036854775808.0'), "bad_shape", "float", id="2^63 with a fraction"
        ),
        pytest.param(
            deliver('"expected_version": 1.0, "x": 01.0'), "not_json", "malformed", id="a nought, then a fraction"
        ),
        pytest.param(
            deliver('"expected_version": 1.0, "actor": 1.0'), "bad_shape", "`str`", id="a number for a string"
        ),
        pytest.param(deliver('"expected_version": "1.0"'), "bad_shape", "got `str`", id="a fraction in a string"),
        pytest.param(deliver(f'"expected_version": {2**63}'), "bad_shape", "<= 9223372036854775807", id="2^63"),
        pytest.param(
            deliver(f'"expected_version": {-(2**63) - 1}'), "bad_shape", "-9223372036854775808", id="-2^63 - 1"
        ),
        pytest.param(deliver('"expected_version": 1' + "0" * 5_000), "bad_shape", "out of range", id="5,000 digits"),
        pytest.param(deliver('"decide_by": 5'), "bad_shape", "got `int`", id="a number for a time"),
        pytest.param(deliver('"decide_by": "hunter2"'), "bad_shape", "RFC3339", id="a word for a time"),
        pytest.param(deliver('"decide_by": "2026-01-05T09:00:00"'), "bad_shape", "timezone", id="a naive time"),
        pytest.param(deliver('"decide_by": "2026-02-30T09:00:00Z"'), "bad_shape", "RFC3339", id="30 February"),
        pytest.param(
            deliver('"decide_by": "9999-12-31T23:59:59-02:00"'), "bad_shape", "outside the years", id="the year 10000"
        ),
        pytest.param(
            deliver('"decide_by": "0001-01-01T00:00:00+02:00"'), "bad_shape", "outside the years", id="the year 0"
        ),
        pytest.param(
            deliver(head='"command_id": "hunter2!", "order_id": "order-1", "actor": "a"'),
            "bad_shape",
            "- at `$.command_id`",
            id="an invalid command_id",
        ),
        pytest.param(
            deliver(head='"command_id": "c", "order_id": "hunter2\\n", "actor": "a"'),
            "bad_shape",
            "- at `$.order_id`",
            id="an order_id with a line break",
        ),
    ],
)
def test_the_reason_of_a_dead_letter(value, reason, detail):
    with pytest.raises(DecodeError) as caught:
        decode_command(value)
    assert caught.value.reason == DeadLetterReason(reason)
    assert detail in caught.value.detail
    assert SECRET not in str(caught.value) + str(caught.value.__cause__)


# Keys and partitions

NOT_THE_ID = "the record's key differs from the command's order_id"


@pytest.mark.parametrize(
    ("key", "partition", "reason", "detail"),
    [
        pytest.param(None, 2, "key_missing", "the record has no key: it must be the order_id", id="no key"),
        pytest.param(b"", 2, "key_mismatch", NOT_THE_ID, id="an empty key"),
        pytest.param(b"order-2", 2, "key_mismatch", NOT_THE_ID, id="another order's key"),
        pytest.param(b"order-1\0", 2, "key_mismatch", NOT_THE_ID, id="a byte more"),
        pytest.param(b"\xff", 2, "key_mismatch", NOT_THE_ID, id="a key that is not UTF-8"),
        pytest.param(b"order-1", 3, "wrong_partition", "", id="a partition that is not the key's"),
    ],
)
def test_a_key_must_be_the_order_s_and_in_its_partition(key, partition, reason, detail):
    with pytest.raises(DecodeError) as caught:
        check_key(key, "order-1", partition, 12)
    assert caught.value.reason == DeadLetterReason(reason)
    assert caught.value.detail.startswith(detail)


def test_the_right_key_in_its_partition_passes():
    check_key(b"order-1", "order-1", partition_of(b"order-1", 12), 12)


def test_a_wrong_partition_names_the_likely_culprit_and_its_cure():
    with pytest.raises(DecodeError, match=r"librdkafka's default partitioner .* partitioner=murmur2_random"):
        check_key(b"order-1", "order-1", (partition_of(b"order-1", 12) + 1) % 12, 12)


@given(st.binary(max_size=70), st.integers(1, 300))
def test_a_key_is_in_the_partition_that_aiokafka_chooses(key, partition_count):
    partitions = list(range(partition_count))
    assert partition_of(key, partition_count) == DefaultPartitioner()(key, partitions, partitions)


@pytest.mark.parametrize(
    ("key", "murmur2"),
    [  # org.apache.kafka.common.utils.UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_a_key_is_in_the_partition_that_java_chooses(key, murmur2):
    assert partition_of(key, 2**31) == murmur2 & 0x7FFFFFFF

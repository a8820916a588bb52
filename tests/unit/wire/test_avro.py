"""Every message to Avro and back: the same bytes as ever, and the same as fastavro's own."""

from io import BytesIO

import fastavro
import pytest
from hypothesis import given, settings
from msgspec import structs

from order_service.domain.identity import command_digest
from order_service.domain.messages import CancelOrder, Event, Rejection
from order_service.errors import DecodeError
from order_service.wire.avro import (
    MAX_COMMAND_BYTES,
    MAX_CONTENT_BYTES,
    MAX_EVENT_BYTES,
    decode_avro_command,
    decode_event,
    decode_rejection,
    digest,
    encode_command,
    encode_event,
    encode_rejection,
)
from order_service.wire.commands import decode_command, encode_json_command
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.schemas.catalogue import SCHEMAS, prefix_of
from tests.support import samples
from tests.unit.wire import strategies
from tests.unit.wire.table import CASES

every_message = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
some = settings(max_examples=150, deadline=None)


@every_message
def test_a_message_has_the_bytes_it_had_when_it_was_released(case):
    assert case.encode(case.message) == case.golden


@every_message
def test_bytes_of_every_release_are_read(case):
    assert [case.decode(data) for data in case.releases] == [case.message] * len(case.releases)


@some
@given(strategies.events)
def test_every_event_survives_the_wire(event):
    assert decode_event(encode_event(event)) == event


@some
@given(strategies.rejections)
def test_every_rejection_survives_the_wire(rejection):
    assert decode_rejection(encode_rejection(rejection)) == rejection


@some
@given(strategies.commands)
def test_every_command_survives_the_wire(command):
    assert decode_command(encode_command(command)) == command


@some
@given(strategies.events | strategies.rejections | strategies.commands)
def test_our_writer_writes_what_fastavro_writes(message):
    match message:
        case Event():
            schema, ours = SCHEMAS.newest[type(message.fact)], encode_event(message)
            values = structs.asdict(message) | structs.asdict(message.fact)
        case Rejection():
            schema, ours, values = SCHEMAS.newest[Rejection], encode_rejection(message), structs.asdict(message)
        case _:
            schema, ours, values = SCHEMAS.newest[type(message)], encode_command(message), structs.asdict(message)
    if values.get("lines") is not None:
        values["lines"] = [structs.asdict(line) for line in values["lines"]]
    theirs = BytesIO()
    fastavro.schemaless_writer(theirs, schema.avro, values)
    assert ours == schema.prefix + theirs.getvalue()


@some
@given(strategies.commands)
def test_a_command_means_the_same_in_avro_and_in_json(command):
    from_avro, from_json = decode_command(encode_command(command)), decode_command(encode_json_command(command))
    assert from_avro == from_json
    assert command_digest(from_avro) == command_digest(from_json) == command_digest(command)


@every_message
def test_a_message_cut_short_anywhere_is_none(case):
    for length in range(len(case.golden)):
        with pytest.raises(DecodeError):
            case.decode(case.golden[:length])


@every_message
def test_a_byte_left_over_is_an_error(case):
    with pytest.raises(DecodeError) as caught:
        case.decode(case.golden + b"\0")
    assert (caught.value.reason, caught.value.detail) == (DeadLetterReason.NOT_AVRO, "trailing bytes: 1")


@every_message
@pytest.mark.parametrize("schema_id", [0, 1, 1_000_000_000, 1_000_000_999, 2**32 - 1])
def test_a_schema_that_is_not_ours_is_unknown(case, schema_id):
    with pytest.raises(DecodeError) as caught:
        case.decode(prefix_of(schema_id) + case.golden[5:])
    assert caught.value.reason == DeadLetterReason.UNKNOWN_SCHEMA


@pytest.mark.parametrize("decode", [decode_event, decode_rejection, decode_avro_command])
@every_message
def test_a_message_of_another_kind_is_refused(case, decode):
    if decode is case.decode or (decode, case.decode) == (decode_avro_command, decode_command):
        assert decode(case.golden) == case.message
        return
    with pytest.raises(DecodeError) as caught:
        decode(case.golden)
    assert caught.value.reason == DeadLetterReason.UNKNOWN_SCHEMA


@pytest.mark.parametrize(
    ("decode", "at_most"),
    [
        (decode_command, MAX_COMMAND_BYTES),
        (decode_avro_command, MAX_CONTENT_BYTES),
        (decode_event, MAX_EVENT_BYTES),
        (decode_rejection, MAX_EVENT_BYTES),
    ],
)
def test_a_byte_too_many_is_not_even_looked_at(decode, at_most):
    with pytest.raises(DecodeError) as caught:
        decode(bytes(at_most + 1))
    assert (caught.value.reason, caught.value.detail) == ("too_large", f"{at_most + 1} bytes, at most {at_most}")


def test_a_command_of_just_the_most_bytes_is_looked_at():
    with pytest.raises(DecodeError) as caught:
        decode_command(bytes(MAX_CONTENT_BYTES))
    assert (caught.value.reason, caught.value.detail) == ("unknown_schema", "the schema id 0 is unknown")


def test_a_string_that_is_no_text_is_told_without_its_bytes():
    data = encode_event(samples.order_paid).replace(b"payment-1", b"payment-\xff")
    with pytest.raises(DecodeError) as caught:
        decode_event(data)
    assert (caught.value.reason, caught.value.detail) == ("not_avro", "a string is not UTF-8")
    assert caught.value.__cause__ is None


def test_an_event_cut_short_says_so():
    with pytest.raises(DecodeError) as caught:
        decode_event(encode_event(samples.order_paid)[:-1])
    assert (caught.value.reason, caught.value.detail) == ("not_avro", "truncated, or a union index is out of range")


@pytest.mark.parametrize("milliseconds", [2**63 - 1, -(2**63), 253_402_300_800_000, -62_135_596_800_001])
def test_a_time_that_no_calendar_of_ours_has_is_refused(milliseconds):
    with pytest.raises(DecodeError) as caught:
        decode_event(_paid_at(milliseconds))
    assert (caught.value.reason, caught.value.detail) == ("bad_shape", "a time is outside the years 1 to 9999")


def _paid_at(milliseconds):
    schema = SCHEMAS.newest[type(samples.order_paid.fact)]
    values = structs.asdict(samples.order_paid) | structs.asdict(samples.order_paid.fact)
    data = BytesIO()
    fastavro.schemaless_writer(data, schema.plain, values | {"occurred_at": milliseconds})
    return schema.prefix + data.getvalue()


def test_an_order_id_that_is_none_is_refused_in_avro_too():
    with pytest.raises(DecodeError) as caught:
        decode_command(encode_command(samples.but(samples.pay, order_id="no id")))
    assert caught.value.reason == DeadLetterReason.BAD_SHAPE
    assert "no id" not in caught.value.detail


def test_a_number_past_64_bits_is_never_written():
    with pytest.raises(OverflowError):
        encode_command(samples.but(samples.pay, amount=2**63))


def test_a_digest_of_another_length_is_never_written():
    with pytest.raises(ValueError, match="expected 16 bytes, got 15"):
        encode_event(samples.but(samples.order_paid, previous_digest=bytes(15)))


def test_a_digest_is_of_the_whole_value():
    value = encode_event(samples.order_paid)
    assert len(digest(value)) == 16
    assert len({digest(value[:at] + b"\x07" + value[at + 1 :]) for at in range(len(value))}) == len(value)


@pytest.fixture
def before_there_were_notes():
    """Know an older schema of CancelOrder, from before it had a note."""
    newest = SCHEMAS.newest[CancelOrder]
    fields = [field for field in newest.avro["fields"] if field["name"] != "note"]
    plain = fastavro.parse_schema(newest.avro | {"fields": fields})
    older = structs.replace(newest, id=7, version=0, prefix=prefix_of(7), plain=plain)
    SCHEMAS.by_id[older.id] = older
    return older


def test_what_an_older_schema_did_not_have_is_at_its_default(before_there_were_notes):
    data = BytesIO()
    fastavro.schemaless_writer(data, before_there_were_notes.plain, structs.asdict(samples.cancel))
    command = decode_command(before_there_were_notes.prefix + data.getvalue())
    assert command == samples.but(samples.cancel, note=None)

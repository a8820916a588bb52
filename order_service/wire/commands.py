"""Commands from any producer: Avro or JSON, distinguished by the first byte, and their required key and partition."""

import struct
from collections.abc import Callable
from datetime import UTC
from typing import Final

import msgspec
from msgspec import structs

from order_service.domain.messages import COMMAND_TYPES, Command
from order_service.errors import DecodeError
from order_service.wire.avro import MAX_COMMAND_BYTES, MAX_CONTENT_BYTES, decode_avro_command
from order_service.wire.dead_letters import DeadLetterReason as Why
from order_service.wire.ids import with_ids
from order_service.wire.json_numbers import BYTE_ORDER_MARK, WHITESPACE, with_whole_numbers

_AVRO: Final = 0
_JSON: Final = ord("{")
_NAMES: Final = ", ".join(command.__name__ for command in COMMAND_TYPES)

_decode_json: Final[Callable[[bytes], Command]] = msgspec.json.Decoder(Command).decode
_encode_json: Final = msgspec.json.Encoder().encode
_encode_contents: Final = msgspec.msgpack.Encoder().encode
_SMALL: Final = MAX_CONTENT_BYTES // 8
"""The size up to which no value has too large contents: an empty line has 5 bytes in Avro, and 31 in MessagePack."""


def decode_command(value: bytes | None, *, is_past: bool = False) -> Command:
    """Decode the value of a record of the commands topic. One that `is_past` may have the ids of an earlier version.

    Shape:   Avro (first byte 0), or one JSON object (first byte `{`, after an optional byte order mark and whitespace)
             with the `type` and the fields of a command. Of duplicate names the last one counts. A number with a zero
             fraction, such as 1250.0, is an integer.
    Units:   `decide_by` is returned in UTC and whole milliseconds, rounded down.
    Raises:  DecodeError with a DeadLetterReason for anything else, and for contents of more than 2 MiB: the command may
             have to wait in a changelog, and its rejection repeats its actor.
    """
    if not value:
        raise DecodeError(Why.EMPTY, "the record has no value: commands are never deleted")
    if len(value) > MAX_COMMAND_BYTES:
        raise DecodeError(Why.TOO_LARGE, f"{len(value)} bytes, at most {MAX_COMMAND_BYTES}")
    if value[0] == _AVRO:
        command = decode_avro_command(value, is_past=is_past)
    elif value[0] == _JSON:
        command = with_ids(_in_utc(_from_json(value)), is_past=is_past)
    elif value.removeprefix(BYTE_ORDER_MARK).lstrip(WHITESPACE)[:1] == b"{":
        command = with_ids(_in_utc(_from_json(value.removeprefix(BYTE_ORDER_MARK))), is_past=is_past)
    else:
        raise DecodeError(Why.UNKNOWN_FORMAT, "the first byte is neither 0 (Avro) nor { (JSON)")
    if len(value) > _SMALL and (size := len(_encode_contents(command))) > MAX_CONTENT_BYTES:
        raise DecodeError(Why.TOO_LARGE, f"{size} bytes of contents, at most {MAX_CONTENT_BYTES}")
    return command


def encode_json_command(command: Command) -> bytes:
    """Encode a command as JSON, without fields that have their default value."""
    return _encode_json(command)


def check_key(key: bytes | None, order_id: str, partition: int, partition_count: int) -> None:
    """Check that a command's key is its order_id, so that it follows the earlier commands of that order.

    Raises DecodeError: key_missing, key_mismatch or wrong_partition.
    """
    if key is None:
        raise DecodeError(Why.KEY_MISSING, "the record has no key: it must be the order_id")
    if key != order_id.encode():
        raise DecodeError(Why.KEY_MISMATCH, "the record's key differs from the command's order_id")
    expected = partition_of(key, partition_count)
    if partition != expected:
        raise DecodeError(
            Why.WRONG_PARTITION,
            f"the record is in partition {partition}, its key belongs to partition {expected} (of {partition_count}): "
            "librdkafka's default partitioner (consistent_random, CRC32) differs from Kafka's; set "
            "partitioner=murmur2_random",
        )


def partition_of(key: bytes, partition_count: int) -> int:
    """Return the partition that Kafka's own producer chooses for a key: murmur2 without the sign bit, modulo the count.

    Ours takes 4 µs for a key of 36 bytes. Each order's first command is hashed. With aiokafka's 11 µs a worker would
    need 2 % more time per command (33 µs), at ten commands per order.
    Source: org.apache.kafka.common.utils.Utils.murmur2 and BuiltInPartitioner.partitionForKey.
    """
    return (_murmur2(key) & 0x7FFFFFFF) % partition_count


def _murmur2(data: bytes) -> int:
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    hashed = 0x9747B28C ^ len(data)
    whole = len(data) // 4
    for word in struct.unpack_from(f"<{whole}I", data):
        mixed = word * factor & mask
        hashed = (hashed * factor ^ (mixed ^ mixed >> 24) * factor) & mask
    rest = data[whole * 4 :]
    if rest:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    return hashed ^ hashed >> 15


def _from_json(value: bytes) -> Command:
    try:
        try:
            return _decode_json(value)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            return _decode_json(with_whole_numbers(value))
    except msgspec.ValidationError as error:
        raise DecodeError(Why.BAD_SHAPE, _without_values(str(error))) from None  # its cause would hold the values
    except msgspec.DecodeError as error:
        raise DecodeError(Why.NOT_JSON, str(error)) from error
    except UnicodeDecodeError:
        raise DecodeError(Why.NOT_JSON, "a string is not UTF-8") from None  # its cause would hold the bytes
    except RecursionError as error:
        raise DecodeError(Why.NOT_JSON, "nested too deeply") from error


def _without_values(message: str) -> str:
    """Remove the two values that msgspec repeats: an unknown `type`, and the name of an unknown field."""
    if message.startswith("Invalid value"):
        return f"`type` must be one of {_NAMES}"
    if "unknown field" in message:
        return "Object contains an unknown field"
    return message


def _in_utc(command: Command) -> Command:
    if command.decide_by is None:
        return command
    try:
        moment = command.decide_by.astimezone(UTC)
    except OverflowError as error:
        raise DecodeError(Why.BAD_SHAPE, "`decide_by` is outside the years 1 to 9999 in UTC") from error
    return structs.replace(command, decide_by=moment.replace(microsecond=moment.microsecond // 1000 * 1000))

"""Record batches as a broker that compacts hands them on, read the way aiokafka's consumers read them."""

import json
import struct

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from order_service.kafka.connection import connection
from order_service.settings import Settings

CRC_AT, ATTRIBUTES_AT = 17, 21
TRANSACTIONAL, CONTROL = 0x10, 0x20
ABORT, COMMIT = struct.pack(">hh", 0, 0), struct.pack(">hh", 0, 1)
PRODUCER, EPOCH = 7, 3


def batch(first_offset, records, attributes=0, last_offset=None):
    """Build a batch of format 2; `last_offset` is that of the batch before compaction."""
    builder = DefaultRecordBatchBuilder(
        2, 0, is_transactional=0, producer_id=PRODUCER, producer_epoch=EPOCH, base_sequence=0, batch_size=1 << 20
    )
    for delta, (key, value) in enumerate(records):
        builder.append(delta, 1_700_000_000_000, key=key, value=value, headers=[])
    made = bytearray(builder.build())
    struct.pack_into(">q", made, 0, first_offset)
    struct.pack_into(">h", made, ATTRIBUTES_AT, attributes)
    if last_offset is not None:
        struct.pack_into(">i", made, 23, last_offset - first_offset)
    struct.pack_into(">I", made, CRC_AT, calc_crc32c(bytes(made[ATTRIBUTES_AT:])))
    return bytes(made)


def read(fetched, aborted=(), isolation=fetcher.READ_COMMITTED):
    """Read fetched bytes as a consumer does; returns the offsets of its records, and the next offset to fetch."""
    connection(Settings())
    records = fetcher.PartitionRecords(
        TopicPartition("orders.table.v1", 0),
        fetcher.MemoryRecords(fetched),
        list(aborted),
        0,
        None,
        None,
        True,
        isolation,
    )
    return [record.offset for record in records], records.next_fetch_offset


@pytest.mark.parametrize("isolation", [fetcher.READ_COMMITTED, fetcher.READ_UNCOMMITTED])
def test_a_control_batch_that_compaction_emptied_is_passed_over(isolation):
    log = (
        batch(0, [(b"a", b"1")])
        + batch(1, [], TRANSACTIONAL | CONTROL, last_offset=1)
        + batch(2, [(b"b", b"2"), (b"c", b"3")])
    )
    assert read(log, isolation=isolation) == ([0, 2, 3], 4)


def test_an_empty_control_batch_at_the_end_moves_the_position():
    assert read(batch(0, [(b"a", b"1")]) + batch(1, [], TRANSACTIONAL | CONTROL, last_offset=1)) == ([0], 2)


def test_an_emptied_batch_of_data_moves_the_position():
    assert read(batch(0, [], TRANSACTIONAL, last_offset=5) + batch(6, [(b"a", b"1")])) == ([6], 7)


def test_a_marker_with_its_record_still_ends_an_aborted_transaction():
    log = (
        batch(0, [(b"a", b"aborted")], TRANSACTIONAL)
        + batch(1, [(ABORT, b"\0" * 6)], TRANSACTIONAL | CONTROL)
        + batch(2, [(b"a", b"committed")], TRANSACTIONAL)
        + batch(3, [(COMMIT, b"\0" * 6)], TRANSACTIONAL | CONTROL)
    )
    assert read(log, aborted=[(PRODUCER, 0)]) == ([2], 4)


@pytest.mark.parametrize("length", [-1, 0, 13, 40, 0x7FFFFFFF], ids=hex)
def test_a_damaged_length_names_the_partition_or_ends_the_records(length):
    """The checksum does not cover the length. If it is longer than what was fetched, the rest is fetched again."""
    damaged = bytearray(batch(1, [(b"b", b"2")]))
    struct.pack_into(">i", damaged, 8, length)
    log = batch(0, [(b"a", b"1")]) + bytes(damaged)
    if length == 0x7FFFFFFF:
        assert read(log) == ([0], 1)
    else:
        with pytest.raises(CorruptRecordException, match=r"TopicPartition\(topic='orders.table.v1', partition=0\)"):
            read(log)


def test_a_first_batch_that_is_longer_than_what_was_fetched_is_damaged():
    """Kafka sends the first one whole. aiokafka would pass over one record, and then raise RecordTooLargeError."""
    damaged = bytearray(batch(0, [(b"a", b"1")]))
    struct.pack_into(">i", damaged, 8, 0x7FFFFFFF)
    with pytest.raises(CorruptRecordException, match=r"longer than what was fetched.*partition=0"):
        read(bytes(damaged))


def test_nothing_fetched_is_no_batch():
    assert read(b"") == ([], 0)


def test_an_error_of_somebody_elses_deserializer_stays_what_it_is():
    connection(Settings())
    place, records = TopicPartition("theirs", 0), fetcher.MemoryRecords(batch(0, [(b"a", b"no JSON")]))
    theirs = fetcher.PartitionRecords(place, records, [], 0, None, json.loads, True, fetcher.READ_COMMITTED)
    with pytest.raises(json.JSONDecodeError):
        list(theirs)


def test_a_batch_in_a_codec_that_nobody_has_names_the_partition():
    with pytest.raises(CorruptRecordException, match=r"partition=0"):
        read(batch(0, [(b"a", b"1")], attributes=7))

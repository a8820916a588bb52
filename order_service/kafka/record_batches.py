"""Record batches that Kafka's own clients can read and aiokafka cannot. Every consumer in this package reads them here.

Two kinds stop a partition for ever in aiokafka 0.14:

* A header name that is not UTF-8, which Kafka accepts from any producer: UnicodeDecodeError at every fetch. Here each
  byte that is not UTF-8 becomes a backslash, an x and its hexadecimal digits.
* A control batch without records: KafkaError at every fetch. Compaction leaves one in place of a transaction marker
  when the delete horizon has passed but the producer is still active: Kafka keeps the empty batch for its sequence
  numbers. It carries no marker, as in the Java client since KAFKA-7467.

A batch that cannot be read raises CorruptRecordException here. Its text has topic and partition (`damaged_partition`).
aiokafka does so for a wrong checksum only, and the checksum does not cover the length. If the length is damaged,
aiokafka raises an error without a partition. If it is too long, it raises RecordTooLargeError, and its position is one
record further.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any, Final, SupportsIndex, overload

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

_RECORD_COUNT_AT: Final = 57
_MAGIC_AT: Final = 16
"""Offsets in the header of a batch. Source: Kafka protocol guide, "Record batch"."""


_PARTITION: Final = re.compile(r"TopicPartition\(topic='([^']+)', partition=(\d+)\)")


def damaged_partition(error: BaseException) -> TopicPartition | None:
    """Return the partition in the text of a CorruptRecordException, or None if it has no partition."""
    match = _PARTITION.search(str(error))
    return None if match is None else TopicPartition(match[1], int(match[2]))


def install() -> None:
    """Replace aiokafka's readers in this process, for all consumers. aiokafka has no setting for it."""
    fetcher.MemoryRecords = LenientRecords
    fetcher.PartitionRecords = NamedRecords


class NamedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of a fetched partition. Every error about its batches has the partition in its text."""

    def _unpack_records(self) -> Iterator[Any]:
        try:
            yield from super()._unpack_records()
        except Exception as error:
            if self._key_deserializer or self._value_deserializer:  # not our consumer: the deserializer may have failed
                raise
            raise CorruptRecordException(f"{error!r} - {self._tp}") from error


class LenientRecords(_MemoryRecordsPy):  # type: ignore[misc] # it is final for type checkers only
    """The batches of a fetched partition. Kafka sends the first batch complete, unless its length is damaged."""

    def __init__(self, fetched: bytes) -> None:
        super().__init__(fetched)
        self._is_too_long = self._next_slice is None and self._remaining_bytes > 0

    def has_next(self) -> bool:
        """Return whether another batch follows, readable or not."""
        return self._is_too_long or bool(super().has_next())

    def next_batch(self, *_: Any) -> Any:
        """Return the next batch with its bytes, in case it must be read again."""
        if self._is_too_long:
            raise CorruptRecordException("a batch is longer than what was fetched")
        whole = self._next_slice
        batch = super().next_batch()
        return None if batch is None or whole is None else LenientBatch(batch, whole)


class LenientBatch:
    """A batch from aiokafka's fast reader, or from its slow one if the fast one cannot read it."""

    def __init__(self, batch: Any, whole: memoryview) -> None:
        self._batch = batch
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    @property
    def is_control_batch(self) -> bool:
        """Whether this batch holds a transaction marker."""
        return bool(self._batch.is_control_batch) and not self._is_empty()

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        if self._is_empty():
            return iter(())
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(SlowBatch(self._whole))

    def _is_empty(self) -> bool:
        return bool(self._whole[_MAGIC_AT] == 2 and struct.unpack_from(">i", self._whole, _RECORD_COUNT_AT)[0] == 0)


class SlowBatch(_DefaultRecordBatchPy):  # type: ignore[misc] # it is final for type checkers only
    """aiokafka's pure-Python reader, on a buffer whose strings can always be decoded."""

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        buffer: bytearray = self._buffer  # type: ignore[has-type] # aiokafka does not declare it
        self._buffer = _Buffer(buffer)


class _Text(bytearray):
    def decode(self, encoding: str = "utf-8", _errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _Buffer(bytearray):
    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> bytearray: ...
    def __getitem__(self, index: Any, /) -> Any:
        part = super().__getitem__(index)
        return _Text(part) if isinstance(part, bytearray) else part

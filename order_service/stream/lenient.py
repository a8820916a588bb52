"""Headers whose names are not UTF-8: read anyway, since Kafka lets any producer write them.

aiokafka raises UnicodeDecodeError in the middle of such a batch, again at every fetch: one careless producer would stop
a partition for ever. Here a byte that is no text is spelled out, as a backslash, an x and its hexadecimal digits.
"""

from collections.abc import Iterator
from typing import Any, SupportsIndex, overload

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy


def install() -> None:
    """Let the consumers of this process read such headers."""
    fetcher.MemoryRecords = LenientRecords  # aiokafka has no other way in


class LenientRecords(_MemoryRecordsPy):  # type: ignore[misc] # it is final for type checkers only
    """The batches of a fetched partition."""

    def next_batch(self, *_: Any) -> Any:
        """Give the next batch, with its bytes at hand in case it must be read again."""
        whole = self._next_slice
        batch = super().next_batch()
        return None if batch is None or whole is None else LenientBatch(batch, whole)


class LenientBatch:
    """A batch as aiokafka's fast reader has it, and as its slow one reads it where the fast one cannot."""

    def __init__(self, batch: Any, whole: memoryview) -> None:
        self._batch = batch
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(SlowBatch(self._whole))


class SlowBatch(_DefaultRecordBatchPy):  # type: ignore[misc] # it is final for type checkers only
    """aiokafka's reader in Python, on a buffer whose texts can always be decoded."""

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        buffer: bytearray = self._buffer  # type: ignore[has-type] # aiokafka does not declare it
        self._buffer = _Buffer(buffer)


class _Text(bytearray):
    def decode(self, encoding: str = "utf-8", _errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _Buffer(bytearray):
    @overload
    def __getitem__(self, place: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, place: slice, /) -> bytearray: ...
    def __getitem__(self, place: Any, /) -> Any:
        part = super().__getitem__(place)
        return _Text(part) if isinstance(part, bytearray) else part

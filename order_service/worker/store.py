"""The stores of a worker: the table of each of its partitions on disk, in RocksDB.

The changelog is the truth, a store is a copy of it up to an offset. So a store that is damaged, too old, of another
form or of another changelog is thrown away, and the claim restores the table from the changelog.

A write never waits for RocksDB's compaction: rocksdict holds Python's lock meanwhile, so that all threads would wait.
RocksDB refuses it instead (`no_slowdown`), and it is tried again a moment later.
"""

import asyncio
import errno
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog
from msgspec import Struct

from order_service.errors import SetupError, StoreDamaged, StoreError, StoreUnavailable
from order_service.kafka.admin_requests import TopicIdentity
from order_service.wire import changelog
from order_service.worker import metrics

log = structlog.get_logger()

FORM: Final = 2
"""The form of a store: raise it when what is written changes. A store of another form is thrown away.

Form 2 may have short entries. A version that does not know them restores the table instead, and parks at the claim.
"""
TOO_OLD_S: Final = 24 * 3600.0
"""The age from which a store is not used: Kafka may have removed tombstones after 25 hours (`delete.retention.ms`)."""
STALL_LIMIT_S: Final = 10.0
"""How long RocksDB may refuse a write because its compaction is behind."""
STALL_POLL_S: Final = 0.02
LOCK_WITHIN_S: Final = 10.0
"""How long a starting worker waits for the process that has its directory: its predecessor may still be stopping."""
MEGABYTE: Final = 1024 * 1024
OPEN_FILES: Final = 128
WAL_BYTES: Final = 16 * MEGABYTE
"""What RocksDB reads when a store is opened after kill -9: some 0.1 s, in which this process does nothing else."""
_META: Final = b"meta"
_OPEN: Final = "open"
_CLOSED: Final = "closed"
_DISK: Final = ("No space left", "Read-only file system", "Permission denied", "Disk quota", "Too many open files")
"""Errors of the disk, or of its limits, in RocksDB's texts: the store is kept, and used again once they are gone."""
_T = TypeVar("_T")


class Meta(Struct, frozen=True, array_like=True):
    """What a store is a copy of: which changelog, up to which offset, and since when nothing newer is missing in it.

    `position` is the value of the newest position record, and `position_offset` its offset: the changelog must still
    have it there, or a newer one behind it.
    """

    form: int
    cluster_id: str
    topic: str
    topic_id: str
    partition: int
    next_offset: int
    position_offset: int
    position: bytes
    as_of: float


class TableStore:
    """The store of one partition. Every method raises StoreDamaged or StoreUnavailable if it cannot do its work."""

    def __init__(self, path: Path, meta: Meta, cache: "Cache", failpoint: Callable[[str], None]) -> None:
        self.path = path
        self.meta = meta
        self._failpoint = failpoint
        self._database = self._raising(cache.open, path)
        self._open: Any = self._raising(self._database.get_column_family, _OPEN)
        self._closed: Any = self._raising(self._database.get_column_family, _CLOSED)

    def get(self, order_id: str) -> bytes | None:
        """Return the value of an order, or None if it is not in the store."""
        key = order_id.encode()
        value = self._raising(self._open.get, key)
        if value is None:
            value = self._raising(self._closed.get, key)
        return None if value is None else bytes(value)

    def read_meta(self) -> Meta | None:
        """Return what the store is a copy of, or None for an empty one. Raises StoreDamaged if it cannot be read."""
        data = self._raising(self._database.get, _META)
        if data is None:
            return None
        try:
            return msgspec.msgpack.decode(data, type=Meta)
        except msgspec.MsgspecError as error:
            raise StoreDamaged(f"{self.path}: its description cannot be read: {error}") from error

    async def write(self, values: Mapping[str, bytes | None], meta: Meta) -> None:
        """Write the values of orders (None deletes one) and what the store is a copy of then, in one batch."""
        self._failpoint("store.write")
        give_up_at = time.monotonic() + STALL_LIMIT_S
        while not self._has_written(self._batch(values, meta)):  # a batch can be used once, also if it is refused
            if time.monotonic() > give_up_at:
                raise StoreUnavailable(f"{self.path}: RocksDB has refused a write for {STALL_LIMIT_S:.0f} s")
            await asyncio.sleep(STALL_POLL_S)
        self.meta = meta
        self._failpoint("store.written")

    def open_orders(self) -> Iterator[tuple[str, bytes]]:
        """Return an iterator over the orders that are neither delivered nor cancelled."""
        orders = self._raising(self._open.items)
        while (order := self._raising(next, orders, None)) is not None:
            yield order[0].decode(), order[1]

    def closed_orders(self, after: str, count: int) -> list[tuple[str, bytes]]:
        """Return the next `count` delivered or cancelled orders, by the bytes of their ids, behind the id `after`."""
        first = after.encode() + b"\0"
        orders = self._raising(lambda: list(islice(self._closed.items(from_key=first), count)))
        return [(key.decode(), value) for key, value in orders]

    def count(self) -> int:
        """Return about how many orders the store has."""
        estimate = "rocksdb.estimate-num-keys"
        counts = [self._raising(family.property_int_value, estimate) for family in (self._open, self._closed)]
        return sum(count or 0 for count in counts)

    def close(self) -> None:
        """Close the store. Any later use raises StoreUnavailable.

        What RocksDB cannot flush before it closes, because the disk is full, is in its log or in the changelog.
        """
        parts = (self._open, self._closed, self._database)
        self._open = self._closed = self._database = _ClosedStore()
        for part in parts:
            try:
                part.close()
            except Exception as error:  # noqa: BLE001, rocksdict raises no other type, after it has closed the part
                why = str(_translated(self.path, error))
                log.warning("Table store closed without a flush.", partition=self.meta.partition, why=why)

    def _batch(self, values: Mapping[str, bytes | None], meta: Meta) -> Any:
        from rocksdict import WriteBatch  # noqa: PLC0415, 11 MB that only this mode needs

        batch = WriteBatch(raw_mode=True)
        is_open = self._raising(self._database.get_column_family_handle, _OPEN)
        is_closed = self._raising(self._database.get_column_family_handle, _CLOSED)
        for order_id, value in values.items():
            key = order_id.encode()
            if value is not None and changelog.is_open(value):
                batch.put(key, value, is_open)
                continue
            if self._raising(self._open.key_may_exist, key):
                batch.delete(key, is_open)
            if value is None:
                batch.delete(key, is_closed)
            else:
                batch.put(key, value, is_closed)
        batch.put(_META, msgspec.msgpack.encode(meta))
        return batch

    def _has_written(self, batch: Any) -> bool:
        """Write a batch, and return whether it is written: RocksDB refuses one that would have to wait."""
        from rocksdict import WriteOptions  # noqa: PLC0415

        options = WriteOptions()
        options.no_slowdown = True
        try:
            self._database.write(batch, options)
        except StoreError:  # it was closed while this waited
            raise
        except Exception as error:  # rocksdict raises no other type
            if "Result incomplete" in str(error):
                return False
            raise _translated(self.path, error) from error
        return True

    def _raising(self, use: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return use(*arguments)
        except StoreError:
            raise
        except Exception as error:  # rocksdict raises no other type
            raise _translated(self.path, error) from error


class _ClosedStore:
    """What is left of a closed store."""

    def __getattr__(self, _name: str) -> Any:
        raise StoreUnavailable("the store is closed")


class Cache:
    """The memory that all stores of a worker share: blocks, filters and what is not written to disk yet."""

    def __init__(self, size_bytes: int) -> None:
        from rocksdict import Cache as BlockCache  # noqa: PLC0415
        from rocksdict import WriteBufferManager  # noqa: PLC0415

        self._blocks = BlockCache(size_bytes)
        self._buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            size_bytes // 2, allow_stall=False, cache=self._blocks
        )
        self._buffer_bytes = max(MEGABYTE, min(8 * MEGABYTE, size_bytes // 16))

    def open(self, path: Path) -> Any:
        """Open a store, or create it."""
        from rocksdict import Rdict  # noqa: PLC0415

        families = {name: self._options() for name in (_OPEN, _CLOSED)}
        return Rdict(str(path), self._options(), column_families=families)

    def _options(self) -> Any:
        from rocksdict import BlockBasedOptions, DBCompressionType, Options  # noqa: PLC0415

        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._blocks)
        blocks.set_bloom_filter(10, block_based=False)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.create_missing_column_families(True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_manager(self._buffers)
        options.set_write_buffer_size(self._buffer_bytes)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_level_compaction_dynamic_level_bytes(True)
        options.set_max_total_wal_size(WAL_BYTES)
        options.set_max_open_files(OPEN_FILES)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(MEGABYTE)
        return options


class Stores:
    """The stores of a worker, in one directory. At most one per partition is open; opening it closes the one before."""

    def __init__(
        self,
        directory: Path,
        cache_bytes: int,
        changelog_topic: TopicIdentity,
        failpoint: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._directory = directory
        self._topic = changelog_topic
        self._failpoint = failpoint
        self._stores: dict[int, TableStore] = {}
        self._cache = Cache(cache_bytes)
        self._lock = _locked(directory)

    async def open(self, partition: int, start: int, end: int) -> TableStore:
        """Open the store of a partition whose changelog has records from `start` to before `end`.

        A store that cannot be a copy of that changelog is thrown away, and a new one is created. Its `meta` has what it
        is a copy of. Raises StoreUnavailable if the disk cannot be read or written.
        """
        self.close(partition)
        path = self._path(partition)
        topic = self._topic
        empty = Meta(FORM, topic.cluster_id, topic.name, topic.topic_id, partition, 0, -1, b"", time.time())
        try:
            store = TableStore(path, empty, self._cache, self._failpoint)
            self._stores[partition] = store
            meta = store.read_meta()
            why = "" if meta is None else _why_unusable(meta, empty, start, end)
        except StoreDamaged as error:
            meta, why = None, str(error)
        if why:
            self.discard(partition, why)
            meta, store = None, TableStore(path, empty, self._cache, self._failpoint)
            self._stores[partition] = store
        await store.write({}, meta or empty)  # a disk that is full or read-only shows here, before the table is read
        log.info("Table store opened.", partition=partition, offset=store.meta.next_offset, end=end)
        return store

    def discard(self, partition: int, why: str) -> None:
        """Throw a store away."""
        log.warning("Table store thrown away; the table is restored from its changelog.", partition=partition, why=why)
        metrics.STORES_DISCARDED.labels(partition).inc()
        self.close(partition)
        path = self._path(partition)
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be removed: {error.strerror}") from error

    def drop(self, partition: int, error: StoreError) -> None:
        """Close a store that could not be used, and throw it away if it is damaged."""
        self.close(partition)
        if isinstance(error, StoreDamaged):
            try:
                self.discard(partition, str(error))
            except StoreUnavailable as kept:  # the next claim says so again
                error = kept
        if isinstance(error, StoreUnavailable):
            metrics.STORE_FAULTS.labels(partition).set(1)
            log.error("The disk of a table cannot be used; its lane waits.", partition=partition, why=str(error))

    def _path(self, partition: int) -> Path:
        return self._directory / f"{self._topic.name}-{partition}"

    def keep(self, partitions: set[int]) -> None:
        """Close the stores of all other partitions."""
        for partition in self._stores.keys() - partitions:
            self.close(partition)

    def close(self, partition: int) -> None:
        """Close the store of a partition, if it is open."""
        store = self._stores.pop(partition, None)
        if store is not None:
            store.close()

    def close_all(self) -> None:
        """Close all stores, and release the directory."""
        self.keep(set())
        self._lock.close()


def _why_unusable(meta: Meta, expected: Meta, start: int, end: int) -> str:
    """Return why a store cannot be a copy of this changelog, or an empty string."""
    fields = ("form", "cluster_id", "topic", "topic_id", "partition")
    for name in fields:
        found, wanted = getattr(meta, name), getattr(expected, name)
        if found != wanted:
            return f"its {name} is {found}, expected {wanted}"
    if not 0 <= time.time() - meta.as_of < TOO_OLD_S:
        return f"it is older than {TOO_OLD_S / 3600:.0f} hours, or from the future"
    if meta.next_offset > end:
        return f"it is ahead of the changelog: it ends at offset {meta.next_offset}, the changelog at {end}"
    if (needed := max(0, meta.position_offset)) < start:
        return f"the changelog begins at offset {start}, the store needs it from offset {needed} on"
    return ""


def _locked(directory: Path) -> Any:
    """Create the directory and return its lock. Raises SetupError if it cannot be used or another process has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _opened_lock(directory / "lock")
    except OSError as error:
        raise SetupError(f"ORDERS_TABLE_DIR {directory} cannot be used: {error.strerror}") from error
    give_up_at = time.monotonic() + LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up_at:
                lock.close()
                raise SetupError(
                    f"another process uses ORDERS_TABLE_DIR {directory}: give each worker a directory of its own"
                ) from error
            time.sleep(0.1)
        else:
            return lock


def _opened_lock(path: Path) -> Any:
    """Open the file of a lock. A worker also starts on a disk that has become read-only, and its lanes wait."""
    try:
        return path.open("w")
    except OSError as error:
        if error.errno != errno.EROFS or not path.exists():
            raise
        return path.open()


def _translated(path: Path, error: Exception) -> StoreError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if any(reason in text for reason in _DISK):
        return StoreUnavailable(f"the disk of {path.parent} cannot be used: {text}")
    return StoreDamaged(f"{path} cannot be used: {text}")

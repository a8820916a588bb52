"""The table of a lane on disk: what it returns, when it is thrown away, and what damage and a full disk do."""

import asyncio
import errno
import os
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from order_service.errors import SetupError, StoreDamaged, StoreUnavailable
from order_service.kafka.admin_requests import TopicIdentity
from order_service.wire.changelog import Position, encode
from order_service.worker import store as store_module
from order_service.worker.store import FORM, MEGABYTE, TOO_OLD_S, Meta, Stores
from order_service.worker.table import Table
from tests.support.samples import ORDER_ID, cancel, create, deliver, entry_after, pay, ship, short_of

TOPIC = TopicIdentity("orders.table.v1", "cluster", "topic")
CREATED, PAID, DELIVERED = entry_after([create]), entry_after([create, pay]), entry_after([create, pay, ship, deliver])
SHORT = short_of(DELIVERED)
POSITION = Position(3, "owner", 3, None)


@pytest.fixture
def made(tmp_path):
    """Open the stores of a worker in one directory; closes the ones before."""
    opened: list[Stores] = []

    def make(topic=TOPIC, **settings):
        for stores in opened:
            stores.close_all()
        opened.append(Stores(tmp_path / "tables", 16 * MEGABYTE, topic, **settings))
        return opened[-1]

    yield make
    opened[-1].close_all()


async def filled(stores, entries, *, offset=9):
    """Return the table of partition 0 with these entries on disk."""
    table = Table(await stores.open(0, 0, 0))
    for order_id, entry in entries.items():
        table.restore(order_id, encode(entry))
    await table.save_claimed(POSITION, offset, time.time())
    return table


async def test_orders_are_returned_as_they_were_saved_also_by_the_next_process(made):
    entries = {"open": CREATED, "paid": PAID, "closed": DELIVERED}
    table = await filled(made(), entries)
    assert {order_id: table.get(order_id) for order_id in entries} == entries
    store = await made().open(0, 0, 10)
    again = Table(store)
    assert (store.meta.next_offset, store.meta.position_offset, store.meta.position) == (10, 9, encode(POSITION))
    assert {order_id: again.get(order_id) for order_id in entries} == entries
    assert again.get("other") is None
    assert dict(again.items()) == {"open": CREATED, "paid": PAID}, "timers need the open ones only"
    assert len(again) == 3


async def test_memory_holds_only_what_the_store_does_not_have(made):
    table = await filled(made(), {ORDER_ID: CREATED})
    for offset, (entry, after) in enumerate(pairwise([CREATED, PAID, DELIVERED]), 10):
        assert table.get(ORDER_ID) == entry
        assert not table._values
        table.put(ORDER_ID, after)
        values = table.take_changes()
        assert (table.get(ORDER_ID), list(table._values)) == (after, [ORDER_ID])
        await table.save(values, POSITION, offset)
    assert (table.get(ORDER_ID), table._values) == (DELIVERED, {})


async def test_a_change_of_the_next_turn_is_not_lost_when_the_turn_before_is_saved(made):
    table = await filled(made(), {})
    table.put(ORDER_ID, CREATED)
    first = table.take_changes()
    table.put(ORDER_ID, PAID)
    second = table.take_changes()
    await table.save(first, POSITION, 10)
    assert table.get(ORDER_ID) == PAID
    await table.save(second, POSITION, 11)
    assert (table.get(ORDER_ID), table._values) == (PAID, {})


@pytest.mark.parametrize("entry", [CREATED, DELIVERED])
async def test_a_deleted_order_is_deleted_on_disk(made, entry):
    table = await filled(made(), {ORDER_ID: entry})
    table.restore(ORDER_ID, None)
    assert table.get(ORDER_ID) is None
    await table.save_claimed(POSITION, 11, time.time())
    assert table.get(ORDER_ID) is None
    assert table._values == {}


async def test_what_an_order_remembers_survives_on_disk(made):
    await filled(made(), {ORDER_ID: entry_after([create, cancel])})
    entry = Table(await made().open(0, 0, 10)).get(ORDER_ID)
    assert entry == entry_after([create, cancel])
    assert entry is not None
    assert [command_id for command_id, _ in entry.accepted] == ["create-1", "cancel-1"]


async def test_closed_orders_are_swept_in_slices_also_those_that_change_meanwhile(made):
    closed = {f"closed-{number}": DELIVERED for number in range(5)}
    table = await filled(made(), {"open": CREATED, **closed})
    table.put("closed-1", SHORT)
    table.take_changes()  # not saved yet: the next sweep finds it
    slices = table.sweep(2)
    first = next(slices)
    table.put("a new one", DELIVERED)
    await table.save(table.take_changes(), POSITION, 11)
    assert [[order_id for order_id, _ in each] for each in [first, *slices]] == [
        ["closed-0"],
        ["closed-2", "closed-3"],
        ["closed-4"],
    ]


async def test_a_short_entry_is_kept_on_disk_among_the_closed_orders(made):
    table = await filled(made(), {ORDER_ID: DELIVERED})
    table.put(ORDER_ID, SHORT)
    await table.save(table.take_changes(), POSITION, 10)
    assert (table.get(ORDER_ID), table._values) == (SHORT, {})
    again = Table(await made().open(0, 0, 11))
    assert (again.get(ORDER_ID), list(again.items()), len(again)) == (SHORT, [], 1)
    assert [order for each in again.sweep(10) for order in each] == [(ORDER_ID, encode(SHORT))]


async def test_a_sweep_of_a_store_that_is_closed_meanwhile_says_so(made):
    stores = made()
    table = await filled(stores, {f"closed-{number}": DELIVERED for number in range(3)})
    slices = table.sweep(2)
    next(slices)
    stores.close(0)
    with pytest.raises(StoreUnavailable, match="closed"):
        next(slices)


CHANGES: list[Any] = [
    pytest.param({"form": FORM + 1}, 0, 10, f"its form is {FORM + 1}, expected {FORM}", id="another form"),
    pytest.param({"partition": 1}, 0, 10, "its partition is 1, expected 0", id="another partition"),
    pytest.param({"cluster_id": "x"}, 0, 10, "its cluster_id is x, expected cluster", id="another cluster"),
    pytest.param({"topic_id": "x"}, 0, 10, "its topic_id is x, expected topic", id="a topic created again"),
    pytest.param({"topic": "x"}, 0, 10, "its topic is x, expected orders.table.v1", id="another topic"),
    pytest.param({"as_of": -TOO_OLD_S}, 0, 10, "it is older than 24 hours, or from the future", id="too old"),
    pytest.param({"as_of": 60.0}, 0, 10, "it is older than 24 hours, or from the future", id="from the future"),
    pytest.param({}, 0, 9, "it is ahead of the changelog: it ends at offset 10, the changelog at 9", id="ahead"),
    pytest.param(
        {}, 10, 20, "the changelog begins at offset 10, the store needs it from offset 9 on", id="a deleted head"
    ),
    pytest.param(
        {"next_offset": 0, "position_offset": -1},
        1,
        20,
        "the changelog begins at offset 1, the store needs it from offset 0 on",
        id="a deleted head, and a part of what was before it",
    ),
]


@pytest.mark.parametrize(("changes", "start", "end", "why"), CHANGES)
async def test_a_store_that_is_no_copy_of_the_changelog_is_thrown_away(made, changes, start, end, why):
    table = await filled(made(), {ORDER_ID: CREATED})
    if "as_of" in changes:
        changes = {"as_of": time.time() + changes["as_of"]}
    assert table.store is not None
    await table.store.write({}, structs.replace(table.store.meta, **changes))
    with capture_logs() as lines:
        store = await made().open(0, start, end)
    assert (store.get(ORDER_ID), store.meta.next_offset, store.meta.position_offset) == (None, 0, -1)
    assert [why in line["why"] for line in lines if line["log_level"] == "warning"] == [True]


async def test_a_store_within_its_age_is_kept(made):
    table = await filled(made(), {ORDER_ID: CREATED})
    assert table.store is not None
    await table.store.write({}, structs.replace(table.store.meta, as_of=time.time() - TOO_OLD_S + 60))
    assert Table(await made().open(0, 0, 10)).get(ORDER_ID) == CREATED


async def test_a_write_that_was_torn_by_a_power_failure_leaves_the_state_before_it(made, tmp_path):
    table = await filled(made(), {ORDER_ID: CREATED})
    table.put(ORDER_ID, PAID)
    await table.save(table.take_changes(), POSITION, 11)
    directory = tmp_path / "tables" / "orders.table.v1-0"
    shutil.copytree(directory, tmp_path / "as after kill -9")
    stores = made()
    shutil.rmtree(directory)
    (tmp_path / "as after kill -9").rename(directory)
    [log] = [path for path in directory.glob("*.log") if path.stat().st_size]
    os.truncate(log, log.stat().st_size - 5)
    store = await stores.open(0, 0, 12)
    assert (Table(store).get(ORDER_ID), store.meta.next_offset) == (CREATED, 10)


async def damage(made, tmp_path, change):
    """Fill a store, close it, and change each of its files of orders."""
    table = await filled(made(), {f"order-{number}": CREATED for number in range(3_000)})
    assert table.store is not None
    table.store._database.flush()
    table.store._open.flush()
    made()
    files = list((tmp_path / "tables" / "orders.table.v1-0").glob("*.sst"))
    assert files
    for path in files:
        change(path)


def overwrite(path: Path):
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))


@pytest.mark.parametrize("change", [Path.unlink, overwrite])
async def test_a_store_with_a_missing_or_overwritten_file_is_thrown_away(made, tmp_path, change):
    await damage(made, tmp_path, change)
    store = await made().open(0, 0, 10)
    assert (store.meta.next_offset, store.get("order-1")) == (0, None)


def flip_in_blocks(path: Path):
    """Change one byte in each block of data, but leave the index and the footer."""
    data = bytearray(path.read_bytes())
    for at in range(100, len(data) // 2, 1_000):
        data[at] ^= 0xFF
    path.write_bytes(bytes(data))


async def test_damage_that_shows_while_the_lane_runs_is_an_error_never_an_answer(made, tmp_path):
    await damage(made, tmp_path, flip_in_blocks)
    table = Table(await made().open(0, 0, 10))
    seen = 0
    for number in range(3_000):
        try:
            assert table.get(f"order-{number}") == CREATED
        except StoreDamaged as error:
            assert "orders.table.v1-0 cannot be used: Corruption" in str(error)  # noqa: PT017, some are undamaged
            seen += 1
    assert seen > 100


async def test_a_store_in_whose_place_another_file_is_is_thrown_away(made, tmp_path):
    stores = made()
    (tmp_path / "tables" / "orders.table.v1-0").write_text("not a store")
    assert (await stores.open(0, 0, 10)).meta.next_offset == 0


async def test_opening_a_store_again_closes_the_one_before(made):
    stores = made()
    first = await stores.open(0, 0, 10)
    await stores.open(0, 0, 10)
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        first.get(ORDER_ID)


class Refusing:
    """A database whose writes fail with these texts, and then succeed."""

    def __init__(self, database, *texts):
        self._database = database
        self._texts = list(texts)

    def __getattr__(self, name):
        return getattr(self._database, name)

    def write(self, batch, options):
        if self._texts:
            raise Exception(self._texts.pop(0))  # noqa: TRY002, as rocksdict does
        self._database.write(batch, options)


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT], ids=lambda code: errno.errorcode[code]
)
async def test_a_disk_that_cannot_be_written_keeps_the_store(made, code):
    table = await filled(made(), {})
    assert table.store is not None
    text = f"IO error: {os.strerror(code)}: While appending to file"
    table.store._database = Refusing(table.store._database, text)
    table.put(ORDER_ID, CREATED)
    with pytest.raises(StoreUnavailable, match=r"the disk of .* cannot be used: IO error"):
        await table.save(table.take_changes(), POSITION, 10)
    assert table.get(ORDER_ID) == CREATED


async def test_a_write_that_would_wait_for_compaction_is_tried_again(made, monkeypatch):
    table = await filled(made(), {})
    assert table.store is not None
    stall = "Result incomplete: Write stall"
    table.store._database = Refusing(table.store._database, stall, stall)
    table.put(ORDER_ID, CREATED)
    await table.save(table.take_changes(), POSITION, 10)
    assert table._values == {}
    monkeypatch.setattr(store_module, "STALL_LIMIT_S", 0.0)
    table.store._database = Refusing(table.store._database, *[stall] * 9)
    with pytest.raises(StoreUnavailable, match="has refused a write"):
        await table.store.write({}, table.store.meta)


def set_stall(store, *, stalls):
    """Make RocksDB refuse the writes of a store, or accept them again: for its many small files, or for few of them."""
    files = "1" if stalls else "100"
    limits = {"level0_slowdown_writes_trigger": files, "level0_stop_writes_trigger": files}
    store._open.set_options(limits | {"level0_file_num_compaction_trigger": "1000"})


async def stalled(made):
    """Return a table whose store RocksDB does not write, because its compaction is behind."""
    table = await filled(made(), {})
    assert table.store is not None
    for number in range(2):
        table.store._open[b"%d" % number] = b""
        table.store._open.flush()
    set_stall(table.store, stalls=True)
    table.put(ORDER_ID, CREATED)
    return table, table.store


async def test_a_write_that_rocksdb_has_refused_is_written_when_its_compaction_has_caught_up(made):
    table, store = await stalled(made)
    saving = asyncio.create_task(table.save(table.take_changes(), POSITION, 10))
    await asyncio.sleep(0)
    assert (store.get(ORDER_ID), saving.done()) == (None, False)
    set_stall(store, stalls=False)
    await asyncio.wait_for(saving, 30)
    assert (store.get(ORDER_ID), store.meta.next_offset) == (encode(CREATED), 11)


async def test_a_store_that_is_closed_while_a_write_waits_is_not_damaged(made):
    table, store = await stalled(made)
    saving = asyncio.create_task(table.save(table.take_changes(), POSITION, 10))
    await asyncio.sleep(0)
    store.close()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await asyncio.wait_for(saving, 30)


class Unflushable:
    """A part of a store that is closed, although it cannot be flushed."""

    def __init__(self, part):
        self._part = part

    def close(self):
        self._part.close()
        raise Exception("IO error: Writer has previous error.")  # noqa: TRY002, as rocksdict does


async def test_a_store_that_cannot_be_flushed_is_closed_and_opened_again(made):
    stores = made()
    await filled(stores, {ORDER_ID: CREATED})
    store = stores._stores[0]
    store._open, store._closed = Unflushable(store._open), Unflushable(store._closed)
    store._database = Unflushable(store._database)
    with capture_logs() as lines:
        stores.close(0)
    assert [line["event"] for line in lines] == ["Table store closed without a flush."] * 3
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        store.get(ORDER_ID)
    assert Table(await stores.open(0, 0, 10)).get(ORDER_ID) == CREATED


def test_two_workers_do_not_share_a_directory(made, tmp_path, monkeypatch):
    made()
    monkeypatch.setattr(store_module, "LOCK_WITHIN_S", 0.0)
    with pytest.raises(SetupError, match="give each worker a directory of its own"):
        Stores(tmp_path / "tables", MEGABYTE, TOPIC)


def test_a_directory_that_cannot_be_made_is_an_error_of_the_setup(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be used: Not a directory"):
        Stores(tmp_path / "file" / "tables", MEGABYTE, TOPIC)


async def test_an_idle_store_says_now_and_then_that_it_is_complete(made):
    table = await filled(made(), {})
    assert table.store is not None
    old: Meta = structs.replace(table.store.meta, as_of=time.time() - 3600)
    await table.store.write({}, old)
    await table.refresh()
    assert table.store.meta.as_of > old.as_of + 3000
    fresh = table.store.meta
    await table.refresh()
    assert table.store.meta is fresh

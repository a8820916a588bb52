"""Tables that a run damages: a torn write is forgotten, and any other damage is noticed."""

import shutil
import time

import pytest
from structlog.testing import capture_logs

from chaos.faults.damaged_tables import DAMAGES, damage
from chaos.plan import TABLE_DAMAGES
from chaos.run import THROWN_AWAY
from order_service.errors import StoreDamaged
from order_service.kafka.admin_requests import TopicIdentity
from order_service.wire.changelog import Position, encode
from order_service.worker.store import MEGABYTE, Stores
from order_service.worker.table import Table
from tests.support.samples import create, entry_after, pay

CREATED, PAID = entry_after([create]), entry_after([create, pay])
POSITION = Position(3, "owner", 3, None)
PARTITIONS = range(2)


def stores_in(directory):
    return Stores(directory / "0", 16 * MEGABYTE, TopicIdentity("orders.table.v1", "cluster", "topic"))


async def killed(tmp_path):
    """Return the directory of a killed worker. Its tables have an order in files, and a change of it in their logs."""
    running, directory = tmp_path / "running", tmp_path / "killed"
    for entry in (CREATED, PAID):
        stores = stores_in(running)
        for partition in PARTITIONS:
            table = Table(await stores.open(partition, 0, 10))
            table.restore("order", encode(entry))
            await table.save_claimed(POSITION, 9, time.time())
        if entry is PAID:
            shutil.copytree(running, directory)
        stores.close_all()
    return directory


async def read(stores, partition):
    """Return what a table has of an order, or that it was thrown away or is damaged."""
    with capture_logs() as lines:
        store = await stores.open(partition, 0, 10)
    if any(line["event"] == THROWN_AWAY for line in lines):
        return THROWN_AWAY
    try:
        return Table(store).get("order")
    except StoreDamaged:
        return StoreDamaged


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        pytest.param("torn", CREATED, id="the last write is gone"),
        pytest.param("missing", THROWN_AWAY, id="the list of files is gone"),
        pytest.param("exchanged", THROWN_AWAY, id="the table is that of another partition"),
    ],
)
async def test_a_damaged_table_is_noticed(tmp_path, how, expected):
    directory = await killed(tmp_path)
    assert damage(directory, how) == len(PARTITIONS)
    stores = stores_in(directory)
    assert [await read(stores, partition) for partition in PARTITIONS] == [expected] * len(PARTITIONS)
    stores.close_all()


async def test_a_damaged_block_is_noticed_when_it_is_read(tmp_path):
    """That may be at once: the position is in a file, too."""
    directory = await killed(tmp_path)
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "running", directory)  # closed in order: all is in files, and nothing in logs
    assert damage(directory, "flipped") == len(PARTITIONS)
    stores = stores_in(directory)
    assert {await read(stores, partition) for partition in PARTITIONS} <= {THROWN_AWAY, StoreDamaged}
    stores.close_all()


def test_there_is_a_way_to_do_each_damage():
    assert set(DAMAGES) == set(TABLE_DAMAGES)


@pytest.mark.parametrize("how", TABLE_DAMAGES)
def test_a_worker_without_tables_has_none_to_damage(tmp_path, how):
    assert damage(tmp_path, how) == 0

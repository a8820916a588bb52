"""A worker whose disk is full or read-only, on a real file system and a real broker: lanes wait, and nothing is lost.

Each test goes the documented way back: `docs/operations/table-on-disk.md`.
"""

import re
from itertools import islice

import pytest

from order_service.domain.messages import Line
from tests.support.command_line import CommandLine
from tests.support.deciding import creates, end
from tests.support.service import Service, histories, until
from tests.support.small_disk import SmallDisk

SIZE_MB = 48
"""RocksDB reserves 5 MB for each store that is open."""
LINES = tuple(Line(line_id=f"{n}", sku="mug", name="n" * 100, quantity=1, unit_price=100) for n in range(200))
LARGE_MAX = 1_000
WAITS = "The disk of a table cannot be used; its lane waits."
THROWN_AWAY = "Table store thrown away; the table is restored from its changelog."

FAULTS = [
    pytest.param(SmallDisk.full, "No space left on device", id="full"),
    pytest.param(SmallDisk.read_only, "Read-only file system", id="read-only"),
]


class Estate:
    """One service, a small disk for the tables of its worker, and all that was sent."""

    def __init__(self, service, disk):
        self.service = service
        self.disk = disk
        self._sent = []
        self._orders = 0
        self._large = iter(creates(service, LARGE_MAX, 0, lines=LINES, discount=0))

    def start(self, **settings):
        """Start a worker with its tables on the small disk; each is the same member of the group."""
        on_disk = {"ORDERS_TABLE": "rocksdb", "ORDERS_TABLE_DIR": str(self.disk.path / "tables")}
        own = {"ORDERS_TABLE_CACHE_MB": "16", "ORDERS_INSTANCE_ID": "one"}
        return self.service.start_worker(module=self.disk.module, **(on_disk | own | settings))

    def send(self, commands):
        self.service.send(commands)
        self._sent += commands

    def send_lives(self, count=4):
        self.send(histories(count, first=self._orders + 1))
        self._orders += count

    def send_large(self):
        """Send orders of 25 KB to partition 0: its store writes a new file after 40 of them."""
        self.send(list(islice(self._large, 10)))

    def check(self):
        """Wait until all is decided, and check that each command has one outcome and that `verify` finds nothing."""
        self.service.wait_outcomes(len(self._sent))
        self.service.check(self._sent)
        assert "findings: 0" in CommandLine(self.service.environment)("verify").stdout


@pytest.fixture(scope="module")
def service(bootstrap_servers, tmp_path_factory, users):
    with Service(bootstrap_servers, tmp_path_factory.mktemp("disks"), users) as made:
        yield made


@pytest.fixture(scope="module")
def estate(service):
    with SmallDisk(service.directory / "disk", SIZE_MB) as disk:
        yield Estate(service, disk)


def is_at_fault(worker):
    """Return whether the metric of a lane says that its disk cannot be used."""
    return re.search(r'^orders_table_store_fault{partition="\d+"} 1', worker.admin("/metrics")[1], re.MULTILINE)


def waits(worker, text):
    """Return whether a lane waits for its disk, as the metric and readiness say."""
    reason = rf"it failed and is tried again: the disk of \S+ cannot be used: .*{text}"
    return not worker.is_ready() and is_at_fault(worker) and re.search(reason, worker.faults())


def check_recovered(worker, text):
    """Check that all lanes run with the tables that they had, and what the log has about the fault."""
    worker.wait_lanes(4)
    assert not is_at_fault(worker)
    assert {text in line["why"] for line in worker.lines(WAITS)} == {True}
    assert worker.lines(THROWN_AWAY) == []


@pytest.mark.parametrize(("spoiled", "text"), FAULTS)
def test_a_lane_whose_disk_cannot_be_written_waits_and_goes_on_by_itself(estate, spoiled, text):
    worker = estate.start().wait_lanes(4)
    estate.send_lives()
    with spoiled(estate.disk):

        def send_and_look():
            estate.send_large()
            return is_at_fault(worker)

        until(send_and_look, "the store of partition 0 needs a new file")
        until(lambda: waits(worker, text), "a lane waits for the disk")
        estate.send_lives()
        assert worker.admin("/health/live")[0] == 200
    check_recovered(worker, text)
    estate.check()
    end(worker)


@pytest.mark.parametrize(("spoiled", "text"), FAULTS)
def test_a_worker_that_starts_on_such_a_disk_waits_and_goes_on_by_itself(estate, spoiled, text):
    end(estate.start().wait_lanes(4))  # it has made its tables
    with spoiled(estate.disk):
        worker = estate.start()
        until(lambda: waits(worker, text), "a lane waits for the disk")
        estate.send_lives()
        assert worker.admin("/health/live")[0] == 200
    check_recovered(worker, text)
    estate.check()
    end(worker)


def test_a_worker_ends_in_order_on_a_full_disk_and_goes_on_without_it(estate):
    with estate.disk.full():
        worker = estate.start()
        until(lambda: waits(worker, "No space left on device"), "a lane waits for the disk")
        estate.send_lives()
        end(worker)
        worker = estate.start(ORDERS_TABLE="memory").wait_lanes(4)
        estate.check()
        end(worker)

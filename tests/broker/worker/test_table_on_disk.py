"""Tables on disk, on a real broker: a restart reads the end of the changelog, and neither a kill nor damage changes an
answer.
"""

import signal
from typing import Any

import pytest

from tests.support.deciding import end
from tests.support.service import histories, until

ORDERS = 40
OPENED = "Table store opened."
THROWN_AWAY = "Table store thrown away; the table is restored from its changelog."


@pytest.fixture
def start(service, tmp_path):
    """Start a worker with its tables on disk; each is the same member of the group, and has the same directory."""

    def start_worker(failpoint=None, **settings):
        on_disk = {"ORDERS_TABLE": "rocksdb", "ORDERS_TABLE_DIR": str(tmp_path / "tables")}
        cache = {"ORDERS_TABLE_CACHE_MB": "16", "ORDERS_INSTANCE_ID": "one"}
        return service.start_worker(failpoint, **(on_disk | cache | settings))

    return start_worker


def kill(worker):
    worker.send(signal.SIGKILL)
    worker.wait_ended()


def opened_at(worker):
    """Return the offset to which each store was a copy when it was opened, by partition."""
    return {line["partition"]: line["offset"] for line in worker.lines(OPENED)}


@pytest.mark.parametrize("stop", [end, kill])
def test_a_restart_reads_only_the_end_of_the_changelog_and_remembers_all(service, start, stop):
    commands = histories(ORDERS)
    first = start().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    stop(first)
    again = start().wait_lanes(4)
    assert set(opened_at(first).values()) == {0}
    assert sum(opened_at(again).values()) > ORDERS
    service.send(commands)  # all are repeats
    more = histories(5, first=ORDERS + 1)
    service.send(more)
    service.wait_outcomes(len(commands) + len(more))
    assert again.lines(THROWN_AWAY) == []
    service.check(commands + more)


@pytest.mark.parametrize(
    ("step", "count"),
    [
        pytest.param("store.write", 1, id="before a new store is written"),
        pytest.param("store.written", 5, id="after a claim has written a store"),
        pytest.param("store.write", 12, id="between a commit and its copy"),
        pytest.param("store.written", 12, id="after the copy of a turn"),
        pytest.param("turn.committed", 3, id="after a commit"),
        pytest.param("claim.named", 2, id="after a claim has named its worker"),
    ],
)
def test_a_kill_at_a_step_changes_no_answer(service, start, step, count):
    commands: list[Any] = []
    killed = start((step, count, "SIGKILL"))

    def send_and_look():
        more = histories(1, first=len(commands) // 5 + 1)
        service.send(more)
        commands.extend(more)
        return killed.process.poll() is not None

    until(send_and_look, f"a worker reaches {step}")
    again = start().wait_lanes(4)
    service.send(commands)
    more = histories(5, first=1001)
    service.send(more)
    service.wait_outcomes(len(commands) + len(more))
    assert again.lines(THROWN_AWAY) == []
    service.check(commands + more)


def flip_blocks(tmp_path):
    """Damage the blocks of data of all stores, but neither their indexes nor their footers."""
    files = list((tmp_path / "tables").rglob("*.sst"))
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        data[50] ^= 0xFF
        path.write_bytes(bytes(data))


def test_damage_is_noticed_and_costs_a_restore_and_no_answer(service, start, tmp_path):
    commands = histories(ORDERS)
    first = start().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    end(first)
    flip_blocks(tmp_path)
    again = start()
    service.send(commands)  # all are repeats
    more = histories(ORDERS, first=ORDERS + 1)
    service.send(more)
    service.wait_outcomes(len(commands) + len(more))
    assert again.wait_lanes(4).lines(THROWN_AWAY)
    service.check(commands + more)


def test_a_store_that_another_worker_has_left_behind_is_brought_up_to_date(service, start, tmp_path):
    commands = histories(ORDERS)
    first = start().wait_lanes(4)
    service.send(commands[:100])
    service.wait_outcomes(100)
    end(first)
    other = start(ORDERS_TABLE_DIR=str(tmp_path / "other")).wait_lanes(4)
    service.send(commands[100:])
    service.wait_outcomes(len(commands))
    kill(other)
    again = start().wait_lanes(4)
    service.send(commands)
    more = histories(5, first=ORDERS + 1)
    service.send(more)
    service.wait_outcomes(len(commands) + len(more))
    assert again.lines(THROWN_AWAY) == []
    service.check(commands + more)

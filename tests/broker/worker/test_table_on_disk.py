"""Tables on disk, on a real broker: a restart reads the end of the changelog, and neither a kill nor damage changes an
answer.
"""

import asyncio
import os
import re
import shutil
import signal
import time
from typing import Any

import pytest
from msgspec import structs

from order_service.worker.store import FORM, MEGABYTE, TOO_OLD_S, Cache, Meta, TableStore
from tests.support.deciding import end
from tests.support.service import ROOT, histories, until

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


def lose_power(worker):
    """Kill a worker, and cut off the end of what its stores have written last: the operating system has lost it."""
    kill(worker)
    logs = [path for path in (worker.log_path.parent / "tables").rglob("*.log") if path.stat().st_size]
    assert logs
    for path in logs:
        os.truncate(path, path.stat().st_size - 5)


def opened_at(worker):
    """Return the offset to which each store was a copy when it was opened, by partition."""
    return {line["partition"]: line["offset"] for line in worker.lines(OPENED)}


@pytest.mark.parametrize("stop", [end, kill, lose_power])
def test_a_restart_reads_only_the_end_of_the_changelog_and_remembers_all(service, start, stop):
    commands = histories(ORDERS)
    first = start().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    stop(first)
    again = start().wait_lanes(4)
    assert set(opened_at(first).values()) == {0}
    # What a store wrote last may be all that its lane has decided.
    assert sum(opened_at(again).values()) > (0 if stop is lose_power else ORDERS)
    service.send(commands)  # all are repeats
    more = histories(5, first=ORDERS + 1)
    service.send(more)
    service.wait_outcomes(len(commands) + len(more))
    assert again.lines(THROWN_AWAY) == []
    service.check(commands + more)


KILLS = [
    ("store.write", 1),  # before a new store is written
    ("claim.locked", 1),
    ("claim.read", 2),
    ("claim.checked", 3),
    ("claim.named", 2),
    ("claim.fenced", 1),
    ("store.written", 5),  # after a claim has written a store
    ("turn.taken", 3),
    ("turn.decided", 3),
    ("turn.begun", 3),
    ("turn.produced", 3),
    ("turn.committed", 3),
    ("store.write", 12),  # between a commit and its copy
    ("store.written", 12),  # after the copy of a turn
]
"""At which step a worker is killed, and when it has done it so often. Each is the successor of the one before."""


def steps_of_a_worker():
    """Return the names of all steps at which a test can kill a worker."""
    files = (ROOT / "order_service" / "worker").rglob("*.py")
    return {step for file in files for step in re.findall(r'failpoint\("(\S+)"\)', file.read_text())}


def test_kills_at_every_step_change_no_answer(service, start):
    assert {step for step, _ in KILLS} == steps_of_a_worker()
    commands: list[Any] = []
    for step, count in KILLS:
        killed = start((step, count, "SIGKILL"))

        def send_and_look(killed=killed):
            more = histories(1, first=len(commands) // 5 + 1)
            service.send(more)
            commands.extend(more)
            return killed.process.poll() is not None

        until(send_and_look, f"a worker reaches {step}")
        assert killed.process.returncode == -signal.SIGKILL
    start().wait_lanes(4)
    service.send(commands)
    more = histories(5, first=1001)
    service.send(more)
    service.wait_outcomes(len(commands) + len(more))
    assert [worker.lines(THROWN_AWAY) for worker in service.workers if worker.lines(THROWN_AWAY)] == []
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


def rewrite(path, **changes):
    """Change what a store that is not open says that it is a copy of."""
    store = TableStore(path, Meta(FORM, "", "", "", 0, 0, -1, b"", 0.0), Cache(16 * MEGABYTE), print)
    meta = store.read_meta()
    assert meta is not None
    asyncio.run(store.write({}, structs.replace(meta, **changes)))
    store.close()


def test_a_store_of_another_partition_form_or_cluster_or_too_old_costs_a_restore_and_no_answer(
    service, start, tmp_path
):
    commands = histories(ORDERS)
    first = start().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    end(first)
    stores = [tmp_path / "tables" / "0" / f"{service.names.table}-{partition}" for partition in range(4)]
    shutil.rmtree(stores[0])
    shutil.copytree(stores[1], stores[0])
    rewrite(stores[1], form=FORM - 1)
    rewrite(stores[2], cluster_id="another")
    rewrite(stores[3], as_of=time.time() - TOO_OLD_S - 1)
    again = start().wait_lanes(4)
    thrown_away = {line["partition"]: line["why"].split(",")[0] for line in again.lines(THROWN_AWAY)}
    assert thrown_away == {
        0: "its partition is 1",
        1: f"its form is {FORM - 1}",
        2: "its cluster_id is another",
        3: "it is older than 24 hours",
    }
    service.send(commands)  # all are repeats
    more = histories(5, first=ORDERS + 1)
    service.send(more)
    service.wait_outcomes(len(commands) + len(more))
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

"""A worker that stands by for partitions of another one takes them over without restoring their tables."""

import json
import re
import signal
import subprocess
import sys

from order_service.local.broker import free_port
from tests.support.service import histories, until

ORDERS = 400
READ_MAX = 20
"""What a claim reads after a standby: its own records, and positions that the lost worker wrote last."""


def lags(worker):
    """Return how far it is behind, by the partition for which it stands by."""
    found = re.findall(
        r'^orders_standby_lag_offsets{partition="(\d+)"} (\S+)', worker.admin("/metrics")[1], re.MULTILINE
    )
    return {int(partition): float(lag) for partition, lag in found}


def held(worker):
    """Return the partitions that it was assigned last."""
    return {partition for line in worker.lines("Partitions assigned.")[-1:] for partition in line["partitions"]}


def stand_by_for_each_other(*workers):
    """Return whether each partition is followed by one worker that does not hold it, up to its end."""
    followed = [partition for worker in workers for partition in lags(worker)]
    is_of_others = all(not held(worker) & lags(worker).keys() for worker in workers)
    return is_of_others and sorted(followed) == [0, 1, 2, 3] and not any(sum(lags(each).values()) for each in workers)


def test_a_worker_takes_over_what_it_stood_by_for_by_reading_the_ends_of_the_changelogs(service):
    commands = histories(ORDERS)
    killed, heir = (service.start_worker(ORDERS_STANDBYS="1") for _ in range(2))
    until(lambda: killed.lanes() == heir.lanes() == 2, "each worker runs half")
    service.send(commands[: 4 * ORDERS])
    service.wait_outcomes(4 * ORDERS)
    until(lambda: stand_by_for_each_other(killed, heir), "each has followed the other to its end")
    lost = held(killed)
    started_before = len(heir.lines("Lane started."))  # the first worker of the group had all of them for a moment
    killed.send(signal.SIGKILL)
    heir.wait_lanes(4)

    def started():
        return [line for line in heir.lines("Lane started.")[started_before:] if line["partition"] in lost]

    taken_over = until(lambda: len(started()) == 2 and started(), "the log has both lanes")
    assert all(line["orders"] > ORDERS // 8 and 0 < line["read_records"] <= READ_MAX for line in taken_over)
    assert lags(heir) == {}
    service.send(commands[4 * ORDERS :])
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_workers_that_stand_by_lose_nothing_when_they_die_leave_and_join_under_load(service):
    commands = histories(300)
    stands_by = {"ORDERS_STANDBYS": "1"}
    first, second = (service.start_worker(**stands_by).wait_ready() for _ in range(2))
    with service.sending(commands, per_s=150):
        service.wait_outcomes(100)
        first.send(signal.SIGKILL)
        second.wait_lanes(4)
        without = service.start_worker().wait_lanes(2)
        third = service.start_worker(**stands_by).wait_ready()
        until(lambda: lags(third).keys() | lags(second).keys() == {0, 1, 2, 3}, "two stand by for all, one for none")
        assert lags(without) == {}
        second.send(signal.SIGTERM)
        assert second.wait_ended() == 0
        until(lambda: third.lanes() + without.lanes() == 4, "the others run all")
        assert third.lines("A standby cannot use its changelogs.") == []
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_workers_that_stay_members_offer_to_stand_by_when_they_come_back_with_the_setting(service):
    """A static member that is started again gets the assignment of its predecessor, without a rebalance."""
    ports = [str(free_port()) for _ in range(2)]
    before = [service.start_worker(ORDERS_ADMIN_PORT=port, ORDERS_SESSION_TIMEOUT_S="30") for port in ports]
    until(lambda: [worker.lanes() for worker in before] == [2, 2], "each worker runs half")
    workers = []
    for worker, port in zip(before, ports, strict=True):
        worker.send(signal.SIGKILL)
        worker.wait_ended()
        workers.append(service.start_worker(ORDERS_ADMIN_PORT=port, ORDERS_SESSION_TIMEOUT_S="30", ORDERS_STANDBYS="1"))
    until(lambda: stand_by_for_each_other(*workers), "each follows the other")
    listed = subprocess.run(
        [sys.executable, "-m", "order_service.cli", "lanes", "--json"],
        env=service.environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    rows = json.loads(listed.stdout)["lanes"]
    assert all(row["standby"] not in {None, row["worker"]} for row in rows)

"""The alerts about worker processes and standbys: each fires by its fault, and resolves after its repair."""

import os
import signal
from functools import partial
from typing import ClassVar

from aiokafka import TopicPartition

from chaos.faults.strangers import visit_group
from order_service.wire.changelog import BARRIER_KEY
from order_service.worker.membership import LaneAssignor
from tests.support.damaged_topics import write
from tests.support.prometheus import fires
from tests.support.service import until
from tests.support.worker_processes import COMMAND, TWO, Processes


def has_started(watch, times):
    return watch.value("orders_worker_process_starts_total", process="2") == times


def has_grown(watch, lag):
    return watch.value("orders_standby_lag_offsets") > lag


def has_lost_all(worker):
    return worker.lines("Partitions assigned.")[-1]["partitions"] == []


def claims_if_more(watch, claims):
    counted = watch.value("orders_claims_total", outcome="restored")
    return counted if counted > claims else 0.0


@fires("OrdersTargetDown", "OrdersLanesNotRunning")
def test_a_worker_that_ended(watch):
    worker = watch.target(watch.service.start_worker()).wait_lanes(4)
    watch.before()
    worker.send(signal.SIGKILL)
    worker.wait_ended()
    watch.fault()
    watch.target(watch.service.start_worker()).wait_lanes(4)
    watch.after()


@fires("OrdersClaimsRepeated", ORDERS_PARTITIONS="1")
def test_a_partition_that_another_member_takes_again_and_again(watch):
    """The other member joins and leaves, as a worker does that is restarted again and again."""
    service = watch.service
    worker = watch.target(service.start_worker())

    class Taking(LaneAssignor):
        """Tells the leader that its member had the partition last, so that it gets it."""

        generation = 2**31 - 1
        member_assignment: ClassVar = [TopicPartition(service.names.commands, 0)]

    def take():
        until(partial(has_lost_all, worker), "the worker has lost the partition")

    claims = until(partial(claims_if_more, watch, 0), "the partition is claimed")
    watch.before()
    for _ in range(10):
        visit_group(service.bootstrap_servers, service.group_id, service.names.commands, take, [Taking])
        claims = until(partial(claims_if_more, watch, claims), "the worker claims the partition again")
        watch.fault()
    watch.after()


@fires("OrdersProcessRestarts", ORDERS_WORKERS="2", ORDERS_SESSION_TIMEOUT_S="30")
def test_a_process_that_ends_again_and_again(watch):
    worker = watch.target(watch.service.start_worker(module=COMMAND, **TWO))
    processes = Processes(worker).wait_lanes(of_1=2, of_2=2)
    watch.before()
    for starts in range(2, 5):
        os.kill(until(lambda: processes.pids().get("2"), "the process runs"), signal.SIGKILL)
        until(partial(has_started, watch, starts), "it is started again")
    watch.fault()
    processes.wait_lanes(of_1=2, of_2=2)
    watch.after()


@fires("OrdersStandbysBehind", ORDERS_STANDBYS="1")
def test_a_standby_that_falls_behind(watch, tmp_path):
    """The table of one partition grows, and its standby reads nothing of it."""
    service, stop = watch.service, tmp_path / "standbys stop"
    for number in range(2):
        watch.target(service.start_worker(TEST_STANDBY_STOP_FILE=str(stop)), pod=f"worker-{number}")

    def follow():
        followed = sum(worker.admin("/metrics")[1].count("orders_standby_lag_offsets{") for worker in service.workers)
        return followed == 4 and watch.value("orders_standby_lag_offsets") == 0

    until(follow, "each follows the other")
    watch.before()
    stop.touch()
    lag = 0.0
    for _ in range(6):
        write(service, service.names.table, [(0, BARRIER_KEY, b"stranger", None)] * 100)
        until(partial(has_grown, watch, lag), "the lag grows")
        lag = watch.value("orders_standby_lag_offsets")
        watch.fault()
    stop.unlink()
    until(follow, "the standby has read all")
    watch.after()

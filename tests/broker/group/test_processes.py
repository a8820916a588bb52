"""A worker with two processes (`ORDERS_WORKERS=2`): they share the partitions, and their parent keeps both running."""

import json
import os
import signal

import pytest

from tests.support.process_tree import has_ended
from tests.support.service import GRACE_S, histories, until
from tests.support.worker_processes import COMMAND, TWO, Processes

LONG_SESSION = {"ORDERS_SESSION_TIMEOUT_S": "45"}
"""Longer than the deadlines of the tests, in which no process must have to wait for a session to end."""


@pytest.fixture
def two(service):
    return Processes(service.start_worker(module=COMMAND, **TWO, **LONG_SESSION)).wait_lanes(of_1=2, of_2=2)


def test_two_processes_share_the_partitions_and_one_port_answers_for_both(service, two):
    commands = histories(8)
    service.send(commands)
    service.wait_outcomes(len(commands))
    lanes = json.loads(two.worker.admin("/lanes")[1])["lanes"]
    assert [(lane["partition"], lane["state"]) for lane in lanes] == [(number, "running") for number in range(4)]
    assert {line["process"] for line in two.worker.lines("Lane started.")} == {1, 2}
    two.worker.send(signal.SIGTERM)
    assert two.worker.wait_ended(within_s=GRACE_S) == 0
    assert sorted(line["process"] for line in two.worker.lines("Process started.")) == [1, 2]
    service.check(commands)


def test_a_killed_process_is_the_same_member_again_and_the_other_is_not_disturbed(service, two):
    before = two.pids()
    rebalances = len([line for line in two.worker.lines("Partitions assigned.") if line["process"] == 1])
    commands = histories(16)
    with service.sending(commands, per_s=40):
        os.kill(before["2"], signal.SIGKILL)
        until(lambda: two.pids().get("2") not in {None, before["2"]}, "the process is started again")
        two.wait_lanes(of_1=2, of_2=2)
    service.wait_outcomes(len(commands))
    assert two.pids()["1"] == before["1"]
    assert len([line for line in two.worker.lines("Partitions assigned.") if line["process"] == 1]) == rebalances
    [ended] = two.worker.lines("Process ended.")
    assert (ended["process"], ended["exit_code"], ended["restart_in_s"]) == (2, 137, 1.0)
    service.check(commands)


def test_no_process_outlives_its_killed_parent_and_the_next_worker_goes_on(service, two):
    pids = two.pids().values()
    commands = histories(16)
    with service.sending(commands, per_s=40):
        two.worker.send(signal.SIGKILL)
        two.worker.wait_ended()
        port = str(two.worker.admin_port)
        again = service.start_worker(module=COMMAND, **TWO, **LONG_SESSION, ORDERS_ADMIN_PORT=port)
        until(lambda: all(map(has_ended, pids)), "the processes of the killed parent end", within_s=GRACE_S)
        Processes(again).wait_lanes(of_1=2, of_2=2)
    service.wait_outcomes(len(commands))
    service.check(commands)

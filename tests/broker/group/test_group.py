"""The group refuses a worker, or its fetching ends: the worker says why and ends with 14, within seconds."""

import re
import signal
from contextlib import contextmanager
from socket import gethostname

from confluent_kafka import Consumer

from chaos.faults.strangers import visit_group
from order_service.worker.membership import LaneAssignor
from tests.support.service import GRACE_S, Service, histories, until

GROUP_ERROR = 14
LONG_SESSION = {"ORDERS_SESSION_TIMEOUT_S": "45"}
"""Longer than the deadlines of tests in which a member must not have to wait for a session to end."""
LEFT_WITHIN_S = 25.0
"""Within which the others have what a member had that left: they hear of it with a heartbeat, a fifth of a session."""


@contextmanager
def stranger(service, **settings):
    """Run a consumer of another program in the group of the workers; gives it once it has partitions or was refused."""
    consumer = Consumer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "group.id": service.group_id,
            "client.id": "reporting",
            "session.timeout.ms": 6000,
            **settings,
        }
    )
    consumer.subscribe([service.names.commands])
    try:
        yield consumer
    finally:
        consumer.close()


def reason(worker):
    """Return the reason that a worker gave for its end; there is one."""
    [line] = worker.lines("This worker ends.")
    assert line["exit_code"] == GROUP_ERROR
    return line["reason"]


def test_a_worker_that_finds_a_stranger_in_its_group_names_it_and_ends(service):
    with stranger(service, **{"partition.assignment.strategy": "range"}) as consumer:
        until(lambda: consumer.poll(0.1) is None and consumer.assignment(), "the stranger has partitions")
        worker = service.start_worker()
        assert worker.wait_ended() == GROUP_ERROR
    held = f"(holds {', '.join(f'{service.names.commands}-{partition}' for partition in range(4))}); end them"
    assert f"are in the group {service.group_id}: reporting at 127.0.0.1 {held}" in reason(worker)
    service.start_worker().wait_lanes(4)


def test_a_stranger_gets_no_partition_beside_a_worker(service):
    worker = service.start_worker().wait_lanes(4)
    commands = histories(4)
    with stranger(service) as consumer:
        refused = until(
            lambda: (message := consumer.poll(0.1)) is not None and message.error(), "the stranger is refused"
        )
        assert "INCONSISTENT_GROUP_PROTOCOL" in refused.str().upper() or "protocol" in refused.str().lower()
        service.send(commands)
        service.wait_outcomes(len(commands))
    assert worker.lanes() == 4
    service.check(commands)


def test_a_stranger_that_shares_the_partitions_shows_in_readiness_metric_and_log(service):
    """It uses our assignor, so Kafka lets it in, and nothing is decided in the partitions that it holds."""
    worker = service.start_worker().wait_lanes(4)
    shown = rf"are in the group {service.group_id}: stranger at 127.0.0.1 \(holds (\S+), (\S+), seen for (\d+) s\); end"
    named = set()

    def reasons():
        return " ".join(line["reason"] for line in worker.lines("Another program is in the group."))

    def is_seen():
        [(*partitions, _)] = until(lambda: re.findall(shown, worker.faults()), "readiness names it and what it holds")
        named.update(partitions)
        until(lambda: "orders_group_strangers 1.0" in worker.admin("/metrics")[1], "the metric counts it")
        until(lambda: re.findall(shown, reasons()), "the log names it and what it holds")
        until(
            lambda: any(int(seen_s) > 0 for *_, seen_s in re.findall(shown, worker.faults())),
            "readiness says for how long it has been seen",
        )

    held = visit_group(service.bootstrap_servers, service.group_id, service.names.commands, is_seen, [LaneAssignor])
    assert len(held) == 2
    assert named == {f"{service.names.commands}-{partition}" for partition in held}
    worker.wait_lanes(4)
    until(lambda: "orders_group_strangers 0.0" in worker.admin("/metrics")[1], "the metric counts none")
    until(lambda: worker.lines("No other program is in the group any more."), "the log says that it has left")
    commands = histories(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_a_session_timeout_that_the_broker_refuses_ends_the_worker(service):
    worker = service.start_worker(ORDERS_SESSION_TIMEOUT_S="0.01")
    assert worker.wait_ended() == GROUP_ERROR
    assert "refuses a session timeout of 0.01 s: set ORDERS_SESSION_TIMEOUT_S" in reason(worker)


def test_a_worker_whose_coordinator_fails_while_it_runs_ends(service):
    commands = histories(4)
    worker = service.start_worker(module=("tests.support.hindered", "heartbeat")).wait_lanes(4)
    worker.send(signal.SIGPROF)
    assert worker.wait_ended() == GROUP_ERROR
    assert "this worker is no longer a member of the group" in reason(worker)
    service.start_worker()
    service.send(commands)
    service.wait_outcomes(len(commands))


def test_a_worker_whose_fetching_dies_ends(service):
    worker = service.start_worker(module=("tests.support.hindered", "fetching")).wait_lanes(4)
    worker.send(signal.SIGPROF)
    assert worker.wait_ended() == GROUP_ERROR
    assert "the fetching of commands has ended" in reason(worker)


def test_two_workers_with_one_instance_id_the_first_stays_and_the_second_says_why(service):
    first = service.start_worker(ORDERS_INSTANCE_ID="w-1").wait_lanes(4)
    second = service.start_worker(ORDERS_INSTANCE_ID="w-1")
    assert second.wait_ended() == GROUP_ERROR
    assert "with the instance id w-1: order-service@" in reason(second)
    assert "set ORDERS_INSTANCE_ID to a different value on each worker" in reason(second)
    assert second.lines("Another process has this instance id; waiting for its session to end.")
    assert first.lanes() == 4
    assert len(first.lines("Partitions assigned.")) == 1


def test_the_second_worker_of_one_host_name_and_port_ends_with_the_reason(service):
    """Without ORDERS_INSTANCE_ID they have one name. Neither may take the other's place, again and again."""
    first = service.start_worker(TEST_MACHINE="a").wait_lanes(4)
    port = str(first.admin_port)
    second = service.start_worker(TEST_MACHINE="b", ORDERS_HOST="127.0.0.2", ORDERS_ADMIN_PORT=port)
    assert second.wait_ended() == GROUP_ERROR
    assert f"{port}-a at 127.0.0.1; set ORDERS_INSTANCE_ID to a different value on each worker" in reason(second)
    assert first.lanes() == 4
    assert len(first.lines("Partitions assigned.")) == 1
    first.send(signal.SIGKILL)
    first.wait_ended()
    heir = service.start_worker(TEST_MACHINE="b", ORDERS_ADMIN_PORT=port)
    heir.wait_lanes(4)  # the name is free once the session of the first has ended


def test_an_idle_worker_whose_place_was_taken_while_it_slept_says_so_and_ends(service):
    """It always ends with 14: without commands it writes nothing when it wakes, so nothing can tell it of its fence.

    One with a turn in flight may meet the fence first, which ends it with 10: `test_failpoints.py` stops workers there.
    """
    sleeper = service.start_worker(ORDERS_INSTANCE_ID="w-1").wait_lanes(4)
    sleeper.send(signal.SIGSTOP)
    heir = service.start_worker(ORDERS_INSTANCE_ID="w-1").wait_lanes(4)
    sleeper.send(signal.SIGCONT)
    assert sleeper.wait_ended() == GROUP_ERROR
    assert f"with the instance id w-1: order-service@{gethostname()}-{heir.admin_port} at" in reason(sleeper)
    assert heir.lanes() == 4


def test_services_with_two_topic_prefixes_and_one_app_id_do_not_disturb_each_other(service, users, tmp_path):
    """Neither their workers, by one name in the group, nor their claims, which fence, meet each other."""
    commands, others = histories(8), histories(4, first=3)
    (tmp_path / "other").mkdir()
    with Service(service.bootstrap_servers, tmp_path / "other", users, app_id=service.app_id) as other:
        first, second = (each.start_worker(ORDERS_INSTANCE_ID="w-1").wait_lanes(4) for each in (service, other))
        service.send(commands)
        other.send(others)
        service.wait_outcomes(len(commands))
        other.wait_outcomes(len(others))
        second.send(signal.SIGKILL)
        second.wait_ended()
        other.start_worker(ORDERS_INSTANCE_ID="w-1").wait_lanes(4)
        more = histories(8, first=20)
        service.send(more)
        service.wait_outcomes(len(commands) + len(more))
        other.check(others)
        assert first.is_ready()
        assert len(first.lines("Partitions assigned.")) == 1
    service.check(commands + more)


def test_a_worker_that_was_killed_and_restarts_at_once_disturbs_nobody(service):
    """Under the same host name and admin port it is the same member: no rebalance, no silence elsewhere."""
    stays = service.start_worker(**LONG_SESSION).wait_lanes(4)
    killed = service.start_worker(**LONG_SESSION).wait_lanes(2)
    stays.wait_lanes(2)
    assigned = len(stays.lines("Partitions assigned."))
    killed.send(signal.SIGKILL)
    killed.wait_ended()
    again = service.start_worker(**LONG_SESSION, ORDERS_ADMIN_PORT=str(killed.admin_port)).wait_lanes(2)
    assert len(stays.lines("Partitions assigned.")) == assigned
    commands = histories(8)
    service.send(commands)
    service.wait_outcomes(len(commands))
    again.send(signal.SIGTERM)
    assert again.wait_ended(within_s=GRACE_S) == 0
    stays.wait_lanes(4, within_s=LEFT_WITHIN_S)  # told to end, it has left
    service.check(commands)


def test_a_worker_without_an_instance_id_that_ends_by_itself_leaves_first(service):
    """Without an admin port that is known in advance it has no stable name, and the group does not wait for it."""
    stays = service.start_worker(**LONG_SESSION).wait_lanes(4)
    ends = service.start_worker(module=("tests.support.hindered", "fetching"), ORDERS_ADMIN_PORT="0", **LONG_SESSION)
    until(lambda: len(ends.lines("Lane started.")) == 2, "it has two lanes")
    ends.send(signal.SIGPROF)
    assert ends.wait_ended() == GROUP_ERROR
    stays.wait_lanes(4, within_s=LEFT_WITHIN_S)
    assert not stays.lines("This worker ends.")


def test_a_worker_shows_its_stacks_without_what_they_hold(service):
    worker = service.start_worker().wait_lanes(4)
    worker.send(signal.SIGUSR1)
    until(lambda: "(most recent call first)" in worker.log(), "it shows its stacks")
    assert service.names.commands not in worker.log()
    assert worker.is_ready()


def test_a_worker_whose_event_loop_hangs_says_where_and_ends(service):
    """Its heartbeats go on, so the group would leave it its partitions for as long as it hangs."""
    worker = service.start_worker(module=("tests.support.hindered", "loop")).wait_lanes(4)
    worker.send(signal.SIGPROF)
    assert worker.wait_ended() == 15
    [line] = worker.lines("This process ends.")
    assert line["reason"] == "the event loop has run nothing for 10 s"
    assert "__main__._told" in "".join(line["stack"])
    service.start_worker().wait_lanes(4)


def test_a_worker_that_slept_longer_than_a_loop_may_hang_goes_on(service):
    commands = histories(4)
    worker = service.start_worker().wait_lanes(4)
    hangs = service.start_worker(module=("tests.support.hindered", "loop")).wait_lanes(2)
    worker.send(signal.SIGSTOP)
    worker.wait_stopped()
    hangs.send(signal.SIGPROF)
    assert hangs.wait_ended() == 15  # so the other one has slept as long
    worker.send(signal.SIGCONT)
    service.send(commands)
    service.wait_outcomes(len(commands))
    assert worker.process.poll() is None
    service.check(commands)

"""Each thing that the promise rests on is taken away from a worker, and the checker must see what comes of it.

The same without the fault ends well: that is what tests/kafka shows (failpoints, claim, rebalance, turn, waiting room).
"""

import signal
from collections import Counter

import pytest

from tests.faults.checker import Terms, check_partition
from tests.faults.cluster import Cluster
from tests.faults.planted import BETWEEN_TOPICS_S, PLANTED
from tests.faults.proxy import Api
from tests.faults.reading import read_partition
from tests.faults.run import user_of
from tests.kafka.test_claim import open_transaction
from tests.kafka.test_rebalance import hanging
from tests.kafka.test_turn import limit_events
from tests.samples import SHOP, but, create, pay
from tests.service import Service, histories, until, vars_of


def found(service):
    """Check all that there is; gives what was found, by kind."""
    counts: Counter[str] = Counter()
    terms = Terms(service.partitions, service.names.commands, user_of)
    for partition in range(service.partitions):
        records = read_partition(service.bootstrap_servers, vars_of(service.names), partition)
        counts.update(check_partition(records, terms).counts)
    return counts


def is_settled(service):
    """Tell whether all commands are decided, as far as the positions say."""
    ends: Counter[int] = Counter()
    for message in service.read(service.names.commands):
        ends[message.partition()] = message.offset() + 1
    positions = service.positions()
    return all(partition in positions and positions[partition].next_offset >= end for partition, end in ends.items())


def is_decided(service):
    return is_settled(service) and not service.waiting()


def has_ended_or(worker, condition):
    return lambda: worker.process.poll() is not None or condition()


def killed_with_a_turn_produced(service, module):
    dying = service.start_worker(("turn.produced", 3, "SIGKILL"), module=module).wait_lanes(4)
    for command in histories(40):
        if dying.process.poll() is None:
            service.send([command])
    assert dying.wait_ended() == -signal.SIGKILL
    service.start_worker(module=module)


def asleep_between_two_commits(service, module):
    """Stop a worker when no transaction of it is open (the barrier would wait for one), and more is to be decided."""
    sleeper = service.start_worker(("turn.committed", 1, "SIGSTOP"), module=module).wait_lanes(4)
    service.send(histories(20))
    sleeper.wait_stopped()
    service.start_worker(module=module).wait_lanes(4)
    until(lambda: is_settled(service), "the heir has decided all")
    sleeper.send(signal.SIGCONT)
    until(has_ended_or(sleeper, lambda: sleeper.lanes() == 2), "the sleeper has ended, or is a member again")
    service.start_worker(module=module)  # a rebalance: all read anew, also a position that the sleeper has put back


def claimed_behind_an_open_transaction(service, module):
    first = service.start_worker().wait_lanes(4)
    service.send(histories(5))
    until(lambda: is_settled(service), "some are decided")
    with open_transaction(service, service.names.table, 1) as stranger:
        outcomes = service.outcome_count()
        service.send(histories(20, first=10))
        service.wait_outcomes(outcomes + 100)
        first.send(signal.SIGKILL)
        heir = service.start_worker(module=module)
        until(lambda: heir.lanes() == 4 or "A claim takes long" in heir.log(), "it has claimed, or waits")
        service.send(histories(20, first=50))
        elsewhere = sum(service.partition_of(command.order_id) != 1 for command in histories(45))
        service.wait_outcomes(elsewhere)
        stranger.abort_transaction(30)


def asleep_while_timers_ran_elsewhere(service, module):
    creates = [but(create, order_id=f"order-{n}", command_id=f"create-{n}", actor=SHOP) for n in range(12)]
    sleeper = service.start_worker(module=module).wait_lanes(4)
    service.send(creates)
    service.wait_outcomes(12)
    sleeper.send(signal.SIGSTOP)
    other = service.start_worker(ORDERS_PAYMENT_DUE_S="1")
    service.wait_outcomes(24)
    other.send(signal.SIGTERM)
    other.wait_ended()
    sleeper.send(signal.SIGCONT)
    until(lambda: len(sleeper.lines("A lane runs.")) == 8, "the sleeper has its lanes again")
    service.send([but(pay, order_id=f"order-{n}", command_id=f"pay-{n}") for n in range(12)])


def refused_by_the_broker(service, module):
    worker = service.start_worker(module=module).wait_lanes(4)
    limit_events(service, 4096)
    large = but(create, order_id="order-2", command_id="large", metadata={f"key-{n}": "x" * 500 for n in range(20)})
    service.send([large])
    until(has_ended_or(worker, lambda: is_decided(service)), "it ends, or goes on")
    worker.end()
    limit_events(service, 4 * 1024 * 1024)
    service.start_worker(module=module)


def killed_while_a_create_waits(service, module):
    worker = service.start_worker(module=module).wait_lanes(4)
    with hanging(service.users):
        service.send([create])
        until(lambda: is_settled(service), "the create waits")
        worker.send(signal.SIGKILL)
    service.start_worker(module=module).wait_lanes(4)


SCENARIOS = {
    "position_outside_the_transaction": (killed_with_a_turn_produced, "lost"),
    "claim_without_its_fence": (asleep_between_two_commits, "duplicate"),
    "claim_without_its_barrier": (claimed_behind_an_open_transaction, "duplicate"),
    "a_lane_is_kept_whoever_had_it_meanwhile": (asleep_while_timers_ran_elsewhere, "duplicate"),
    "a_commit_does_not_wait_for_its_batches": (refused_by_the_broker, "lost"),
    "the_waiting_room_is_in_memory_only": (killed_while_a_create_waits, "lost"),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_it_the_checker_sees_what_comes_of_it(service, name):
    scenario, kind = SCENARIOS[name]
    scenario(service, ("tests.faults.planted", name))
    until(lambda: is_decided(service), "all is decided")
    kinds = found(service)
    assert kinds[kind] > 0, kinds


def test_an_end_sent_again_under_the_same_id_is_seen(tmp_path, users):
    module = ("tests.faults.planted", "a_commit_is_sent_again_under_the_same_id")
    with (
        Cluster(tmp_path / "kafka") as cluster,
        Service(cluster.bootstrap_servers, tmp_path, users, KAFKA_BOOTSTRAP_SERVERS=cluster.proxied_servers) as service,
    ):
        [proxy] = cluster.proxies.values()
        worker = service.start_worker(module=module).wait_lanes(4)
        life = histories(1)
        service.send(life[:1])
        until(lambda: is_decided(service), "the order is created")
        proxy.delay_request(Api.END_TXN, BETWEEN_TOPICS_S / 2)
        service.send(life[1:2])
        until(lambda: not proxy.armed, "a commit is delayed, and sent again")
        service.send(life[2:3])
        until(lambda: proxy.happened["delay_request"], "the first copy arrives, and commits half of the next turn")
        worker.send(signal.SIGKILL)
        service.start_worker().wait_lanes(4)
        until(lambda: is_decided(service), "all is decided")
        assert found(service)["lost"] == 1


def test_every_planted_fault_is_looked_for():
    assert set(PLANTED) == {*SCENARIOS, "a_commit_is_sent_again_under_the_same_id"}

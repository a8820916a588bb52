"""Each thing that the promise rests on is taken away from a worker, and the checker must see what comes of it.

Without the fault the same ends well: tests/broker shows that (failpoints, claim, rebalance, turn, waiting room).
"""

import signal

import pytest

from chaos.cluster import Cluster
from chaos.faults.broker_data import cut_tail
from chaos.faults.planted import BETWEEN_TOPICS_S, LOST_KEY, PLANTED, RUN_LOST
from chaos.faults.proxy import Api
from chaos.tests.checked_service import found, is_decided, is_settled
from order_service.errors import ClockError
from order_service.wire.changelog import BARRIER_KEY
from order_service.worker.claims import claim
from order_service.worker.claims.changelog_reader import Changelogs
from order_service.worker.claims.checks import Checks
from tests.support.claiming import claim_that_stops, open_transaction
from tests.support.damaged_topics import cut, recreate, write
from tests.support.deciding import decide, end
from tests.support.samples import SHOP, but, create, pay
from tests.support.service import Service, histories, until
from tests.support.users import hanging


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
    """Stop a worker when no transaction of it is open (the claim would wait for one), and more is to be decided."""
    sleeper = service.start_worker(("turn.committed", 1, "SIGSTOP"), module=module).wait_lanes(4)
    service.send(histories(20))
    sleeper.wait_stopped()
    service.start_worker(module=module).wait_lanes(4)
    until(lambda: is_decided(service), "the heir has decided all")
    sleeper.send(signal.SIGCONT)  # it decides the rest of its partitions again


def asleep_with_partitions_that_were_released(service, module):
    first = service.start_worker(module=module).wait_lanes(4)
    sleeper = service.start_worker(("turn.committed", 1, "SIGSTOP"), module=module).wait_lanes(2)
    service.send(histories(20))
    sleeper.wait_stopped()
    first.wait_lanes(4)
    until(lambda: is_decided(service), "the heir has decided all")
    sleeper.send(signal.SIGCONT)


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
    until(lambda: len(sleeper.lines("Lane runs on.")) >= 4, "the sleeper has its lanes again")
    service.send([but(pay, order_id=f"order-{n}", command_id=f"pay-{n}") for n in range(12)])


def refused_by_the_broker(service, module):
    worker = service.start_worker(module=module).wait_lanes(4)
    service.configure(service.names.events, max_message_bytes=4096)
    large = but(create, order_id="order-2", command_id="large", metadata={f"key-{n}": "x" * 500 for n in range(20)})
    service.send([large])
    until(has_ended_or(worker, lambda: is_decided(service)), "it ends, or goes on")
    worker.end()
    service.configure(service.names.events, max_message_bytes=4 * 1024 * 1024)
    service.start_worker(module=module)


def killed_while_a_create_waits(service, module):
    worker = service.start_worker(module=module).wait_lanes(4)
    with hanging(service.users):
        service.send([create])
        until(lambda: is_settled(service), "the create waits")
        worker.send(signal.SIGKILL)
    service.start_worker(module=module).wait_lanes(4)


def a_claim_ends_after_the_next_one(service, module):
    start, look, compare = vars(claim)["claiming"], Checks.outcomes, Changelogs.check_end
    PLANTED[module[1]]()
    try:
        with claim_that_stops(service, after="claim.checked") as go_on:
            heir = service.start_worker(module=module).wait_lanes(4)
            nobodys = [but(pay, order_id=f"nobodys-{n}", command_id=f"pay-{n}") for n in range(20)]
            service.send([*histories(5), *nobodys])  # of an order that is not there, no repeat is remembered
            until(lambda: is_settled(service), "the heir has decided all")
            go_on()
            heir.end()  # killed, so that it writes no position over the one that was put back
    finally:
        claim.claiming, Checks.outcomes = start, look  # type: ignore[attr-defined, method-assign]
        Changelogs.check_end = compare  # type: ignore[method-assign]
    service.start_worker(module=module)


def a_run_is_lost(service, module):
    worker = service.start_worker(module=module).wait_lanes(4)
    lost = LOST_KEY.decode()
    service.send([but(create, order_id=lost, command_id="lost", actor=SHOP)])
    until(lambda: worker.lines(RUN_LOST), "a run is lost")
    service.send(histories(20))


def a_foreign_transaction_is_aborted(service, module):
    service.start_worker(module=module).wait_lanes(4)
    with open_transaction(service, service.names.commands, 1) as stranger:
        until(service.dead_letters, "what is not committed is decided")
        stranger.abort_transaction(30)


def restarted_on_a_table_that_has_lost_its_tail(service, module):
    decide(service, histories(10))
    cut(service, service.names.table, lambda count: count // 2)
    service.start_worker(module=module).wait_lanes(4)


def restarted_on_events_that_have_lost_their_tail(service, module):
    first = service.start_worker().wait_lanes(4)
    service.send(histories(10))
    service.wait_outcomes(50)
    first.send(signal.SIGKILL)
    second = service.start_worker().wait_lanes(4)  # its claims write the ends of all outcomes
    second.send(signal.SIGKILL)
    second.wait_ended()
    cut(service, service.names.events, lambda count: max(count - 1, 0))
    service.start_worker(module=module).wait_lanes(4)


def restarted_on_a_waiting_room_that_has_lost_a_create(service, module):
    worker = service.start_worker().wait_lanes(4)
    with hanging(service.users):
        service.send([create])
        until(service.waiting, "the create waits")
        worker.send(signal.SIGKILL)
        worker.wait_ended()
    recreate(service, service.names.waiting)
    write(service, service.names.waiting, [(n % 4, BARRIER_KEY, b"as long as before", None) for n in range(40)])
    service.start_worker(module=module).wait_lanes(4)


def unpaid_orders_when_a_clock_steps_by_two_hours(service, module):
    """Orders are due in an hour: a worker that does not follow the step leaves them alone."""
    clock = service.directory / "clock"
    clock.write_text("0")
    worker = service.start_worker(module=module, TEST_CLOCK_FILE=str(clock), ORDERS_PAYMENT_DUE_S="3600").wait_lanes(4)
    service.send(histories(10)[:10])
    service.wait_outcomes(10)
    clock.write_text("7200")
    assert worker.wait_ended() == ClockError.exit_code  # after the first turn that it took by that clock
    return {"payment_due_s": 3600.0}


def unpaid_orders_when_a_clock_is_two_hours_ahead(service, module):
    """Orders are due in an hour: a worker whose clock is right leaves them alone."""
    clock = service.directory / "clock"
    clock.write_text("7200")
    settings = {"ORDERS_PAYMENT_DUE_S": "3600"}
    first = service.start_worker(**settings).wait_lanes(4)
    service.send(histories(10)[:10])
    service.wait_outcomes(10)
    end(first)
    service.start_worker(module=module, TEST_CLOCK_FILE=str(clock), **settings)
    service.wait_outcomes(20)
    return {"payment_due_s": 3600.0}


SCENARIOS = {
    "position_outside_the_transaction": (killed_with_a_turn_produced, "lost"),
    "claim_without_its_fence": (asleep_between_two_commits, "duplicate"),
    "claim_without_the_ends_of_its_changelogs": (claimed_behind_an_open_transaction, "duplicate"),
    "claim_without_its_look_at_the_outcomes": (restarted_on_a_table_that_has_lost_its_tail, "duplicate"),
    "the_ends_of_the_outcomes_are_forgotten": (restarted_on_events_that_have_lost_their_tail, "lost"),
    "the_count_of_waiting_commands_is_forgotten": (restarted_on_a_waiting_room_that_has_lost_a_create, "lost"),
    "the_wall_clock_is_followed": (unpaid_orders_when_a_clock_steps_by_two_hours, "disorder"),
    "the_clock_is_not_compared": (unpaid_orders_when_a_clock_is_two_hours_ahead, "disorder"),
    "lanes_run_on_under_a_new_owner": (asleep_while_timers_ran_elsewhere, "duplicate"),
    "a_release_counts_for_every_owner": (asleep_with_partitions_that_were_released, "duplicate"),
    "a_commit_does_not_wait_for_its_batches": (refused_by_the_broker, "lost"),
    "the_waiting_room_is_in_memory_only": (killed_while_a_create_waits, "lost"),
    "claim_without_its_lock": (a_claim_ends_after_the_next_one, "duplicate"),
    "runs_without_numbers": (a_run_is_lost, "lost"),
    "commands_are_read_uncommitted": (a_foreign_transaction_is_aborted, "phantom"),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_it_the_checker_sees_what_comes_of_it(service, name):
    scenario, kind = SCENARIOS[name]
    terms = scenario(service, ("chaos.faults.planted", name)) or {}
    if kind == "duplicate":  # it stays; what a zombie makes wait again may wait for ever, as its lane runs elsewhere
        until(lambda: found(service, **terms)[kind], "the checker sees a duplicate")
        return
    until(lambda: is_decided(service), "all is decided")
    kinds = found(service, **terms)
    assert kinds[kind] > 0, kinds


def test_an_end_sent_again_under_the_same_id_is_seen(tmp_path, users):
    module = ("chaos.faults.planted", "a_commit_is_sent_again_under_the_same_id")
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


def test_commands_that_are_gone_are_seen_though_a_worker_goes_on_behind_them(tmp_path, users):
    module = ("chaos.faults.planted", "the_end_of_the_commands_is_forgotten")
    with (
        Cluster(tmp_path / "kafka", proxied=False) as cluster,
        Service(cluster.bootstrap_servers, tmp_path, users, keep_topics=True, ORDERS_PARTITIONS="1") as service,
    ):
        for command in histories(2):
            service.send([command])  # a batch of its own
        dying = service.start_worker(("claim.named", 1, "SIGKILL"), module=module)  # before its lane decides anything
        assert dying.wait_ended() == -signal.SIGKILL
        cluster.kill(1)
        assert cut_tail(cluster.directory / "node-1", service.names.commands, 0, lose=1, is_transactional=False)
        cluster.start(1)
        service.start_worker(module=module).wait_lanes(1)
        until(lambda: is_decided(service), "all is decided that is left")
        assert found(service) == {"lost": 1}


def test_every_planted_fault_is_looked_for():
    apart = {"a_commit_is_sent_again_under_the_same_id", "the_end_of_the_commands_is_forgotten"}
    assert set(PLANTED) == {*SCENARIOS, *apart}

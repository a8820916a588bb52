"""The alerts of workers and lanes: each fires by its fault, and resolves after the repair of its runbook."""

import os
import signal
import time
from functools import partial

from chaos.faults.strangers import visit_group
from order_service.domain.messages import Line
from order_service.wire.changelog import BARRIER_KEY
from order_service.worker.membership import LaneAssignor
from tests.support.claiming import open_transaction
from tests.support.command_line import CommandLine
from tests.support.damaged_topics import delete_all, write
from tests.support.deciding import end
from tests.support.prometheus import fires
from tests.support.samples import SHOP, but, create
from tests.support.service import histories, until
from tests.support.worker_processes import COMMAND, TWO, Processes

REASON = ("--reason", "a test", "--actor", "user:alice", "--yes")


def creates(service, count, partition, **changes):
    """Return creates of new orders of one partition."""
    orders = (order for n in range(10_000) if service.partition_of(order := f"order-{partition}-{n}") == partition)
    return [
        but(create, order_id=order, command_id=f"create-{order}", actor=SHOP, **changes)
        for order, _ in zip(orders, range(count), strict=False)
    ]


def has_lanes(worker, count):
    return worker.admin("/metrics")[0] == 200 and worker.lanes() == count


def has_started(watch, times):
    return watch.value("orders_worker_process_starts_total", process="2") == times


def has_grown(watch, lag):
    return watch.value("orders_standby_lag_offsets") > lag


def has_parked(worker, more_than):
    return len(worker.lines("Lane parked.")) > more_than


@fires("OrdersTargetDown", "OrdersLanesNotRunning")
def test_a_worker_that_ended(watch):
    worker = watch.target(watch.service.start_worker()).wait_lanes(4)
    watch.before()
    worker.send(signal.SIGKILL)
    worker.wait_ended()
    watch.fault()
    watch.target(watch.service.start_worker()).wait_lanes(4)
    watch.after()


@fires("OrdersNeverRead")
def test_commands_that_are_deleted_before_a_worker_reads_them(watch):
    watch.before()
    watch.service.send(histories(8))
    delete_all(watch.service)
    watch.target(watch.service.start_worker()).wait_lanes(4)
    watch.fault()
    watch.after()


@fires("OrdersDeadLetters", "OrdersTopicFaults", "OrdersGroupStrangers")
def test_foreign_records_a_changed_topic_and_a_stranger(watch):
    service = watch.service
    worker = watch.target(service.start_worker(TEST_TOPICS_EVERY_S="0.2")).wait_lanes(4)
    watch.before()
    service.send([("order-1", b"no command")])
    service.wait_outcomes(1)
    service.configure(service.names.events, retention_bytes=1024**3)
    until(lambda: watch.value("orders_topic_faults") == 1, "the setting is noticed")

    def is_seen():
        until(lambda: watch.value("orders_group_strangers") == 1, "the stranger is noticed")
        watch.fault()

    visit_group(service.bootstrap_servers, service.group_id, service.names.commands, is_seen, [LaneAssignor])
    cli = CommandLine(service.environment)
    assert "retention.bytes=-1" in cli("topics", "check", code=13).output
    service.configure(service.names.events, retention_bytes=-1)
    [letter] = service.dead_letters()
    cli("dead-letters", "discard", f"{letter.partition()}:{letter.offset()}", "--why", "a test", "--yes")
    worker.wait_lanes(4)
    until(lambda: watch.value("orders_topic_faults") == 0, "the setting is repaired")
    until(lambda: watch.value("orders_group_strangers") == 0, "the stranger has left")
    watch.after()


@fires(
    "OrdersForeignTransaction", "OrdersClaimsSlow", "OrdersCommandsLag", "OrdersNothingDecided", "OrdersLanesNotRunning"
)
def test_an_open_transaction_of_another_program(watch):
    service = watch.service
    worker = watch.target(service.start_worker()).wait_lanes(4)
    watch.before()
    end(worker)
    with open_transaction(service, service.names.table, 0) as stranger:
        stranger.produce(service.names.commands, key="order-1", value=b"{}", partition=1)
        assert stranger.flush(30) == 0
        worker = watch.target(service.start_worker())
        until(lambda: worker.lanes() == 3, "the other lanes run")
        began_at = time.monotonic()
        waiting = creates(service, 6, 1)
        service.send(waiting)
        until(lambda: watch.value("orders_lag_commands") >= 6, "they wait")
        until(lambda: watch.value("orders_foreign_transaction_seconds") > 20, "the transaction is open for long")
        watch.fault()
        until(lambda: time.monotonic() > began_at + 31, "the claim takes longer than 30 s")
        watch.fault()
        stranger.abort_transaction(30)
    worker.wait_lanes(4)
    service.wait_outcomes(6)
    watch.fault()
    until(lambda: watch.value("orders_foreign_transaction_seconds") == 0, "it is no longer open")
    until(lambda: watch.value("orders_lag_commands") == 0, "nothing waits")
    watch.after()


@fires("OrdersLaneStalled")
def test_a_worker_that_fetches_nothing_until_it_is_restarted(watch):
    service = watch.service
    worker = watch.target(service.start_worker(module=("tests.support.hindered", "deaf"))).wait_lanes(4)
    watch.before()
    worker.send(signal.SIGPROF)
    until(lambda: "is deaf" in worker.log(), "nothing is fetched any more")
    service.send(histories(4))
    until(lambda: watch.value("orders_lanes", state="stalled") > 0, "the lanes are stalled")
    watch.fault()
    worker.send(signal.SIGTERM)
    worker.wait_ended()
    watch.target(service.start_worker()).wait_lanes(4)
    service.wait_outcomes(20)
    watch.after()


@fires("OrdersTurnsSlow", ORDERS_SESSION_TIMEOUT_S="30")
def test_a_turn_that_takes_seconds(watch):
    """The worker stands still in a turn, as it does while Kafka is slow."""
    service = watch.service
    worker = watch.target(service.start_worker(("turn.produced", 1, "SIGSTOP"))).wait_lanes(4)
    watch.before()
    watch.fault()
    service.send(creates(service, 1, 0))
    worker.wait_stopped()
    stopped_at = time.monotonic()
    until(lambda: time.monotonic() > stopped_at + 4, "the turn takes 4 s")
    worker.send(signal.SIGCONT)
    service.wait_outcomes(1)
    until(lambda: watch.value("orders_turn_seconds_bucket", le="+Inf") >= 1, "the turn is measured")
    watch.fault()
    watch.after()


@fires("OrdersClaimsRepeated", ORDERS_PARTITIONS="1", ORDERS_SESSION_TIMEOUT_S="1")
def test_a_partition_that_goes_to_and_fro(watch):
    """Two workers lose their session in turns, as those of overloaded machines do."""
    workers = [watch.target(watch.service.start_worker(), pod=f"worker-{number}") for number in range(2)]
    until(lambda: sum(worker.lanes() for worker in workers) == 1, "one of them runs the lane")
    watch.before()
    for _ in range(10):
        holder = until(
            lambda: next((worker for worker in workers if worker.lanes()), None), "one of them runs the lane"
        )
        [heir] = [worker for worker in workers if worker is not holder]
        holder.send(signal.SIGSTOP)
        until(partial(has_lanes, heir, 1), "the other one claims it")
        holder.send(signal.SIGCONT)
        until(partial(has_lanes, holder, 0), "the first has lost it")
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


@fires("OrdersStandbysBehind", ORDERS_STANDBYS="1", ORDERS_SESSION_TIMEOUT_S="30")
def test_a_standby_that_falls_behind(watch):
    """The table grows faster than a standby reads: by more than 20,000 records of one partition in a second."""
    service = watch.service
    workers = [watch.target(service.start_worker(), pod=f"worker-{number}") for number in range(2)]

    def follow():
        followed = sum(worker.admin("/metrics")[1].count("orders_standby_lag_offsets{") for worker in workers)
        return followed == 4 and watch.value("orders_standby_lag_offsets") == 0

    until(follow, "each follows the other")
    watch.before()
    lag = 0.0
    [standby] = [worker for worker in workers if 'standby_lag_offsets{partition="0"}' in worker.admin("/metrics")[1]]
    for _ in range(6):
        standby.send(signal.SIGSTOP)  # it reads up to 20,000 records each second
        write(service, service.names.table, [(0, BARRIER_KEY, b"stranger", None)] * 60_000)
        standby.send(signal.SIGCONT)
        until(partial(has_grown, watch, lag + 5_000), "the lag grows")
        lag = watch.value("orders_standby_lag_offsets")
        watch.fault()
    until(follow, "the standby has read all")
    watch.after()


@fires("OrdersLaneParked", "OrdersTablesDiscarded", "OrdersTableStoreFault", ORDERS_TABLE="rocksdb")
def test_a_parked_lane_whose_table_on_disk_is_damaged_and_then_forbidden(watch):
    service = watch.service
    worker = watch.target(service.start_worker(module=("tests.support.unprivileged",))).wait_lanes(4)
    watch.before()
    service.configure(service.names.events, max_message_bytes=3000)
    lines = tuple(Line(line_id=f"{n}", sku="mug", name="n" * 100, quantity=1, unit_price=100) for n in range(200))
    service.send(creates(service, 1, 0, lines=lines, discount=0))
    tables = service.directory / f"tables of {worker.name}"
    resume = ("lanes", "resume", 0, *REASON, "--worker", f"127.0.0.1:{worker.admin_port}")
    cli = CommandLine(service.environment)
    [current] = [path for path in tables.rglob("CURRENT") if path.parent.name.endswith("-0")]
    until(lambda: worker.lanes("parked") == 1, "the lane is parked")
    watch.fault()
    for count in range(1, 5):
        current.write_text("damaged")
        cli(*resume)
        until(partial(has_parked, worker, count), "the table is thrown away, and the lane is parked again")
        assert watch.value("orders_table_stores_discarded_total") == count
        watch.fault()
    current.parent.chmod(0)
    cli(*resume)
    until(lambda: watch.value("orders_table_store_fault") == 1, "the disk cannot be used")
    watch.fault()
    service.configure(service.names.events, max_message_bytes=4 * 1024 * 1024)
    current.parent.chmod(0o755)
    until(lambda: worker.lanes() == 4, "the lane runs")
    service.wait_outcomes(1)
    watch.after()

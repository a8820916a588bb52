"""The alerts about lanes: each fires by its fault, and resolves after its repair."""

import signal
import time

from tests.support.claiming import open_transaction
from tests.support.deciding import creates, end
from tests.support.prometheus import fires
from tests.support.service import histories, until


@fires(
    "OrdersForeignTransaction",
    "OrdersClaimsSlow",
    "OrdersCommandsLag",
    "OrdersNothingDecided",
    "OrdersLanesNotRunning",
    "OrdersCommandsLateFast",
    "OrdersCommandsLateSlow",
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
        service.send(creates(service, 12, 1))
        until(lambda: watch.value("orders_lag_commands") >= 12, "they wait")
        until(lambda: watch.value("orders_foreign_transaction_seconds") > 20, "the transaction is open for long")
        watch.fault()
        until(lambda: time.monotonic() > began_at + 31, "the claim takes longer than 30 s")
        watch.fault()
        stranger.abort_transaction(30)
    worker.wait_lanes(4)
    service.wait_outcomes(12)
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

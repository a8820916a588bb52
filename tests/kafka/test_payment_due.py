"""Payment due: an unpaid order cancels itself, once, and no payment that is in the log is overtaken."""

import signal
import time

from confluent_kafka import Producer

from order_service.wire.commands import encode_json_command
from tests.samples import but, create, pay
from tests.service import until

DUE = {"ORDERS_PAYMENT_DUE_S": "3"}
unpaid = but(create, order_id="unpaid", command_id="create-unpaid")


def timeouts(service):
    return [event for event in service.events() if getattr(event.fact, "reason", "") == "payment_timeout"]


def test_an_unpaid_order_cancels_itself_once_and_a_paid_one_does_not(service):
    worker = service.start_worker(**DUE).wait_ready()
    service.send([create, pay, unpaid])
    service.wait_outcomes(3)
    worker.send(signal.SIGKILL)
    worker.wait_ended()
    service.start_worker(**DUE)
    until(lambda: timeouts(service), "the unpaid one is cancelled")
    service.start_worker(**DUE).wait_ready()
    service.send([but(pay, order_id="unpaid", command_id="pay-late")])
    service.wait_outcomes(5)
    [event] = timeouts(service)
    assert (event.order_id, event.version) == ("unpaid", 2)
    assert [rejection.reason for rejection in service.rejections()] == ["order_cancelled"]
    assert service.table()["order-1"].order.status == "paid"


def test_a_payment_that_was_in_the_log_in_time_is_not_overtaken(service):
    worker = service.start_worker(**DUE).wait_ready()
    service.send([create])
    service.wait_outcomes(1)
    decided_at = time.time()
    worker.send(signal.SIGTERM)
    assert worker.wait_ended() == 0
    service.send([pay])
    until(lambda: time.time() > decided_at + 4, "the payment is due")
    service.start_worker(**DUE)
    service.wait_outcomes(2)
    assert [type(event.fact).__name__ for event in service.events()] == ["OrderCreated", "OrderPaid"]


def test_a_timer_fires_behind_the_end_of_a_transaction(service):
    service.start_worker(**DUE).wait_ready()
    producer = Producer(
        {
            "bootstrap.servers": service.bootstrap_servers,
            "partitioner": "murmur2_random",
            "transactional.id": f"{service.app_id}-shop",
        }
    )
    producer.init_transactions(30)
    for command, end in ((unpaid, producer.commit_transaction), (but(create), producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(service.names.commands, key=command.order_id, value=encode_json_command(command))
        producer.flush(30)
        end(30)
    until(lambda: timeouts(service), "the unpaid order is cancelled")
    assert [event.order_id for event in service.events()] == ["unpaid", "unpaid"]

"""Payment due: an unpaid order cancels itself, once, and no payment that is in the log is overtaken."""

import asyncio
import signal
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Producer

from order_service.domain.decision import UserCheck, payment_timeout
from order_service.kafka.registry_client import Ids
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.wire.changelog import Position
from order_service.wire.commands import encode_json_command
from order_service.worker.assignment import Assignment, Context
from order_service.worker.clock import Clock
from order_service.worker.lane import Lane, LanePolicy
from tests.support.samples import but, create, entry_after, pay
from tests.support.service import until
from tests.support.tables import table_of

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
    assert (event.order_id, event.version, event.command_id) == ("unpaid", 2, payment_timeout("unpaid").command_id)
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
            "log_level": 0,
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


class Unread:
    """Stands in for the consumer of a lane that does not come to the end of its commands, until told so."""

    def __init__(self):
        self.has_read = False
        self.ends_asked = 0
        self.looked = 0
        self.pause = self.resume = self.end_of = self.announce = self.fetch_before = print

    async def end(self, _partition):
        self.ends_asked += 1
        return 10

    async def reached(self, _partition):
        self.looked += 1
        return (10 if self.has_read else 3), 0, 0


async def test_however_long_a_lane_is_behind_one_question_at_a_time_asks_how_far_it_is():
    now = datetime.now(UTC)
    policy = LanePolicy(partition_count=1, commands_topic="commands", payment_due_s=1)
    lane = Lane(0, policy, lambda _user_id: UserCheck.ACTIVE, print)
    due_now = entry_after([create], now=now - timedelta(seconds=1))
    due_soon = entry_after([create], now=now - timedelta(seconds=0.8))
    lane.restore(table_of({"first": due_now, "second": due_soon}), [], Position(3, "owner", 10, None))
    unread: Any = Unread()
    nobody: Any = None
    settings = Settings(payment_due_s=1)
    servers = {"bootstrap_servers": "127.0.0.1:1"}
    context = Context(
        settings, topic_names(), {}, servers, unread, nobody, Ids(None), print, Clock(60), lambda _step: None
    )
    assignment = Assignment(context, {0}, nobody, nobody, nobody)
    assignment.inbox.open(0)
    assignment.lanes[0] = lane
    watching = asyncio.create_task(assignment._payments.run())
    try:
        await becomes(lambda: unread.looked > 20)  # a second: the other payment is due, too
        assert unread.ends_asked == 1
        unread.has_read = True
        await becomes(lambda: assignment.turns._due == {0: ["first", "second"]})
        assert unread.ends_asked == 2
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await assignment.stop()


async def becomes(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0.01)

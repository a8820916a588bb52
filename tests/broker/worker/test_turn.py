"""A turn on a real broker: everything in it is committed, or nothing, whatever happens to its process."""

import signal
from typing import Any

import pytest
from aiokafka.errors import RequestTimedOutError
from aiokafka.protocol.transaction import EndTxnRequest

from order_service.errors import Fenced, Stuck
from order_service.kafka.connection import connection
from order_service.worker.transactions import fence, started
from tests.support.samples import SHOP, but, create
from tests.support.service import GRACE_S, histories, until


def test_a_record_that_the_broker_refuses_commits_nothing(service):
    first = [but(create, order_id="order-1", command_id="small")]
    large = [but(create, order_id="order-1-b", command_id="large", metadata={f"key-{n}": "x" * 500 for n in range(20)})]
    worker = service.start_worker().wait_lanes(4)
    service.send(first)
    service.wait_outcomes(1)
    before = service.positions()
    service.configure(service.names.events, max_message_bytes=4096)
    service.send(large)
    until(lambda: "MessageSizeTooLarge" in worker.faults(), "the lane is parked")
    assert service.positions() == before
    service.check(first)
    service.configure(service.names.events, max_message_bytes=4 * 1024 * 1024)
    worker.send(signal.SIGTERM)
    assert worker.wait_ended(within_s=GRACE_S) == 0
    service.start_worker()
    service.wait_outcomes(2)
    service.check(first + large)


def test_a_worker_told_to_end_in_the_middle_of_load_loses_nothing(service):
    commands = histories(300)
    worker = service.start_worker().wait_lanes(4)
    with service.sending(commands, per_s=600):
        service.wait_outcomes(200)
        worker.send(signal.SIGTERM)
        assert worker.wait_ended(within_s=GRACE_S) == 0
    assert service.outcome_count() < len(commands)
    service.start_worker()
    service.wait_outcomes(len(commands))
    service.check(commands)


def lose_the_answer_to_the_first_end(producer):
    """Deliver the first EndTxn to the broker, and lose its answer."""
    send = producer.client.send
    lost: list[Any] = []

    async def send_and_lose(node_id, request, **more):
        answer = await send(node_id, request, **more)
        if isinstance(request, EndTxnRequest) and not lost:
            lost.append(answer)
            raise RequestTimedOutError
        return answer

    producer.client.send = send_and_lose


async def test_an_end_whose_answer_was_lost_ends_the_process(service):
    async with started(f"{service.app_id}-worker", connection(service.settings())) as producer:
        lose_the_answer_to_the_first_end(producer)
        await producer.begin()
        sent = await producer.send_all(service.names.dead_letters, 0, [(b"order-1", b"{}", [])])
        with pytest.raises(Stuck, match="sent twice"):
            await producer.commit(sent)


async def test_what_a_fenced_producer_raises_is_named(service):
    own = connection(service.settings())
    async with started(f"{service.app_id}-worker", own) as producer:
        await producer.begin()
        sent = await producer.send_all(service.names.dead_letters, 0, [(b"order-1", b"{}", [])])
        await producer.wait_for_acks(sent)
        await fence(producer.transactional_id, own)
        sent = await producer.send_all(service.names.dead_letters, 1, [(b"order-2", b"{}", [])])
        with pytest.raises(Fenced):
            await producer.wait_for_acks(sent)
        with pytest.raises(Fenced):
            await producer.send_all(service.names.dead_letters, 1, [(b"order-2", b"{}", [])])
    assert service.dead_letters() == []


def test_unpaid_orders_are_cancelled_in_all_lanes_at_once(service):
    orders = [but(create, order_id=f"order-{n}", command_id=f"create-{n}", actor=SHOP) for n in range(20)]
    service.start_worker(ORDERS_PAYMENT_DUE_S="1").wait_lanes(4)
    service.send(orders)
    service.wait_outcomes(40)
    reasons = [event.fact.reason for event in service.events() if event.version == 2]
    assert reasons == ["payment_timeout"] * 20

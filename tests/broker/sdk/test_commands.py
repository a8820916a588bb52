"""Commands sent to a real worker: every kind of outcome, repeats, and what is said where Kafka or a worker is away."""

import asyncio
import contextlib
import gc
import subprocess
import sys
from inspect import cleandoc
from itertools import count

import pytest
from confluent_kafka import Producer, TopicPartition

from order_service import sdk
from order_service.errors import HistoryError, KafkaAwayError, SetupError, TopicsError
from order_service.kafka.command_producer import CommandsTopic
from order_service.sdk import (
    Accepted,
    AwaitingUser,
    Line,
    OrderCommands,
    OrderPaid,
    Reason,
    Refused,
    Repeated,
    Undecided,
    Unreadable,
)
from order_service.sdk.testing import create_order, pay_order
from order_service.settings import Settings
from order_service.wire.commands import encode_json_command
from tests.support.kafka import running_broker
from tests.support.service import ROOT, Service, histories, until

MUG = Line(sku="mug-blue", quantity=2, unit_price=1250)
ids = (f"order-{number}" for number in count(4))
"""The ids of new orders; the example in the docstring of the SDK has order-3."""


@pytest.fixture
async def orders(working):
    async with OrderCommands(actor="service:shop", settings=working.settings()) as made:
        yield made


async def test_a_command_that_is_accepted_gives_its_event(orders):
    order_id = next(ids)
    placed = await orders.create(order_id, "dana", "EUR", [MUG], tax=500, expected_version=0)
    assert isinstance(placed, Accepted)
    assert (placed.event.order_id, placed.event.version, placed.event.actor) == (order_id, 1, "service:shop")
    paid = await orders.pay(order_id, "payment-1", 3000, "EUR")
    assert paid.event.fact == OrderPaid("payment-1", 3000, "EUR")
    assert not paid.repeated


async def test_a_command_that_is_refused_gives_the_reason(orders):
    refused = await orders.pay(next(ids), "payment-1", 3000, "EUR")
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.ORDER_NOT_FOUND
    assert refused.rejection.detail == "There is no order with this order_id for this actor."


async def test_a_command_that_nobody_can_read_says_so(orders):
    outcome = await orders.deliver("no id")
    assert isinstance(outcome, Unreadable)
    assert outcome.reason == "bad_shape"
    assert "order_id" in outcome.detail


async def test_a_create_waits_for_its_user(orders):
    assert await orders.create(next(ids), "slow-60000-dana", "EUR", [MUG], wait_s=2) == AwaitingUser()


async def test_a_command_that_is_accepted_twice_is_answered_from_history(orders):
    order_id = next(ids)
    first = await orders.send(create_order(order_id))
    again = await orders.send(create_order(order_id))
    assert again == Accepted(first.record, repeated=True)


async def test_a_command_that_is_refused_twice_is_answered_from_history(orders):
    order_id = next(ids)
    await orders.send(create_order(order_id))
    first = await orders.send(pay_order(order_id, amount=1))
    assert first.reason is Reason.PAYMENT_MISMATCH
    assert await orders.send(pay_order(order_id, amount=1)) == Refused(first.record, repeated=True)


async def test_a_refusal_that_no_order_remembers_is_the_answer_of_its_own_copy_only(orders):
    order_id = next(ids)
    payment = pay_order(order_id)
    refused = await orders.send(payment)
    assert (refused.reason, refused.repeated) == (Reason.ORDER_NOT_FOUND, False)
    assert isinstance(await orders.send(create_order(order_id)), Accepted)
    accepted = await orders.send(payment)
    assert isinstance(accepted, Accepted)
    assert (accepted.event.command_id, accepted.repeated) == (payment.command_id, False)
    assert refused.record.command_offset < accepted.record.command_offset


async def test_copies_before_and_after_an_order_is_created_each_have_their_own_outcome(orders):
    for order_id in [next(ids) for _ in range(10)]:
        payment = pay_order(order_id)
        copies = [orders.send(command) for command in (payment, create_order(order_id), payment)]
        before, _, after = await asyncio.gather(*copies)
        assert isinstance(before, Refused)
        assert before.reason is Reason.ORDER_NOT_FOUND
        assert isinstance(after, Accepted)
        assert (before.repeated, after.repeated) == (False, False)


async def test_copies_that_are_sent_at_once_are_one(orders):
    order_id = next(ids)
    outcomes = await asyncio.gather(*[orders.send(create_order(order_id)) for _ in range(5)])
    assert sorted(outcome.repeated for outcome in outcomes) == [False, True, True, True, True]
    assert len({outcome.event.event_id for outcome in outcomes}) == 1


def poison(service, order_id):
    """Write under an order what is no event."""
    service.producer.produce(service.names.events, key=order_id, value=b"\0of a newer service")
    assert service.producer.flush(30) == 0


async def test_an_event_that_cannot_be_read_fails_only_who_repeats_a_command_of_its_order(working, orders):
    bad = next(ids)
    good = next(one for one in ids if working.partition_of(one) == working.partition_of(bad))
    for order_id in (bad, good):
        await orders.send(create_order(order_id))
        await orders.send(pay_order(order_id, amount=1))
    poison(working, bad)
    assert isinstance(await orders.send(pay_order(good, amount=1)), Refused)  # behind it: from now on it is history
    # The first begins a search, the other two are the next one together.
    repeats = [orders.send(pay_order(order_id, amount=1)) for order_id in (good, good, bad)]
    *outcomes, error = await asyncio.gather(*repeats, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Refused] * 2
    assert isinstance(error, HistoryError)


@contextlib.contextmanager
def unfinished(service, order_id):
    """Hold a transaction open behind all that is known of an order."""
    producer = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "partitioner": "murmur2_random",
            "transactional.id": order_id,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(service.names.events, key=order_id, value=b"never")
    producer.flush(30)
    yield
    producer.abort_transaction(30)


async def test_a_search_ends_with_the_last_answer(working, orders):
    order_id = next(ids)
    first = await orders.send(create_order(order_id))
    with unfinished(working, order_id):
        assert await orders.send(create_order(order_id)) == Accepted(first.record, repeated=True)
        search = orders._sender._outcomes._history
        await asyncio.wait_for(search.task, 30)


async def test_an_answer_that_is_not_kept_any_more_is_forgotten(working, orders):
    order_id = next(ids)
    await orders.send(create_order(order_id))
    assert isinstance(await orders.send(pay_order(order_id, amount=1)), Refused)
    place = TopicPartition(working.names.rejections, working.partition_of(order_id), -1)
    working.kafka.delete_records([place])[place].result(30)
    assert await orders.send(pay_order(order_id, amount=1)) == Repeated()


async def test_a_command_of_another_producer_is_not_taken_for_ours(working, orders):
    order_id = next(ids)
    theirs = create_order(order_id, command_id="theirs", actor="service:other")
    working.producer.produce(working.names.commands, key=order_id, value=encode_json_command(theirs))
    assert working.producer.flush(30) == 0
    refused = await orders.send(create_order(order_id))
    assert refused.reason is Reason.ORDER_EXISTS


async def test_a_reading_that_stopped_begins_anew(working):
    async with OrderCommands(actor="service:shop", settings=working.settings()) as orders:
        assert isinstance(await orders.create(next(ids), "dana", "EUR", [MUG]), Accepted)
        reading = orders._sender._outcomes._task
        assert reading is not None
        reading.cancel()
        await asyncio.wait([reading])
        assert isinstance(await orders.create(next(ids), "dana", "EUR", [MUG]), Accepted)


async def test_only_the_partition_of_an_awaited_command_is_read(working, orders):
    awaited, other = (next(one for one in ids if working.partition_of(one) == partition) for partition in (0, 1))
    consumer = orders._sender._outcomes._reader._consumer

    def followed():
        return {partition for _, partition in consumer.assignment() - consumer.paused()}

    waiting = asyncio.create_task(orders.create(awaited, "slow-60000-dana", "EUR", [MUG], wait_s=60))
    await asyncio.to_thread(until, lambda: followed() == {0}, "its partition is read")
    assert isinstance(await orders.send(create_order(other)), Accepted)
    await asyncio.to_thread(until, lambda: followed() == {0}, "the other one is read no more")
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.to_thread(until, lambda: followed() == set(), "nothing is read")


async def test_no_outcome_is_missed_beside_the_load_of_others(working):
    """Callers come and go in all partitions, so that each is read again and again from new ends."""
    async with OrderCommands(actor="service:shop", settings=working.settings()) as shop:

        async def call(number):
            for _ in range(10):
                await asyncio.sleep(number % 7 * 0.03)
                outcome = await shop.create(next(ids), "dana", "EUR", [MUG], wait_s=60)
                assert isinstance(outcome, Accepted), outcome

        with working.sending(histories(400, first=100_000), per_s=500):
            await asyncio.gather(*[call(number) for number in range(20)])


async def test_a_thousand_at_once_stay_within_their_bound(working):
    held = []
    async with OrderCommands(actor="service:shop", in_flight_max=100, settings=working.settings()) as shop:

        async def create(order_id):
            outcome = await shop.create(order_id, "dana", "EUR", [MUG], wait_s=30)
            held.append(len(list(shop._sender._outcomes._all())))
            return outcome

        outcomes = await asyncio.gather(*[create(next(ids)) for _ in range(1000)])
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert 90 < max(held) <= 100


async def test_without_a_worker_a_command_stays_undecided(service):
    async with OrderCommands(actor="service:shop", settings=service.settings()) as orders:
        assert await orders.create("order-1", "dana", "EUR", [MUG], wait_s=0.5) == Undecided()
        assert await orders.create("order-1", "dana", "EUR", [MUG], wait_s=0) == Undecided()
        waiting = asyncio.create_task(orders.create("order-1", "dana", "EUR", [MUG], wait_s=60))
        await asyncio.to_thread(until, lambda: len(service.read(service.names.commands)) == 3, "it is in Kafka")
    assert await waiting == Undecided()


async def test_an_event_that_cannot_be_read_fails_only_who_waits_for_its_order(service):
    async with OrderCommands(actor="service:shop", settings=service.settings()) as orders:
        good, bad = (asyncio.create_task(orders.deliver(order_id, wait_s=60)) for order_id in ("order-1", "order-2"))
        await asyncio.to_thread(until, lambda: len(service.read(service.names.commands)) == 2, "they are in Kafka")
        poison(service, "order-2")
        with pytest.raises(HistoryError, match="cannot be read"):
            await bad
        assert not good.done()
    assert await good == Undecided()


async def test_a_command_that_waits_for_a_free_slot_is_not_sent_after_the_client_closes(service):
    before = asyncio.all_tasks()
    async with OrderCommands(actor="service:shop", in_flight_max=1, settings=service.settings()) as orders:
        sending = [asyncio.create_task(orders.deliver("order-1", wait_s=wait_s)) for wait_s in (60, 0, 60)]
        await asyncio.to_thread(until, lambda: len(service.read(service.names.commands)) == 1, "one is in Kafka")
    first, *others = await asyncio.gather(*sending, return_exceptions=True)
    assert first == Undecided()
    assert [type(error) for error in others] == [SetupError] * 2
    assert len(service.read(service.names.commands)) == 1
    assert asyncio.all_tasks() <= before


async def test_a_producer_that_is_just_being_started_is_ended_too(service):
    before = asyncio.all_tasks()
    topic = CommandsTopic(service.settings())
    sending = [asyncio.create_task(topic.send(create_order(order_id), [])) for order_id in ("order-1", "order-2")]
    await asyncio.sleep(0)
    assert topic._starting.locked()
    await topic.stop()
    errors = await asyncio.gather(*sending, return_exceptions=True)
    assert [type(error) for error in errors] == [SetupError] * 2
    assert asyncio.all_tasks() <= before


async def test_who_cannot_begin_says_why(bootstrap_servers):
    elsewhere = Settings(topic_prefix="none.")
    with pytest.raises(TopicsError, match="a topic is missing"):
        async with OrderCommands(bootstrap_servers, actor="service:shop", settings=elsewhere):
            pass
    with pytest.raises(KafkaAwayError, match="no Kafka answers"):
        async with OrderCommands("127.0.0.1:1", actor="service:shop"):
            pass


@pytest.fixture
def leaving(tmp_path, users):
    """Provide a service with a Kafka of its own."""
    with (
        running_broker(tmp_path) as broker,
        Service(broker.bootstrap_servers, tmp_path, users, keep_topics=True) as service,
    ):
        yield service, broker


async def test_where_kafka_goes_away_who_sends_hears_of_it_in_time(leaving):
    service, broker = leaving
    settings, complaints = service.settings(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said["message"]))
    async with asyncio.timeout(20), OrderCommands(actor="service:shop", within_s=2, settings=settings) as orders:
        assert await orders.create("order-1", "dana", "EUR", [MUG], wait_s=0) == Undecided()
        broker.kill()
        sending = [orders.create("order-1", "dana", "EUR", [MUG], wait_s=wait_s) for wait_s in (0, 5, 5)]
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [KafkaAwayError] * 3
    gc.collect()
    assert complaints == []


def test_the_example_runs_as_it_is_written(working):
    said = sdk.__doc__ or ""
    example = cleandoc("\n" + said[said.index("    import asyncio") : said.index("There are two ways")])
    ended = subprocess.run(
        [sys.executable, "-c", example],
        cwd=ROOT,
        env=working.environment,
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
    )
    assert ended.stdout.splitlines() == [
        "order-3 is placed: 2500 EUR",
        "a mail to dana: thank you for order-3",
    ]

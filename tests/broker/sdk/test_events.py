"""Subscribers on a real Kafka: what comes again after a kill or a rebalance, what never comes, and what is noticed."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter

import pytest
from aiokafka.structs import TopicPartition as AtPartition
from confluent_kafka import Consumer, Producer, TopicPartition

from order_service.errors import HistoryError, KafkaAwayError, SetupError, TopicsError
from order_service.sdk import Hole, HoleError, OrderEvents, skip
from order_service.sdk.subscriptions import GroupLog
from order_service.sdk.testing import order_created, order_paid, sample_life
from order_service.settings import Settings
from order_service.wire.avro import encode_event
from tests.broker.sdk.writing import write
from tests.support.service import ROOT, until

WITHIN_S = 30.0


async def take(events, count):
    """Take so many events."""
    async with asyncio.timeout(WITHIN_S):
        return [await anext(events) for _ in range(count)]


def names(happened):
    return [(one.event.order_id, one.event.version) for one in happened]


def committed(service, group):
    """Return how many offsets a group has committed, over all partitions."""
    consumer = Consumer({"log_level": 0, "bootstrap.servers": service.bootstrap_servers, "group.id": group})
    places = [TopicPartition(service.names.events, partition) for partition in range(service.partitions)]
    found = consumer.committed(places, 10)
    consumer.close()
    return sum(max(0, place.offset) for place in found)


@contextlib.contextmanager
def mailer(service, group, file, last):
    """Run a subscriber that dies after its work on a version."""
    command = [sys.executable, "-m", "tests.broker.sdk.mailer", group, str(file), str(last)]
    with subprocess.Popen(command, cwd=ROOT, env=service.environment) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_new_group_is_silent_about_history(service, group):
    write(service, *sample_life("old"))
    async with OrderEvents.effects(group=group, settings=service.settings()) as events:
        write(service, *sample_life("new"))
        happened = await take(events, 5)
    assert names(happened) == [("new", version) for version in range(1, 6)]
    assert not any(one.is_replay for one in happened)


@contextlib.contextmanager
def member(service, group, topic):
    """Provide the group a member that reads something else."""
    consumer = Consumer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "group.id": group,
            "auto.offset.reset": "latest",
        }
    )
    consumer.subscribe([topic])
    until(lambda: consumer.poll(0.1) is not None or consumer.assignment(), "it is a member")
    yield
    consumer.close()


async def test_a_group_whose_members_read_something_else_is_not_begun(service, group):
    events = OrderEvents.effects(group=group, settings=service.settings())
    with (
        member(service, group, service.names.rejections),
        pytest.raises(SetupError, match="has members that do not read"),
    ):
        await events.__aenter__()
    assert committed(service, group) == 0


async def test_a_group_that_died_before_its_first_commit_misses_nothing(service, group):
    write(service, *sample_life("old"))
    with pytest.raises(ZeroDivisionError):
        async with OrderEvents.effects(group=group, settings=service.settings()):
            raise ZeroDivisionError
    write(service, order_created("meanwhile"))
    async with OrderEvents.effects(group=group, settings=service.settings()) as events:
        assert names(await take(events, 1)) == [("meanwhile", 1)]


async def test_what_was_not_committed_when_a_member_was_killed_comes_again_and_only_that(service, group, tmp_path):
    life, mails = sample_life(), tmp_path / "mails"
    with mailer(service, group, mails, 2) as process:
        await asyncio.to_thread(until, mails.exists, "it has begun")
        write(service, life[0])
        await asyncio.to_thread(until, lambda: committed(service, group) == 1, "the first one is committed")
        write(service, life[1])
        await asyncio.to_thread(until, lambda: process.poll() is not None, "it is killed")
        assert process.returncode == -signal.SIGKILL
    assert mails.read_text().split() == ["opened", "1", "2"]
    write(service, *life[2:])
    async with OrderEvents.effects(group=group, settings=service.settings()) as events:
        assert [version for _, version in names(await take(events, 4))] == [2, 3, 4, 5]
    assert committed(service, group) == 5


async def test_members_share_the_work_and_a_rebalance_is_no_hole(service, group):
    seen: Counter[tuple[str, int]] = Counter()
    lives = [sample_life(f"order-{number}") for number in range(20)]
    shares = [0, 0]

    async def work(member):
        async with OrderEvents.effects(group=group, settings=service.settings()) as events:
            async for happened in events:
                seen[happened.event.order_id, happened.event.version] += 1
                shares[member] += 1

    async def seen_until(version):
        wanted = {(life[0].order_id, version) for life in lives}
        await asyncio.to_thread(until, lambda: wanted <= seen.keys(), f"version {version} of all orders is seen")

    async with OrderEvents.effects(group=group, settings=service.settings()):
        pass

    def write_more():
        write(service, order_created(f"more-{sum(shares)}"))

    first = asyncio.create_task(work(0))
    write(service, *[life[0] for life in lives])
    await seen_until(1)
    second = asyncio.create_task(work(1))
    for version in range(2, 5):
        write(service, *[life[version - 1] for life in lives])
        await seen_until(version)
    await asyncio.to_thread(until, lambda: write_more() or shares[1], "the second member has a share")
    second.cancel()
    write(service, *[life[4] for life in lives])
    await seen_until(5)
    first.cancel()
    ended = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(error) for error in ended] == [asyncio.CancelledError] * 2


async def test_a_projection_is_built_again_from_history(service):
    lives = [sample_life(f"order-{number}") for number in range(5)]
    write(service, *[event for life in lives for event in life])

    async def built(start=None):
        async with OrderEvents.projection(start=start, settings=service.settings()) as events:
            write(service, order_created("news"))
            return await take(events, 26 if start is None else 1)

    once, again = await built(), await built()
    old = {(one.event.order_id, one.event.version) for one in once if one.is_replay}
    assert old == {(event.order_id, event.version) for life in lives for event in life}
    assert Counter(names(once)) == Counter(names(again)) == Counter([*old, ("news", 1)])
    last = {one.partition: one.offset for one in once}
    [begun] = await built(last)
    assert begun.offset == last[begun.partition]


async def test_a_projection_loses_nothing_where_who_waits_is_cancelled(service):
    async with OrderEvents.projection(settings=service.settings()) as events:
        for version in range(1, 4):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(events), 0.01)
            write(service, sample_life()[version - 1])
            assert [found for _, found in names(await take(events, 1))] == [version]


async def test_what_was_aborted_never_comes(service):
    producer = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "partitioner": "murmur2_random",
            "transactional.id": service.app_id,
        }
    )
    producer.init_transactions(30)
    for event, end in [(order_created("never"), producer.abort_transaction), (order_created(), None)]:
        producer.begin_transaction()
        producer.produce(service.names.events, key=event.order_id, value=encode_event(event))
        producer.flush(30)
        (end or producer.commit_transaction)(30)
    async with OrderEvents.projection(settings=service.settings()) as events:
        assert names(await take(events, 1)) == [("order-1", 1)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 1)


async def test_a_hole_is_reported(service):
    holes: list[Hole] = []
    write(service, order_created(), order_paid(version=3))
    async with OrderEvents.projection(settings=service.settings()) as events:
        await take(events, 1)
        with pytest.raises(HoleError, match="version 2 of the order order-1 is missing"):
            await take(events, 1)
    async with OrderEvents.projection(on_hole=holes.append, settings=service.settings()) as events:
        assert names(await take(events, 2)) == [("order-1", 1), ("order-1", 3)]
    assert len(holes) == 1


async def test_poison_is_the_callers_to_decide_on(service):
    service.producer.produce(service.names.events, key="order-1", value=b"\0secret")
    assert service.producer.flush(30) == 0
    write(service, order_created())
    async with OrderEvents.projection(settings=service.settings()) as events:
        with pytest.raises(HistoryError, match=rf"offset 0 of partition \d of {service.names.events}") as raised:
            await take(events, 1)
    assert "secret" not in str(raised.value)
    async with OrderEvents.projection(on_poison=skip, settings=service.settings()) as events:
        assert names(await take(events, 1)) == [("order-1", 1)]


async def test_a_position_in_another_log_is_refused(service):
    with pytest.raises(HistoryError, match="before the position 7: the topic was recreated"):
        async with OrderEvents.projection(start={0: 7}, settings=service.settings()):
            pass


async def test_a_position_of_which_the_log_is_gone_is_refused(service):
    write(service, *sample_life())
    partition = service.partition_of("order-1")
    place = TopicPartition(service.names.events, partition, 3)
    service.kafka.delete_records([place])[place].result(30)
    with pytest.raises(HistoryError, match=f"partition {partition} of .* begins at 3, after the position 2"):
        async with OrderEvents.projection(start={partition: 2}, settings=service.settings()):
            pass
    for start in ({partition: 3}, None):
        async with OrderEvents.projection(start=start, settings=service.settings(), on_hole=lambda _: None) as events:
            assert names(await take(events, 1)) == [("order-1", 4)]


@pytest.mark.parametrize("make", [OrderEvents.projection, lambda **given: OrderEvents.effects(group="g", **given)])
async def test_who_cannot_begin_says_why(bootstrap_servers, make):
    elsewhere = Settings(topic_prefix="none.")
    with pytest.raises(TopicsError, match="a topic is missing"):
        async with make(servers=bootstrap_servers, settings=elsewhere):
            pass
    with pytest.raises(KafkaAwayError, match="no Kafka answers"):
        async with make(servers="127.0.0.1:1", settings=elsewhere):
            pass


async def test_what_is_read_again_after_a_rebalance_is_dropped(service, group):
    async with OrderEvents.effects(group=group, settings=service.settings()) as events:
        write(service, *sample_life()[:2])
        [first] = await take(events, 1)
        log = events._log
        assert isinstance(log, GroupLog)
        await log._revoked(log._consumer.assignment())  # the same partitions come back, from what is committed
        log._consumer.seek(AtPartition(service.names.events, first.partition), first.offset)
        assert [version for _, version in names(await take(events, 1))] == [2]
        assert events.repeat_count == 1
    assert committed(service, group) == 2

"""Commands as producers of all kinds send them: as large as can be, in transactions, by another partitioner."""

import re
from zlib import crc32

import msgspec
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from order_service.domain.messages import CreateOrder
from order_service.wire.avro import MAX_COMMAND_BYTES
from order_service.wire.commands import encode_json_command, partition_of
from tests.support.extremes import WORTH, in_every_form, largest_order
from tests.support.samples import SHOP, but, create, pay
from tests.support.service import header, until


@pytest.mark.parametrize("user_id", ["dana", "slow-1500-dana"])
@pytest.mark.parametrize("form", ["UTF-8", "escaped", "Avro", "as large as is accepted"])
def test_the_largest_command_is_decided_at_once_and_after_waiting(service, user_id, form):
    order = largest_order(user_id=user_id, actor=SHOP, command_id="create-1")
    written = in_every_form(order)
    written["as large as is accepted"] = written["escaped"][:-1].ljust(MAX_COMMAND_BYTES - 1) + b"}"
    worker = service.start_worker().wait_lanes(4)
    service.send([(order["order_id"], written[form])])
    if user_id != "dana":
        until(service.waiting, "it waits")
    paid = but(pay, order_id=order["order_id"], amount=500 * WORTH**2 + 10**14)
    service.send([paid])
    service.wait_outcomes(2)
    service.check([msgspec.convert(order, CreateOrder), paid])
    assert worker.is_ready()


def test_only_what_a_transactional_producer_has_committed_is_decided(service):
    worker = service.start_worker().wait_lanes(4)
    producer = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "partitioner": "murmur2_random",
            "transactional.id": f"{service.app_id}-shop",
        }
    )
    producer.init_transactions(30)
    aborted = [but(create, order_id=f"order-{n}", command_id=f"aborted-{n}") for n in range(20)]
    committed = [but(command, command_id=f"committed-{command.order_id}") for command in aborted]
    for commands, end in ((committed, producer.commit_transaction), (aborted, producer.abort_transaction)):
        producer.begin_transaction()
        for command in commands:
            producer.produce(service.names.commands, key=command.order_id, value=encode_json_command(command))
        assert producer.flush(30) == 0, "all are in the log before the end"
        end(30)
    service.wait_outcomes(len(committed))
    until(lambda: group_offsets(service) == ends(service), "the group has read all, ends of transactions too")
    until(lambda: lag(worker) == [0, 0, 0, 0], "no lag is left")
    service.check(committed)


def places(service):
    return [TopicPartition(service.names.commands, partition) for partition in range(service.partitions)]


def group_offsets(service):
    """Read the offsets that lag monitors see."""
    request = [ConsumerGroupTopicPartitions(service.group_id, places(service))]
    [future] = service.kafka.list_consumer_group_offsets(request).values()
    return [place.offset for place in future.result(30).topic_partitions]


def ends(service):
    futures = service.kafka.list_offsets(dict.fromkeys(places(service), OffsetSpec.latest()))
    return [future.result(30).offset for future in futures.values()]


def lag(worker):
    """Read the lag of all partitions."""
    found = re.findall(r"^orders_lag_commands\{.*\} ([0-9.]+)", worker.admin("/metrics")[1], re.MULTILINE)
    return [float(value) for value in found]


def test_what_another_partitioner_has_misplaced_says_so(service):
    worker = service.start_worker().wait_lanes(4)
    orders = [but(create, order_id=f"order-{n}", command_id=f"create-{n}") for n in range(20)]
    service.producer = Producer({"log_level": 0, "bootstrap.servers": service.bootstrap_servers})
    service.send(orders)
    service.wait_outcomes(len(orders))
    right = [
        order for order in orders if crc32(order.order_id.encode()) % 4 == partition_of(order.order_id.encode(), 4)
    ]
    service.check(right, dead=len(orders) - len(right))
    assert 0 < len(right) < len(orders)
    for letter in service.dead_letters():
        assert header(letter, "dl_reason") == b"wrong_partition"
        assert b"set partitioner=murmur2_random" in (header(letter, "dl_detail") or b"")
        assert letter.partition() == crc32(letter.key()) % 4
    assert worker.is_ready()

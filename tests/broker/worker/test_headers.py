"""What producers may do to a record beside its key and value: header names that are no text, compression."""

import asyncio
import struct

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Producer

from order_service.wire.commands import encode_json_command, partition_of
from tests.support.samples import but, create
from tests.support.service import header

GZIP = 1
NOT_LEADER = 6
CRC_AT, ATTRIBUTES_AT = 17, 21
"""Where a batch of format 2 has its checksum, and where what it covers begins. Source: Kafka protocol guide."""


def batch(records, codec=0):
    """Make a batch in which each `?` of a header's name is a byte that no UTF-8 text has."""
    builder = DefaultRecordBatchBuilder(
        2, codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 25
    )
    for offset, (key, value, headers) in enumerate(records):
        builder.append(offset, 1_700_000_000_000, key=key, value=value, headers=headers)
    made = bytearray(bytes(builder.build()).replace(b"na??me", b"na\xff\xfeme"))
    struct.pack_into(">I", made, CRC_AT, calc_crc32c(bytes(made[ATTRIBUTES_AT:])))
    return bytes(made)


async def _sent(client, topic, partition, request):
    answer = await client.send(client.cluster.leader_for_partition(TopicPartition(topic, partition)), request)
    return answer.topics[0][1][0][1]


async def produce(service, partition, made):
    client = AIOKafkaClient(bootstrap_servers=service.bootstrap_servers)
    await client.bootstrap()
    try:
        await client.set_topics([service.names.commands])
        place = [(service.names.commands, [(partition, made)])]
        request = ProduceRequest(transactional_id=None, required_acks=-1, timeout=10_000, topics=place)
        async with asyncio.timeout(30):
            while (error := await _sent(client, service.names.commands, partition, request)) == NOT_LEADER:
                await client.force_metadata_update()  # the topic is young
        assert error == 0, "Kafka takes the batch"
    finally:
        await client.close()


def test_header_names_that_are_no_text_stop_nothing(service):
    worker = service.start_worker().wait_ready()
    key = create.order_id.encode()
    partition = partition_of(key, service.partitions)
    records = [
        (key, encode_json_command(create), [("na??me", b"1"), ("traceparent", b"00-1"), ("tracestate", b"shop=1")]),
        (key, b"no command", [("na??me", b"2"), ("fine", None)]),
    ]
    asyncio.run(produce(service, partition, batch(records)))
    again = but(create, command_id="create-2")
    service.send([again])
    service.wait_outcomes(3)
    [event] = service.read(service.names.events)
    assert (header(event, "traceparent"), header(event, "tracestate")) == (b"00-1", b"shop=1")
    [letter] = service.dead_letters()
    assert (letter.value(), header(letter, "orig_na\\xff\\xfeme")) == (b"no command", b"2")
    assert [rejection.reason for rejection in service.rejections()] == ["order_exists"]
    assert worker.process.poll() is None


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_commands_may_be_compressed(service, codec):
    service.producer = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "partitioner": "murmur2_random",
            "compression.type": codec,
            "linger.ms": 50,
        }
    )
    commands = [but(create, order_id=f"order-{number}", command_id=f"c-{number}") for number in range(50)]
    service.start_worker().wait_ready()
    service.send(commands)
    service.wait_outcomes(50)
    service.check(commands)


def test_a_record_that_unpacks_to_more_than_fits_is_cut_and_stops_nothing(service):
    key, bomb = create.order_id.encode(), b"{" + b" " * (8 << 20)
    partition = partition_of(key, service.partitions)
    asyncio.run(produce(service, partition, batch([(key, bomb, [("huge", bytes(5 << 20))])], codec=GZIP)))
    worker = service.start_worker().wait_ready()
    service.send([create])
    service.wait_outcomes(2)
    [letter] = service.dead_letters()
    assert bomb.startswith(letter.value())
    assert header(letter, "dl_cut") == str(len(bomb)).encode()
    assert header(letter, "dl_headers_dropped") == b"1"
    assert header(letter, "dl_reason") == b"too_large"
    assert len(service.events()) == 1
    assert worker.process.poll() is None

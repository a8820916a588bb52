"""One node and three, on a real Kafka: who stays behind the proxies, and what survives the end of a node."""

import time

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from chaos.cluster import Cluster
from chaos.faults.proxy import Api

PATIENCE_S = 30.0


def create_topic(cluster, topic, partitions):
    admin = AdminClient({"log_level": 0, "bootstrap.servers": cluster.bootstrap_servers})
    admin.create_topics([NewTopic(topic, num_partitions=partitions)])[topic].result(PATIENCE_S)


def producer_of(servers):
    return Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,  # and so acks=all
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,  # the ends of connections are what we are after
        }
    )


def produce(producer, topic, *values, partitions=1):
    ends = []
    for partition in range(partitions):
        for value in values:
            producer.produce(topic, value, partition=partition, on_delivery=lambda *end: ends.append(end))
    assert producer.flush(PATIENCE_S) == 0
    assert [error for error, _ in ends] == [None] * len(values) * partitions


def read(servers, topic, partition=0):
    """Read a partition from its start to its end."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "none",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        return list(values_until_eof(consumer))
    finally:
        consumer.close()


def values_until_eof(consumer):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error():
            assert message.error().code() == -191  # _PARTITION_EOF
            return
        yield message.value()
    raise AssertionError("the partition can be read to its end")


def ports_seen(client):
    return {broker.port for broker in client.list_topics(timeout=PATIENCE_S).brokers.values()}


def test_one_node_its_proxy_and_its_end(tmp_path):
    with Cluster(tmp_path) as cluster:
        [proxy] = cluster.proxies.values()
        create_topic(cluster, "one", 1)
        producer = producer_of(cluster.proxied_servers)
        assert ports_seen(producer) == {proxy.port}
        assert ports_seen(producer_of(cluster.bootstrap_servers)) == {cluster.brokers[1].port}
        produce(producer, "one", b"first")
        proxy.lose_answer(Api.PRODUCE)
        produce(producer, "one", b"sent twice")
        assert proxy.happened == {"lose_answer": 1}
        cluster.kill(1)
        assert not cluster.brokers[1].answers()
        cluster.start(1)
        produce(producer, "one", b"after the end")
        for servers in (cluster.proxied_servers, cluster.bootstrap_servers):
            assert read(servers, "one") == [b"first", b"sent twice", b"after the end"]
        assert cluster.coordinator_of_group("a group") == 1
        cluster.wait_all_in_sync(["one"])
        with pytest.raises(AssertionError, match="in sync"):
            cluster.wait_all_in_sync(["another"], within_s=0.0)


def test_three_nodes_and_the_end_of_one(tmp_path):
    with Cluster(tmp_path, 3) as cluster:
        create_topic(cluster, "three", 3)
        cluster.wait_all_in_sync(["three"])
        producer = producer_of(cluster.proxied_servers)
        assert ports_seen(producer) == {proxy.port for proxy in cluster.proxies.values()}
        produce(producer, "three", b"before", partitions=3)
        killed = cluster.coordinator_of_transaction("an id")
        cluster.kill(killed)
        produce(producer, "three", b"meanwhile", partitions=3)
        assert cluster.coordinator_of_transaction("an id") in cluster.running
        assert cluster.coordinator_of_group("a group") in cluster.running
        assert killed not in cluster.running
        cluster.start(killed)
        cluster.wait_all_in_sync(["three"])
        produce(producer, "three", b"after", partitions=3)
        for partition in range(3):
            assert read(cluster.bootstrap_servers, "three", partition) == [b"before", b"meanwhile", b"after"]

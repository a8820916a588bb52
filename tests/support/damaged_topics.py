"""Topics as accidents and strangers leave them: made again, cut short, or with records that no worker has written."""

from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from order_service.kafka.topics import topic_configs
from tests.support.service import until


def recreate(service, topic, seen=lambda: True):
    """Delete a topic and, once its absence is seen, create it again, empty."""
    for future in service.kafka.delete_topics([topic]).values():
        future.result(30)
    until(lambda: topic not in service.kafka.list_topics(timeout=30).topics and seen(), f"{topic} is gone")
    new = NewTopic(topic, num_partitions=4, replication_factor=1, config=topic_configs(service.names)[topic])

    def is_created():
        return service.kafka.create_topics([new])[topic].exception(30) is None

    until(is_created, f"{topic} is created again")
    until(lambda: topic in service.kafka.list_topics(timeout=30).topics, f"the broker has {topic} from its controller")


def write(service, topic, records):
    """Write records (partition, key, value, headers) as they are."""
    producer = Producer({"log_level": 0, "bootstrap.servers": service.bootstrap_servers})
    for partition, key, value, headers in records:
        producer.produce(topic, key=key, value=value, partition=partition, headers=headers or [])
    assert producer.flush(30) == 0


def cut(service, topic, keep):
    """Rewrite a topic with the first records of each partition only: `keep` maps their count to that which stays."""
    whole = service.read(topic)
    recreate(service, topic)
    kept = []
    for partition in range(service.partitions):
        records = [message for message in whole if message.partition() == partition]
        kept += records[: keep(len(records))]
    write(service, topic, [(each.partition(), each.key(), each.value(), each.headers()) for each in kept])


def delete_all(service):
    """Delete all records of the commands, as retention does in time."""
    places = [TopicPartition(service.names.commands, partition, OFFSET_END) for partition in range(4)]
    for future in service.kafka.delete_records(places).values():
        future.result(30)

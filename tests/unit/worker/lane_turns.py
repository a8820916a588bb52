"""A lane for turns, and the producer that takes what they write."""

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.structs import RecordMetadata

from order_service.domain.decision import UserCheck
from order_service.kafka.topics import topic_names
from order_service.wire import avro
from order_service.wire.changelog import Position
from order_service.wire.commands import encode_json_command
from order_service.worker.lane import Lane, LanePolicy
from tests.support.tables import table_of

NAMES = topic_names()
POLICY = LanePolicy(partition_count=2, commands_topic=NAMES.commands, payment_due_s=1)


class Arrived(RecordMetadata):  # type: ignore[misc] # aiokafka has no types
    """A batch that was sent and has arrived."""

    record_count = 1


class Written:
    """Takes what turns write, as a producer that always succeeds."""

    transactional_id = "orders-worker-1"

    def __init__(self):
        self.records = []
        self.away = {}

    def unavailable(self, only=None):
        return {partition: topic for partition, topic in self.away.items() if only in {None, topic.partition("-")[0]}}

    async def begin(self):
        pass

    async def send_all(self, topic, partition, records):
        self.records += [(topic, partition, record) for record in records]
        place = TopicPartition(topic, partition)
        return [Arrived(topic, partition, place, len(self.records), 0, 0, 0)]

    async def wait_for_acks(self, sent):
        return sent

    async def commit(self, sent):
        return sent

    def facts(self, partition):
        """Return the facts of the events of a partition."""
        values = [record[1] for topic, where, record in self.records if (topic, where) == (NAMES.events, partition)]
        return [type(avro.decode_event(value).fact).__name__ for value in values]

    def rejected(self, partition):
        """Return the ids of the refused commands of a partition."""
        values = [record[1] for topic, where, record in self.records if (topic, where) == (NAMES.rejections, partition)]
        return [avro.decode_rejection(value).command_id for value in values]


def received(command, offset, partition):
    """Return a record of the commands topic, with its command."""
    value = encode_json_command(command)
    key = command.order_id.encode()
    return ConsumerRecord(NAMES.commands, partition, offset, 0, 0, key, value, None, len(key), len(value), ()), command


def lane_with(partition, entries):
    lane = Lane(partition, POLICY, lambda _user_id: UserCheck.ACTIVE, lambda _user_id: None)
    lane.restore(table_of(entries), [], Position(0, "owner", 0, None))
    return lane

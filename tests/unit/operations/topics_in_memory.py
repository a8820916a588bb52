"""The topics of one partition in memory: a lane writes an honest log there, and a test alters one record of it."""

import asyncio
from datetime import timedelta

from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.domain.decision import UserCheck
from order_service.errors import Fenced
from order_service.kafka.topics import topic_names
from order_service.operations.verify.verify import Progress, Wanted, verify
from order_service.wire import changelog
from order_service.wire.changelog import Ends, Position
from order_service.wire.commands import encode_json_command
from order_service.worker.inbox import decode_record
from order_service.worker.lane import Lane, LanePolicy
from tests.support.samples import NOW, amend, but, cancel, create, deliver, pay, ship

NAMES = topic_names()
EVENTS, REJECTIONS, DEAD_LETTERS = NAMES.events, NAMES.rejections, NAMES.dead_letters
TABLE, WAITING, COMMANDS, OPERATIONS = NAMES.table, NAMES.waiting, NAMES.commands, NAMES.operations
POLICY = LanePolicy(partition_count=1, commands_topic=COMMANDS, payment_due_s=3600.0, remember_closed_s=3600.0)
LATER = NOW + timedelta(hours=2)
KNOWN = {"dana": UserCheck.ACTIVE}


class Topics:
    """The records of each topic, and a lane that writes them, a transaction for each call of `send`."""

    def __init__(self):
        self.records: dict[str, list[ConsumerRecord]] = {topic: [] for topic in (*NAMES.written, COMMANDS, OPERATIONS)}
        self.starts = dict.fromkeys(self.records, 0)
        self.ends = dict.fromkeys(self.records, 0)
        self.lane = Lane(0, POLICY, KNOWN.get, lambda _user_id: None)

    def append(self, topic, key, value, headers=(), at=NOW):
        """Write one record, and return it."""
        milliseconds = round(at.timestamp() * 1000)
        record = ConsumerRecord(topic, 0, self.ends[topic], milliseconds, 0, key, value, None, 0, 0, tuple(headers))
        self.records[topic].append(record)
        self.ends[topic] += 1
        return record

    def send(self, *commands, now=NOW):
        """Decide commands in one turn; a pair is the key and the value of any record."""
        pairs = [
            command if isinstance(command, tuple) else (command.order_id.encode(), encode_json_command(command))
            for command in commands
        ]
        self.turn([self.append(COMMANDS, key, value, at=now) for key, value in pairs], now)

    def turn(self, records=(), now=NOW):
        """Decide what waits, what is due, and these commands, as a worker does."""
        known = Ends(self.ends[EVENTS], self.ends[REJECTIONS], self.ends[DEAD_LETTERS], self.ends[WAITING])
        lane = self.lane
        lane.settle(now)
        lane.cancel_unpaid(lane.due_orders(now), now)
        lane.decide([decode_record(record) for record in records], now)
        changes = lane.take_changes()
        for topic, written in (
            (EVENTS, changes.events),
            (REJECTIONS, changes.rejections),
            (DEAD_LETTERS, changes.dead_letters),
        ):
            self._write(topic, written, now)
        self._write(WAITING, [(key, value, ()) for key, value in changes.waiting.items()], now)
        table = [(order_id.encode(), value, ()) for order_id, value in changes.table.items()]
        position = Position(
            changes.next_offset, "owner", self.ends[COMMANDS], changes.last_timestamp_ms, 0, known, len(lane.room)
        )
        self._write(TABLE, [*table, (changelog.POSITION_KEY, changelog.encode(position), ())], now)

    def forget(self, now):
        """Make all orders that are closed for an hour forget their commands, as a sweep and the next turn do."""
        self.lane.shorten([order_id for order_id, _ in self.lane.table.items()], now)
        self.turn(now=now)

    def compact(self, topic):
        """Keep the newest record of each key only."""
        newest = {record.key: record.offset for record in self.records[topic]}
        self.records[topic] = [record for record in self.records[topic] if newest[record.key] == record.offset]

    def _write(self, topic, written, now):
        for key, value, headers in written:
            self.append(topic, key, value, headers, now)
        self.ends[topic] += bool(written)  # the marker of the transaction

    def replace(self, topic, index, **changes):
        """Change the record at this index of a topic, and return the new one."""
        record = self.records[topic][index]
        for name, value in changes.items():
            record = _with(record, name, value)
        self.records[topic][index] = record
        return record

    def drop(self, topic, index):
        """Remove the record at this index of a topic, and return it."""
        return self.records[topic].pop(index)

    def index(self, topic, key, nth=-1):
        """Return the index of the nth record with this key."""
        return [index for index, record in enumerate(self.records[topic]) if record.key == key][nth]

    def entry(self, order_id):
        """Return the index of the newest entry of an order, and the entry."""
        index = self.index(TABLE, order_id.encode())
        return index, changelog.decode_entry(self.records[TABLE][index].value)

    def position(self):
        """Return the index of the newest position, and the position."""
        index = self.index(TABLE, changelog.POSITION_KEY)
        return index, changelog.decode_position(self.records[TABLE][index].value)


def moved(record, by):
    """Return a record at a later offset."""
    return _with(record, "offset", record.offset + by)


def _with(record, name, value):
    fields = {field: getattr(record, field) for field in record.__dataclass_fields__}
    return ConsumerRecord(**(fields | {name: value}))


class MemoryReader:
    """What `verify` reads, in place of a `Reader`. `written_meanwhile` is called when the ends are read again."""

    names = NAMES

    def __init__(self, topics, written_meanwhile=lambda: None):
        self.topics = topics
        self.error = None
        self.partition_counts = dict.fromkeys(topics.records, 1)
        self.learned = []
        self._written_meanwhile = written_meanwhile

    async def partitions(self, *names):
        return [TopicPartition(name, number) for name in names for number in range(self.partition_counts[name])]

    led_partitions = partitions

    async def starts(self, partitions):
        return {partition: self.topics.starts[partition.topic] for partition in partitions}

    async def ends(self, partitions):
        ends = {partition: self.topics.ends[partition.topic] for partition in partitions}
        write, self._written_meanwhile = self._written_meanwhile, lambda: None
        write()
        return ends

    async def between(self, starts, ends):
        for partition, start in starts.items():
            records = self.topics.records[partition.topic]
            if self.error is not None and self.error.topic_partition == partition and start <= self.error.offset:
                raise self.error
            yield [record for record in records if start <= record.offset < ends[partition]]

    async def learn(self, records):
        self.learned += [record.offset for record in records]


class MemoryLock:
    """The producer of a takeover, in place of a `TurnProducer`, which fences the one before it."""

    def __init__(self, topics):
        self.topics = topics
        self._written = set()
        topics.lock = self

    async def begin(self):
        if self.topics.lock is not self:
            raise Fenced("another operator has taken over")

    async def send_all(self, topic, _partition, records):
        sent = [self.topics.append(topic, *record) for record in records][-1]
        self._written.add(topic)
        return [sent]

    async def wait_for_acks(self, sent):
        return sent

    async def commit(self, sent):
        for topic in self._written:
            self.topics.ends[topic] += 1  # the marker of the transaction
        self._written.clear()
        return sent


class Bar:
    """Records the progress that is reported."""

    def __init__(self):
        self.total = self.done = 0

    def start(self, total):
        self.total = total

    def advance(self, count):
        self.done += count


async def no_sleep(_seconds):
    """Return at once."""


def verified(topics, *, now=NOW, reader=None, bar=None, sleep=no_sleep, **wanted):
    """Verify the topics, at this time; return the report."""
    bar = bar or Bar()
    progress = Progress(bar.start, bar.advance)
    reader = reader or MemoryReader(topics)
    return asyncio.run(verify(reader, Wanted(**wanted), progress, now=now.timestamp, sleep=sleep))


def found(report):
    """Return the findings without their texts."""
    return [(finding.kind.value, finding.topic, finding.offset) for finding in report.findings]


def named(command, order_id, **changes):
    """Make a variant of a sample command for an order, sent by a service."""
    changed = {"order_id": order_id, "command_id": f"{command.command_id}-{order_id}", "actor": "service:shop"}
    return but(command, **(changed | changes))


def honest():
    """Write a log with every kind of outcome: two commands wait, and two are repeats."""
    topics = Topics()
    topics.send(*[named(create, f"o-{number}") for number in range(1, 6)], named(create, "o-6", currency="USD"))
    topics.send(named(ship, "o-1"), (b"o-1", b"not a command"), named(amend, "o-1"))
    topics.send(*[named(pay, f"o-{number}") for number in (1, 2, 3)], named(pay, "o-6", currency="USD"))
    topics.send(named(pay, "o-1"), named(ship, "o-1"))  # repeats of an accepted and of a refused command
    topics.send(named(ship, "o-1", command_id="ship-2"), named(cancel, "o-3"), named(cancel, "o-4"))
    topics.turn(now=LATER)  # o-5 is not paid in time
    topics.send(named(deliver, "o-1"), named(create, "o-7", user_id="sam"), named(amend, "o-7"), now=LATER)
    return topics

"""Send one command and learn what became of it: an event, a rejection, a dead letter, or nothing new.

The command's partition is followed from where it ended before the command was sent, so no outcome is missed. Nothing
new comes of a command that its order remembers; that it was decided all the same is read from the position of its
partition, and what was decided the first time from the history.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord, RecordMetadata, TopicPartition
from msgspec import Struct

from order_service.domain.answer import command_digest
from order_service.domain.messages import Command, Event
from order_service.errors import KafkaAwayError
from order_service.kafka import connection
from order_service.reading import Reader, Seen, command_offset, decode, kafka_answers
from order_service.settings import Settings
from order_service.stream.topics import TopicNames
from order_service.wire.avro import encode_command
from order_service.wire.changelog import POSITION_KEY, decode_position, waiting_key
from order_service.wire.commands import encode_json_command

GRACE_S: Final = 0.5
"""Between the position and the outcome of one transaction: its marker reaches each partition at its own time."""


class Accepted(Struct, frozen=True, tag="accepted"):
    """It led to an event; `repeated` if an earlier copy of it did."""

    seen: Seen
    repeated: bool = False


class Refused(Struct, frozen=True, tag="refused"):
    """It was refused; `repeated` if an earlier copy of it was."""

    seen: Seen
    repeated: bool = False


class Unreadable(Struct, frozen=True, tag="dead_letter"):
    """The worker could not read it."""

    reason: str
    detail: str


class Waiting(Struct, frozen=True, tag="waiting"):
    """It waits for the User Service, and will be decided without us."""


class Undecided(Struct, frozen=True, tag="undecided"):
    """It is in Kafka, and nothing is known of it yet."""


class Forgotten(Struct, frozen=True, tag="repeated"):
    """It repeats a command whose answer is not kept any more."""


Outcome = Accepted | Refused | Unreadable | Waiting | Undecided | Forgotten


class Sent(Struct, frozen=True):
    """Where a command lies, and what became of it."""

    partition: int
    offset: int
    outcome: Outcome


async def send(settings: Settings, command: Command, *, as_avro: bool, wait_s: float) -> Sent:
    """Send a command and wait for its outcome, up to `wait_s` seconds (0: not at all)."""
    async with Reader(settings) as reader:
        names = reader.names
        # In a topic that is missing, a producer would wait for it in vain.
        [place] = await reader.places_of(command.order_id, names.commands)
        if wait_s <= 0:
            return Sent(place.partition, await _produce(settings, command, place, as_avro=as_avro), Undecided())
        followed = await reader.places_of(
            command.order_id, names.events, names.rejections, names.dead_letters, names.table, names.waiting
        )
        ends = await reader.ends(followed)
        offset = await _produce(settings, command, place, as_avro=as_avro)
        watch = Watch(names, command, offset)
        outcome = await _follow(reader, watch, ends, wait_s)
        if outcome is None and watch.is_decided:
            outcome = await _first_answer(reader, watch)
        return Sent(place.partition, offset, outcome or (Waiting() if watch.waits else Undecided()))


class Watch:
    """What is known of one sent command, from the records of its partition in the other topics."""

    def __init__(self, names: TopicNames, command: Command, offset: int) -> None:
        self.order_id = command.order_id
        self.waits = False
        self._names = names
        self._key = command.order_id.encode()
        self._known = (command.command_id, command_digest(command))
        self._offset = offset
        self._passed = False

    @property
    def is_decided(self) -> bool:
        """Tell whether a worker is done with it, whether or not its outcome was seen."""
        return self._passed and not self.waits

    def see(self, record: ConsumerRecord) -> Outcome | None:
        """Take one record; give the outcome if it is one."""
        names = self._names
        if record.topic == names.table and record.key == POSITION_KEY:
            self._passed |= decode_position(record.value).next_offset > self._offset
        elif record.topic == names.waiting and record.key == waiting_key(self.order_id, self._offset):
            self.waits = record.value is not None
        elif record.topic == names.dead_letters and command_offset(record) == self._offset:
            headers = dict(record.headers)
            return Unreadable(headers["dl_reason"].decode(), headers["dl_detail"].decode())
        elif record.topic in (names.events, names.rejections) and record.key == self._key:
            outcome = self.answer_in(record)
            # A refusal of an earlier copy need not be ours: an order that did not exist remembers none.
            return None if isinstance(outcome, Refused) and outcome.repeated else outcome
        return None

    def answer_in(self, record: ConsumerRecord) -> Accepted | Refused | None:
        """Find in an event or a rejection the answer to this command or an earlier copy of it."""
        seen = decode(record, self._names)
        if (seen.message.command_id, seen.message.command_digest) != self._known:
            return None
        repeated = seen.command_offset != self._offset
        return Accepted(seen, repeated) if isinstance(seen.message, Event) else Refused(seen, repeated)

    def is_of_the_order(self, record: ConsumerRecord) -> bool:
        """Tell whether a record has the order's key."""
        return bool(record.key == self._key)


async def _follow(reader: Reader, watch: Watch, starts: Mapping[TopicPartition, int], wait_s: float) -> Outcome | None:
    loop = asyncio.get_running_loop()
    deadline, was_decided = loop.time() + wait_s, False
    try:
        async with asyncio.timeout_at(deadline) as limit:
            async for record in reader.follow(starts):
                outcome = watch.see(record)
                if outcome is not None:
                    return outcome
                if watch.is_decided != was_decided:
                    was_decided = watch.is_decided
                    limit.reschedule(min(deadline, loop.time() + GRACE_S) if was_decided else deadline)
    except TimeoutError:
        pass
    return None


async def _first_answer(reader: Reader, watch: Watch) -> Outcome:
    """Search the history for the answer to the first copy of a command; of several refusals the last one counts."""
    names = reader.names
    ends = await reader.ends(await reader.places_of(watch.order_id, names.events, names.rejections))
    found: Accepted | Refused | None = None
    async for record in reader.until(ends):
        if not watch.is_of_the_order(record):
            continue
        answer = watch.answer_in(record)
        if isinstance(answer, Accepted):
            return answer
        found = answer or found
    return found or Forgotten()


async def _produce(settings: Settings, command: Command, place: TopicPartition, *, as_avro: bool) -> int:
    value = encode_command(command) if as_avro else encode_json_command(command)
    async with _producer(settings) as producer:
        arrived: RecordMetadata = await producer.send_and_wait(
            place.topic, value, key=command.order_id.encode(), partition=place.partition
        )
    return int(arrived.offset)


@asynccontextmanager
async def _producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    arguments = connection(settings)
    with kafka_answers(arguments["bootstrap_servers"]):
        producer = AIOKafkaProducer(**arguments, enable_idempotence=True, acks="all", request_timeout_ms=10_000)
        try:
            async with asyncio.timeout(30.0):  # an idempotent producer tries again without end
                await producer.start()
                yield producer
        except TimeoutError as error:
            raise KafkaAwayError(f"Kafka at {arguments['bootstrap_servers']} took no command within 30 s") from error
        finally:
            await producer.stop()

"""Send one command and learn what became of it: an event, a rejection, a dead letter, or nothing new.

The command's partition is followed from where it ended before the command was sent, so no outcome is missed. Nothing
new comes of a command that its order remembers; that it was decided all the same is read from the position of its
partition, and what was decided the first time from the history.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata, TopicPartition
from msgspec import Struct

from order_service.domain.messages import Command
from order_service.errors import KafkaAwayError
from order_service.kafka import connection
from order_service.reading import Reader, kafka_answers
from order_service.sdk.outcomes import (
    GRACE_S,
    Accepted,
    Forgotten,
    Outcome,
    Refused,
    Undecided,
    Waiting,
    Watch,
)
from order_service.settings import Settings
from order_service.wire.avro import encode_command
from order_service.wire.commands import encode_json_command


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

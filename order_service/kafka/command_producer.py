"""Commands go into Kafka: acknowledged by all replicas in sync, or the caller hears that Kafka is away."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from aiokafka.errors import ProducerClosed
from aiokafka.structs import RecordMetadata

from order_service.domain.messages import Command
from order_service.errors import KafkaAwayError, SetupError, TopicsError
from order_service.kafka.connection import Producer, connection, partition_counts
from order_service.kafka.reader import kafka_answers
from order_service.kafka.topics import topic_names
from order_service.runtime.library_logger import library_logger
from order_service.settings import Settings
from order_service.wire.avro import encode_command
from order_service.wire.headers import Headers

log = library_logger("order_service.sdk")

WITHIN_S: Final = 10.0
"""How long a command may take into Kafka. After that nobody knows whether it arrives; the same one again is safe."""
LEFT_ALONE_S: Final = 1.0
"""How long Kafka is left alone after no producer could be started: meanwhile nobody waits in vain."""


class CommandsTopic:
    """An idempotent producer to the commands topic. A partition that takes nothing hinders who writes to it alone.

    Only one that gets nothing through to any partition is replaced. What it has tried once it never gives up, so a few
    commands for such a partition can arrive long after their callers have heard that Kafka is away: the same ones
    again are safe.
    """

    def __init__(
        self, settings: Settings, within_s: float = WITHIN_S, encode: Callable[[Command], bytes] = encode_command
    ) -> None:
        self._topic = topic_names(settings.topic_prefix).commands
        self._connection: dict[str, Any] = connection(settings)
        self._within_s = within_s
        self._encode = encode
        self._is_stopped = False
        self._producer: Producer | None = None
        self._starting = asyncio.Lock()
        self._again_at = 0.0
        self._answered_at = 0.0
        self._ending: set[asyncio.Task[None]] = set()

    async def send(self, command: Command, headers: Headers) -> RecordMetadata:
        """Produce a command and give its place; KafkaAwayError if it may not have arrived, or surely has not.

        Once all was stopped, nothing is sent: SetupError.
        """
        servers = self._connection["bootstrap_servers"]
        if time.monotonic() < self._again_at:
            raise KafkaAwayError(f"Kafka at {servers} has just failed us")
        producer = None
        try:
            with kafka_answers(servers):
                async with asyncio.timeout(self._within_s):
                    producer = await self._started()
                    arrived: RecordMetadata = await producer.send_and_wait(
                        self._topic, self._encode(command), key=command.order_id.encode(), headers=headers
                    )
        except KafkaAwayError:
            if producer is None:
                self._again_at = time.monotonic() + LEFT_ALONE_S
            elif producer is self._producer and time.monotonic() >= self._answered_at + self._within_s:
                self._replace(producer)
            raise
        self._answered_at = time.monotonic()
        return arrived

    async def stop(self) -> None:
        """End all producers, also one that is just being started, and let nobody start another."""
        self._is_stopped = True
        async with self._starting:
            if self._producer is not None:
                self._replace(self._producer)
        await asyncio.gather(*self._ending)

    async def _started(self) -> Producer:
        async with self._starting:
            if self._producer is None and not self._is_stopped:
                producer = Producer(
                    **self._connection, enable_idempotence=True, request_timeout_ms=int(self._within_s * 1000)
                )
                try:
                    await producer.start()
                    await partition_counts(producer, [self._topic])
                except TopicsError as error:
                    self._end(producer)
                    raise KafkaAwayError(str(error)) from error
                except BaseException:
                    self._end(producer)
                    raise
                self._producer, self._answered_at = producer, time.monotonic()
            if self._producer is None or self._is_stopped:
                raise SetupError("nothing can be sent any more: the way to Kafka was closed")
            return self._producer

    def _replace(self, producer: Producer) -> None:
        """Let the next command start another one."""
        self._producer = None
        self._end(producer)

    def _end(self, producer: Producer) -> None:
        """End a producer in the background: it may wait for an answer that never comes."""
        ending = asyncio.create_task(_stopped(producer, self._within_s))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


async def _stopped(producer: Producer, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await producer.stop()
    except TimeoutError:
        log.warning("A producer did not end in time.")
        await _broken_off(producer, within_s)


async def _broken_off(producer: Producer, within_s: float) -> None:
    """End what `stop` leaves running when it is interrupted: the sender, the connections, and who waits for both."""
    sender = producer._sender  # noqa: SLF001, nobody else ends it
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await asyncio.gather(sender.close(), producer.client.close())
    _fail_all(sender._message_accumulator)  # noqa: SLF001
    await producer.client.close()  # the sender may have opened one more


def _fail_all(accumulator: Any) -> None:
    """Tell who waits for batches that they are lost, and leave no error behind of which nobody hears.

    One that is to be sent again is not among the pending ones, of which its end takes it out all the same (aiokafka
    0.14); and hardly ever does somebody wait for one to be drained.
    """
    batches = accumulator._pending_batches  # noqa: SLF001
    batches.update(chain.from_iterable(accumulator._batches.values()))  # noqa: SLF001
    accumulator.fail_all(ProducerClosed())
    for batch in batches:
        batch._drain_waiter.exception()  # noqa: SLF001

"""Produces commands. A send returns when all in-sync replicas have acknowledged it, or raises KafkaAwayError."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from itertools import chain
from typing import Any, Final

from aiokafka.errors import ProducerClosed
from aiokafka.structs import RecordMetadata

from order_service.domain.messages import Command
from order_service.errors import KafkaAwayError, SetupError, TopicsError
from order_service.kafka.connection import Producer, connection, partition_counts
from order_service.kafka.reader import kafka_answers
from order_service.kafka.topics import COMMAND_RECORD_BYTES, topic_names
from order_service.runtime.library_logger import library_logger
from order_service.settings import Settings
from order_service.wire.avro import encode_command
from order_service.wire.headers import Headers

log = library_logger("order_service.sdk")

WITHIN_S: Final = 10.0
"""How long a send may take. After that it is unknown whether the command arrives; sending it again is safe."""
RETRY_AFTER_S: Final = 1.0
"""How long sends fail at once after a producer could not be started, so that callers do not wait for the next try."""


class CommandsTopic:
    """An idempotent producer to the commands topic. A partition that accepts no records delays only its own writers.

    A producer is replaced only if it gets nothing through to any partition. It never gives up a send that it has
    begun. So a few commands for such a partition can arrive long after their callers got KafkaAwayError. Sending them
    again is safe.
    """

    def __init__(
        self, settings: Settings, within_s: float = WITHIN_S, encode: Callable[[Command], bytes] = encode_command
    ) -> None:
        self.name = topic_names(settings.topic_prefix).commands
        self._connection: dict[str, Any] = connection(settings)
        self._within_s = within_s
        self._encode = encode
        self._is_stopped = False
        self._producer: Producer | None = None
        self._starting = asyncio.Lock()
        self._retry_at = 0.0
        self._answered_at = 0.0
        self._stopping: set[asyncio.Task[None]] = set()

    async def send(self, command: Command, headers: Headers) -> RecordMetadata:
        """Produce a command and return its partition and offset.

        Raises KafkaAwayError unless the command is known to have arrived. Raises SetupError after `stop`.
        """
        servers = self._connection["bootstrap_servers"]
        if time.monotonic() < self._retry_at:
            raise KafkaAwayError(f"Kafka at {servers} failed less than {RETRY_AFTER_S:g} s ago: send the command again")
        producer = None
        try:
            with kafka_answers(servers):
                async with asyncio.timeout(self._within_s):
                    producer = await self._started()
                    arrived: RecordMetadata = await producer.send_and_wait(
                        self.name, self._encode(command), key=command.order_id.encode(), headers=headers
                    )
        except KafkaAwayError:
            if producer is None:
                self._retry_at = time.monotonic() + RETRY_AFTER_S
            elif producer is self._producer and time.monotonic() >= self._answered_at + self._within_s:
                self._replace(producer)
            raise
        self._answered_at = time.monotonic()
        return arrived

    async def stop(self) -> None:
        """Stop all producers, including one that is starting, and start no more."""
        self._is_stopped = True
        async with self._starting:
            if self._producer is not None:
                self._replace(self._producer)
        await asyncio.gather(*self._stopping)

    async def _started(self) -> Producer:
        async with self._starting:
            if self._producer is None and not self._is_stopped:
                producer = Producer(
                    **self._connection,
                    enable_idempotence=True,
                    request_timeout_ms=int(self._within_s * 1000),
                    max_request_size=COMMAND_RECORD_BYTES,
                )
                try:
                    # Its tasks serve every caller, so they must not log in the name of the first one.
                    await asyncio.create_task(producer.start(), context=Context())
                    await partition_counts(producer, [self.name])
                except TopicsError as error:
                    self._stop_later(producer)
                    raise KafkaAwayError(str(error)) from error
                except BaseException:
                    self._stop_later(producer)
                    raise
                self._producer, self._answered_at = producer, time.monotonic()
            if self._producer is None or self._is_stopped:
                raise SetupError("no command can be sent: the producer is closed")
            return self._producer

    def _replace(self, producer: Producer) -> None:
        """Stop a producer. The next command starts another one."""
        self._producer = None
        self._stop_later(producer)

    def _stop_later(self, producer: Producer) -> None:
        """Stop a producer in the background: it may wait for a response that never comes."""
        stopping = asyncio.create_task(_stop(producer, self._within_s))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)


async def _stop(producer: Producer, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await producer.stop()
    except TimeoutError:
        log.warning("A producer did not stop in time.")
        await _abort(producer, within_s)


async def _abort(producer: Producer, within_s: float) -> None:
    """Close what an interrupted `stop` leaves running: the sender, the connections, and the futures of both."""
    sender = producer._sender  # noqa: SLF001, no public method closes it
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await asyncio.gather(sender.close(), producer.client.close())
    _fail_all(sender._message_accumulator)  # noqa: SLF001
    await producer.client.close()  # the sender may have opened one more


def _fail_all(accumulator: Any) -> None:
    """Fail the futures of all batches, and mark their errors as retrieved, so that asyncio does not log them.

    A batch that is to be sent again is not among the pending ones, but its end removes it from them all the same
    (aiokafka 0.14). A task hardly ever waits for a batch to be drained.
    """
    batches = accumulator._pending_batches  # noqa: SLF001
    batches.update(chain.from_iterable(accumulator._batches.values()))  # noqa: SLF001
    accumulator.fail_all(ProducerClosed())
    for batch in batches:
        batch._drain_waiter.exception()  # noqa: SLF001

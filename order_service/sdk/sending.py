"""Sending of one command, and waiting for its outcome."""

from collections.abc import Callable
from functools import partial
from typing import Self

from msgspec import Struct

from order_service.domain.messages import Command
from order_service.errors import SetupError
from order_service.kafka.command_producer import WITHIN_S, CommandsTopic
from order_service.sdk.log_index import LogIndex
from order_service.sdk.outcome_reader import OutcomeReader
from order_service.sdk.outcomes import Outcome, Undecided
from order_service.settings import Settings
from order_service.wire.avro import encode_command
from order_service.wire.headers import Headers


class Sent(Struct, frozen=True):
    """The position of a sent command, and its outcome."""

    partition: int
    offset: int
    outcome: Outcome


class Sender:
    """A producer of commands with a reader that misses none of their outcomes. Open it with `async with`."""

    def __init__(
        self,
        settings: Settings,
        within_s: float = WITHIN_S,
        encode: Callable[[Command], bytes] = encode_command,
        index: LogIndex | None = None,
    ) -> None:
        self._new_topic = partial(CommandsTopic, settings, within_s, encode)
        self._topic: CommandsTopic | None = None
        self._outcomes = OutcomeReader(settings, within_s, index)

    async def __aenter__(self) -> Self:
        await self._outcomes.open()  # raises for a missing topic, on which a producer would wait
        self._topic = self._new_topic()
        return self

    async def __aexit__(self, *_: object) -> None:
        topic, self._topic = self._topic, None
        try:
            await self._outcomes.close()
        finally:
            if topic is not None:
                await topic.stop()

    async def send(self, command: Command, wait_s: float, headers: Headers | None = None) -> Sent:
        """Send a command and wait up to `wait_s` seconds for its outcome (0: do not wait)."""
        headers = headers or []
        topic = self._topic
        if topic is None:
            raise SetupError("open it first: `async with OrderCommands(…) as orders:`")
        if wait_s <= 0:
            metadata = await topic.send(command, headers)
            return Sent(metadata.partition, metadata.offset, Undecided())
        async with self._outcomes.awaiting(command) as awaited:
            metadata = await topic.send(command, headers)
            self._outcomes.set_offset(awaited, metadata.offset)
            return Sent(metadata.partition, metadata.offset, await awaited.wait(wait_s))

"""Send one command, and wait for what becomes of it."""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from msgspec import Struct

from order_service.domain.messages import Command
from order_service.errors import SetupError
from order_service.kafka.command_producer import WITHIN_S, CommandsTopic
from order_service.sdk.outcome_reader import Following
from order_service.sdk.outcomes import Outcome, Undecided
from order_service.settings import Settings
from order_service.wire.avro import encode_command


class Sent(Struct, frozen=True):
    """Where a command lies, and what became of it."""

    partition: int
    offset: int
    outcome: Outcome


class Sender:
    """A producer of commands and a reader of their outcomes, between which nothing is missed; `async with` it."""

    def __init__(
        self, settings: Settings, within_s: float = WITHIN_S, encode: Callable[[Command], bytes] = encode_command
    ) -> None:
        self._new_topic = partial(CommandsTopic, settings, within_s, encode)
        self._topic: CommandsTopic | None = None
        self._following = Following(settings, within_s)

    async def __aenter__(self) -> Self:
        await self._following.open()  # in a topic that is missing, a producer would wait in vain
        self._topic = self._new_topic()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        topic, self._topic = self._topic, None
        try:
            await self._following.close()
        finally:
            if topic is not None:
                await topic.stop()

    async def send(self, command: Command, wait_s: float) -> Sent:
        """Send a command and wait for its outcome, up to `wait_s` seconds (0: not at all)."""
        topic = self._topic
        if topic is None:
            raise SetupError("open it first: `async with OrderCommands(…) as orders:`")
        if wait_s <= 0:
            arrived = await topic.send(command, [])
            return Sent(arrived.partition, arrived.offset, Undecided())
        async with self._following.awaiting(command) as awaited:
            arrived = await topic.send(command, [])
            self._following.arrived(awaited, arrived.offset)
            return Sent(arrived.partition, arrived.offset, await awaited.within(wait_s))

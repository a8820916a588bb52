"""Monitors the consumer group while a worker runs, and reports members that are not workers of this service."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NoReturn

import structlog
from aiokafka.errors import KafkaError

from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.worker import metrics
from order_service.worker.membership import Member, describe_strangers, strangers_of

log = structlog.get_logger()

LOOK_EVERY_S: Final = 5.0
ANSWER_WITHIN_S: Final = 10.0


class GroupWatch:
    """A monitor for group members that are not workers of this service.

    `faults` lists them for readiness, with the partitions that they hold and for how long they have been seen.

    Kafka admits only members that use our assignor. In the partitions that such a member holds, nothing is decided.
    """

    def __init__(
        self,
        group_id: str,
        read: Callable[[], Awaitable[list[Member]]],
        *,
        every_s: float = LOOK_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.faults: list[ReadinessFault] = []
        self._group_id = group_id
        self._read = read
        self._every_s = every_s
        self._clock = clock
        self._seen_at: dict[str, float] = {}
        self._strangers: list[Member] = []

    async def run(self) -> NoReturn:
        """Read the members until cancelled; while the coordinator does not answer, the last result stays."""
        is_known = True
        while True:
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    self.take(await self._read())
                is_known = True
            except (KafkaError, TimeoutError) as error:
                if is_known:
                    log.warning("The members of the group cannot be read; the last result stays.", why=repr(error))
                is_known = False
            await asyncio.sleep(self._every_s)

    def take(self, members: Iterable[Member]) -> None:
        """Record the members of the group, and report strangers that joined or left, or hold other partitions."""
        now = self._clock()
        strangers = sorted(strangers_of(members), key=lambda stranger: stranger.member_id)
        self._seen_at = {stranger.member_id: self._seen_at.get(stranger.member_id, now) for stranger in strangers}
        seen_s = {member_id: now - seen_at for member_id, seen_at in self._seen_at.items()}
        who = describe_strangers(self._group_id, strangers, seen_s)
        self.faults = [NotReady.STRANGERS.fault(who=who)] if strangers else []
        if strangers and strangers != self._strangers:
            log.error("Another program is in the group.", reason=who)
        if self._strangers and not strangers:
            log.info("No other program is in the group any more.")
        self._strangers = strangers
        metrics.STRANGERS.set(len(strangers))
        metrics.STRANGER_SECONDS.clear()
        for stranger in strangers:
            for topic, partition in stranger.partitions():
                metrics.STRANGER_SECONDS.labels(topic, partition).set(seen_s[stranger.member_id])

"""Payment deadlines: orders that are not paid in time are cancelled."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import structlog
from aiokafka.errors import KafkaError

from order_service.worker.clock import Clock
from order_service.worker.lane import DUE, Lane

log = structlog.get_logger()

CHECK_EVERY_S: Final = 0.5


class PaymentDeadlines:
    """Cancels the unpaid orders of running lanes, each once the log can contain no earlier payment.

    `end` asks the broker for the end of a partition, and `read_to` returns up to where a lane has read. `cancel` makes
    the next turn cancel orders of a partition. `spawn` runs a coroutine as a task.
    """

    def __init__(
        self,
        lanes: Mapping[int, Lane],
        payment_due_s: float | None,
        clock: Clock,
        *,
        end: Callable[[int], Awaitable[int]],
        read_to: Callable[[Lane], Awaitable[int]],
        cancel: Callable[[int, list[str]], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._lanes = lanes
        self._payment_due_s = payment_due_s
        self._clock = clock
        self._end = end
        self._read_to = read_to
        self._cancel = cancel
        self._spawn = spawn
        self._cancelling: dict[int, int] = {}
        """How many orders of each partition are being cancelled."""

    async def run(self) -> None:
        """Look for orders whose payment is due, until cancelled."""
        if self._payment_due_s is None:
            return
        while True:
            now = self._clock.now()
            for lane in list(self._lanes.values()):
                if lane.partition in self._cancelling:
                    continue
                due = lane.due_orders(now, DUE.left(sum(self._cancelling.values()), len(self._lanes)))
                if due:
                    self._cancelling[lane.partition] = len(due)
                    self._spawn(self._cancel_once_read(lane, due))
            await asyncio.sleep(CHECK_EVERY_S)

    async def _cancel_once_read(self, lane: Lane, order_ids: list[str]) -> None:
        """Wait until the lane has read the commands up to an end taken after the orders were due; then cancel them."""
        try:
            end = await self._end(lane.partition)
            while not await self._has_read(lane, end):  # noqa: ASYNC110, the broker offers no event for it
                await asyncio.sleep(0.05)
        except KafkaError as error:
            log.warning("Cannot read the end offset; payment timeouts are delayed.", error=repr(error))
            lane.restore_due_timers()
        else:
            if self._lanes.get(lane.partition) is lane:
                self._cancel(lane.partition, order_ids)
        finally:
            self._cancelling.pop(lane.partition, None)

    async def _has_read(self, lane: Lane, end: int) -> bool:
        """Return whether all commands before `end` are decided. The fetch skips control records.

        Also True for a lane that was parked in the meantime: its next claim sets its timers again.
        """
        if lane.next_offset >= end or self._lanes.get(lane.partition) is not lane:
            return True
        return await self._read_to(lane) >= end

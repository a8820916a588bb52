"""Runs with unknown schema ids wait for the schema registry, in order per partition."""

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from order_service.kafka.registry_client import Ids
from order_service.worker.inbox import Inbox, Run


class SchemaLookups:
    """Passes runs to `deliver`, at once or after a lookup of their schema ids. Other partitions do not wait for it.

    A waiting partition is not fetched, so only the runs that were already in flight are kept here. `start` runs a
    lookup as a background task.
    """

    def __init__(
        self,
        ids: Ids,
        inbox: Inbox,
        deliver: Callable[[int, Run], None],
        start: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._ids = ids
        self._inbox = inbox
        self._deliver = deliver
        self._start = start
        self._held: dict[int, deque[Run]] = {}

    @property
    def waiting(self) -> list[int]:
        """The partitions that are waiting for the schema registry."""
        return sorted(self._held)

    def receive(self, partition: int, run: Run) -> None:
        """Deliver a run, or queue it behind the waiting runs of its partition."""
        held = self._held.get(partition)
        if held is not None:
            held.append(run)
            self._inbox.hold(partition)
        elif self._ids.are_known(record.value for record in run.records):
            self._deliver(partition, run)
        else:
            self._held[partition] = deque([run])
            self._inbox.hold(partition)
            self._start(self._look_up(partition))

    async def _look_up(self, partition: int) -> None:
        held = self._held[partition]
        while held:
            await self._ids.learn_patiently(record.value for record in held[0].records)
            self._deliver(partition, held.popleft())
        del self._held[partition]
        self._inbox.release(partition)

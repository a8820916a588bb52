"""Fetch requests that are sent shortly before the next turn, instead of one for each record that arrives."""

import asyncio
import time
from typing import Any, Final

from aiokafka.consumer.fetcher import Fetcher

LEAD_S: Final = 0.003
"""How long before a turn the fetch for it is sent: the time of a request and of the hop between two threads."""
PAUSE_S: Final = 0.002
"""The pause after records were returned. The turn that takes them then says when the next fetch is due."""


class PacedFetcher(Fetcher):  # type: ignore[misc] # aiokafka has no types
    """aiokafka's fetcher, with a time before which it sends no request.

    A broker answers a fetch as soon as it has one record. So at a few hundred records per second it answers as often,
    and most of the processor time goes into requests. Records that arrive while a turn is written are in no hurry.
    """

    _not_before = 0.0

    def wait_until(self, at: float) -> None:
        """Send no request before this time of the monotonic clock. The newest call counts."""
        self._not_before = at

    def pause(self) -> None:
        """Send no request for `PAUSE_S`: records were just returned."""
        self._not_before = max(self._not_before, time.monotonic() + PAUSE_S)

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        try:
            while (pause_s := self._not_before - time.monotonic()) > 0:  # noqa: ASYNC110, the time may move
                await asyncio.sleep(pause_s)
        except asyncio.CancelledError:  # as aiokafka does: the partitions were revoked, or the consumer closes
            return False
        return bool(await super()._proc_fetch_request(assignment, node_id, request))

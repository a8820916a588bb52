"""User lookups of a worker. Each is repeated until it succeeds or no order waits for it."""

import asyncio
import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from order_service.domain.decision import UserCheck
from order_service.errors import UserServiceUnavailable
from order_service.users.breaker import IN_A_ROW
from order_service.users.client import UserClient
from order_service.wire.trace_context import TraceContext

if TYPE_CHECKING:
    from order_service.worker.command_spans import CommandSpans

FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 60.0
REASONS_SHOWN: Final = 3
TRACES_MAX: Final = 16
"""How many traces a lookup is recorded in; many orders can need the same user."""


class Unanswered(Struct, frozen=True):
    """How many lookups of a user in a row had no answer, why the last one had none, and the pause after it."""

    count: int
    why: str
    pause_s: float


class UserLookups:
    """Looks users up as soon as their creates are read. For orders that wait, retries after 5 s, doubling to 60 s.

    `is_awaited` returns whether an order waits for a user; `on_answer` gets each answer. If tracing is on, `spans`
    records the lookups, and `trace_of` returns the trace of an order that waits for a user.
    """

    def __init__(
        self,
        users: UserClient,
        is_awaited: Callable[[str], bool],
        on_answer: Callable[[str, UserCheck], None],
        *,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
        spans: "CommandSpans | None" = None,
        trace_of: Callable[[str], TraceContext | None] = lambda _: None,
    ) -> None:
        self._users = users
        self._is_awaited = is_awaited
        self._on_answer = on_answer
        self._concurrency = concurrency
        self._clock = clock
        self._new: deque[str] = deque()
        self._again: list[tuple[float, str]] = []
        self._unanswered: dict[str, Unanswered] = {}
        self._open: set[str] = set()
        self._spans = spans
        self._trace_of = trace_of
        self._traces: dict[str, list[TraceContext]] = {}
        """The recorded traces to which an open lookup belongs."""
        self._lookups = asyncio.TaskGroup()
        self._lookup_count = 0
        self._wake = asyncio.Event()
        users.on_breaker_closed.append(self._retry_now)

    def ask(self, user_id: str, trace: TraceContext | None = None) -> None:
        """Look a user up, unless that lookup is already open or its result is cached. `trace` is the command's."""
        if user_id not in self._open and self._users.known(user_id) is None:
            self._open.add(user_id)
            self._new.append(user_id)
            self._wake.set()
        if trace is not None and self._spans is not None and user_id in self._open and trace.is_sampled:
            traces = self._traces.setdefault(user_id, [])
            if len(traces) < TRACES_MAX:
                traces.append(trace)

    def reason(self, user_ids: Iterable[str]) -> str:
        """Return why these users have no answer after three lookups in a row, or an empty text. Any thread may call it.

        What concerns the whole service comes first.
        """
        if (why := self._users.problem or self._users.no_answer) is not None:
            return why
        unanswered = [found for user_id in user_ids if (found := self._unanswered.get(user_id)) is not None]
        reasons = Counter(found.why for found in unanswered if found.count >= IN_A_ROW)
        if not reasons:
            return ""
        users = f"{reasons.total()} user{'s' if reasons.total() > 1 else ''}"
        listed = ", ".join(f"{why} ({count})" for why, count in reasons.most_common(REASONS_SHOWN))
        return f"no usable answer about {users}: {listed}"

    async def run(self) -> None:
        """Start lookups as capacity allows, until cancelled. Any other error that ends it is a bug."""
        async with self._lookups:
            while True:
                self._wake.clear()
                self._start_lookups()
                await self._wait_for_work()

    def _start_lookups(self) -> None:
        while self._new and self._lookup_count < self._concurrency:
            self._start(self._new.popleft(), again=False)
        capacity = self._users.retry_capacity
        while self._again and capacity > 0 and self._again[0][0] <= self._clock():
            _, user_id = heapq.heappop(self._again)
            if self._is_awaited(user_id):
                self._start(user_id, again=True)
                capacity -= 1
            else:
                self._forget(user_id)

    async def _wait_for_work(self) -> None:
        """Wait for a request, the end of a lookup, or the next retry (checked at most once a second)."""
        pause = max(self._again[0][0] - self._clock(), 1.0) if self._again else None
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return

    def _start(self, user_id: str, *, again: bool) -> None:
        lookup = self._lookups.create_task(self._look_up(user_id, again=again), name="user lookup")
        self._lookup_count += 1
        lookup.add_done_callback(self._ended)

    def _ended(self, _lookup: "asyncio.Task[None]") -> None:
        self._lookup_count -= 1
        self._wake.set()

    async def _look_up(self, user_id: str, *, again: bool) -> None:
        try:
            check = await self._check(user_id, again=again)
        except UserServiceUnavailable as no_answer:
            self._retry_later(user_id, str(no_answer))
        else:
            self._forget(user_id)
            self._on_answer(user_id, check)

    async def _check(self, user_id: str, *, again: bool) -> UserCheck:
        if self._spans is None:
            return await self._users.check(user_id, again=again)
        with self._spans.lookup(lambda: self._traces_of(user_id)) as call:
            check = await self._users.check(user_id, again=again)
            call.answer = check.value
            return check

    def _traces_of(self, user_id: str) -> list[TraceContext]:
        """Return the recorded traces that need a user. One that began here is that of an order that waits already."""
        if traces := self._traces.get(user_id):
            return traces
        trace = self._trace_of(user_id)
        return [trace] if trace is not None and trace.is_sampled else []

    def _retry_later(self, user_id: str, why: str) -> None:
        if not self._is_awaited(user_id):
            self._forget(user_id)
            return
        before = self._unanswered.get(user_id)
        pause_s = FIRST_PAUSE_S if before is None else min(2 * before.pause_s, LONGEST_PAUSE_S)
        self._unanswered[user_id] = Unanswered(1 if before is None else before.count + 1, why, pause_s)
        heapq.heappush(self._again, (self._clock() + pause_s, user_id))

    def _forget(self, user_id: str) -> None:
        self._open.discard(user_id)
        self._traces.pop(user_id, None)
        self._unanswered.pop(user_id, None)

    def _retry_now(self) -> None:
        """Retry all lookups at once: the circuit breaker has closed."""
        now = self._clock()
        self._again = [(now, user_id) for _, user_id in self._again]
        self._wake.set()

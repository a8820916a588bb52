"""The waiting room of one partition: commands kept until the User Service has answered, in log order per order.

The first command of each order is a create that needs a user check. All other commands of the order wait behind it.
"""

import heapq
from collections import deque
from datetime import datetime, timedelta
from typing import Final

from order_service.domain.decision import UserCheck
from order_service.domain.identity import command_digest
from order_service.domain.messages import Command, CreateOrder
from order_service.wire import changelog
from order_service.wire.changelog import WaitingCommand
from order_service.wire.trace_context import TraceContext

MAX_PER_ORDER: Final = 32
MAX_RELEASED: Final = 20
"""Orders released at a time, each with up to 32 commands. A turn releases more while its outcomes are small."""
OLD_DEADLINES: Final = 1_000
"""Deadlines of decided commands that may be kept, in addition to one for each order that waits."""


class WaitingRoom:
    """The waiting commands by order, the user of each order and the deadlines. The lane decides what is released."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline = timedelta(seconds=deadline_s)
        self._queues: dict[str, deque[WaitingCommand]] = {}
        self._orders_of: dict[str, dict[str, None]] = {}
        self._deadlines: list[tuple[datetime, str, int]] = []
        self._answers: dict[str, UserCheck] = {}
        self._count = 0
        self.size_bytes = 0
        """The size of all waiting commands as they are stored."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, order_id: str) -> bool:
        return order_id in self._queues

    def is_full(self, order_id: str) -> bool:
        """Return whether no further command of this order may wait."""
        return len(self._queues.get(order_id, ())) >= MAX_PER_ORDER

    def holds(self, command: Command) -> bool:
        """Return whether this command already waits: one with the same id and digest."""
        return any(
            waiting.command.command_id == command.command_id
            and command_digest(waiting.command) == command_digest(command)
            for waiting in self._queues.get(command.order_id, ())
        )

    def add(self, waiting: WaitingCommand) -> None:
        """Queue a command behind the other commands of its order."""
        queue = self._queues.setdefault(waiting.command.order_id, deque())
        queue.append(waiting)
        self._count += 1
        self.size_bytes += _size_bytes(waiting)
        if len(queue) == 1:
            self._register_head(waiting)

    def users(self) -> tuple[str, ...]:
        """Return the ids of the users that orders wait for. Any thread may call it."""
        return tuple(self._orders_of)

    def trace_of(self, user_id: str) -> TraceContext | None:
        """Return the trace of the first order that waits for this user, or None."""
        head = self.head(next(iter(self._orders_of.get(user_id, ())), ""))
        return None if head is None else head.trace

    def waits_for(self, user_id: str) -> bool:
        """Return whether an order waits for this user."""
        return user_id in self._orders_of

    def add_answer(self, user_id: str, check: UserCheck) -> None:
        """Keep an answer for the next turn, if an order waits for it."""
        if user_id in self._orders_of:
            self._answers[user_id] = check

    def head(self, order_id: str) -> WaitingCommand | None:
        """Return the first waiting command of an order, or None."""
        queue = self._queues.get(order_id)
        return queue[0] if queue else None

    def pop_head(self, order_id: str) -> None:
        """Remove the first command of an order, which is decided."""
        queue = self._queues[order_id]
        self.size_bytes -= _size_bytes(queue.popleft())
        self._count -= 1
        if not queue:
            del self._queues[order_id]
        if len(self._deadlines) > 2 * len(self._queues) + OLD_DEADLINES:
            self._drop_old_deadlines()

    def wait_again(self, order_id: str) -> None:
        """Make an order wait for the user of its first command, which is another create now."""
        self._register_head(self._queues[order_id][0])

    def take_released(self, now: datetime, limit: int = MAX_RELEASED) -> list[tuple[str, UserCheck]]:
        """Take up to `limit` orders whose head can be decided: its user check is done, or its deadline has passed.

        The rest stays for the next call: after an outage all orders can become ready at once, even all of one user.
        """
        released: list[tuple[str, UserCheck]] = []
        while self._answers and len(released) < limit:
            user_id, check = next(iter(self._answers.items()))
            orders = self._orders_of.get(user_id, {})
            while orders and len(released) < limit:
                order_id = next(iter(orders))
                del orders[order_id]
                released.append((order_id, check))
            if not orders:
                self._orders_of.pop(user_id, None)
                del self._answers[user_id]
        while self._deadlines and self._deadlines[0][0] < now and len(released) < limit:
            _, order_id, offset = heapq.heappop(self._deadlines)
            head = self.head(order_id)
            if head is not None and head.offset == offset and self._unregister_head(head):
                released.append((order_id, UserCheck.TIMED_OUT))
        return released

    def is_ready(self, now: datetime) -> bool:
        """Return whether `take_released` may return an order."""
        return bool(self._answers) or bool(self._deadlines and self._deadlines[0][0] < now)

    def has_answers(self) -> bool:
        """Return whether an answer is waiting for the next release."""
        return bool(self._answers)

    def next_deadline(self) -> datetime | None:
        """Return the earliest deadline that is kept, possibly of a decided command, or None."""
        return self._deadlines[0][0] if self._deadlines else None

    def oldest(self) -> datetime | None:
        """Return when the oldest waiting command arrived, or None if no command waits."""
        return min((queue[0].queued_at for queue in self._queues.values()), default=None)

    def _register_head(self, head: WaitingCommand) -> None:
        """Register the first command of an order under its user and its deadline."""
        create = head.command
        if not isinstance(create, CreateOrder):
            raise TypeError(f"only a create waits for a user, not a {type(create).__name__}")
        self._orders_of.setdefault(create.user_id, {})[create.order_id] = None
        deadline = head.queued_at + self._deadline
        if create.decide_by is not None:
            deadline = min(deadline, create.decide_by)
        heapq.heappush(self._deadlines, (deadline, create.order_id, head.offset))

    def _drop_old_deadlines(self) -> None:
        """Drop the deadlines of decided commands. Otherwise each would stay until it passes, up to an hour."""
        self._deadlines = [
            (deadline, order_id, offset)
            for deadline, order_id, offset in self._deadlines
            if (head := self.head(order_id)) is not None and head.offset == offset
        ]
        heapq.heapify(self._deadlines)

    def _unregister_head(self, head: WaitingCommand) -> bool:
        """Remove an order from the list of its user. Return whether it was there."""
        user_id = head.command.user_id if isinstance(head.command, CreateOrder) else ""
        orders = self._orders_of.get(user_id, {})
        if head.command.order_id not in orders:
            return False
        del orders[head.command.order_id]
        if not orders:
            del self._orders_of[user_id]
        return True


def _size_bytes(waiting: WaitingCommand) -> int:
    return len(changelog.encode(waiting))

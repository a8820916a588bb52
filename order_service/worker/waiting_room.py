"""The waiting room of one partition: commands kept until the User Service has answered, in order per order.

The first command of each order is a create that needs an answer about its user; all others wait behind it.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from order_service.domain.decision import UserCheck, command_digest
from order_service.domain.messages import Command, CreateOrder
from order_service.wire.changelog import WaitingCommand

MAX_PER_ORDER: Final = 32
MOST_RELEASED: Final = 20
"""Orders released at a time, each with up to 32 commands; a turn goes on with more as long as it is small."""
OLD_DEADLINES: Final = 1_000
"""Deadlines of commands that are decided, which may be kept beside as many as still wait."""


class WaitingRoom:
    """Who waits for whom, and since when. It decides nothing: the lane releases an order and asks for its head."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline = timedelta(seconds=deadline_s)
        self._queues: dict[str, deque[WaitingCommand]] = {}
        self._orders_of: dict[str, dict[str, None]] = {}
        self._deadlines: list[tuple[datetime, str, int]] = []
        self._answers: dict[str, UserCheck] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, order_id: str) -> bool:
        return order_id in self._queues

    def is_full(self, order_id: str) -> bool:
        """Tell whether no further command of this order may wait."""
        return len(self._queues.get(order_id, ())) >= MAX_PER_ORDER

    def holds(self, command: Command) -> bool:
        """Return whether this very command waits already, by its id and digest."""
        return any(
            waiting.command.command_id == command.command_id
            and command_digest(waiting.command) == command_digest(command)
            for waiting in self._queues.get(command.order_id, ())
        )

    def add(self, waiting: WaitingCommand) -> None:
        """Take a command in, behind those of its order."""
        queue = self._queues.setdefault(waiting.command.order_id, deque())
        queue.append(waiting)
        self._count += 1
        if len(queue) == 1:
            self._expect(waiting)

    def users(self) -> Iterator[str]:
        """Name the users that somebody waits for."""
        yield from self._orders_of

    def waits_for(self, user_id: str) -> bool:
        """Tell whether an order waits for this user."""
        return user_id in self._orders_of

    def answered(self, user_id: str, check: UserCheck) -> None:
        """Keep an answer for the next turn, if somebody waits for it."""
        if user_id in self._orders_of:
            self._answers[user_id] = check

    def head(self, order_id: str) -> WaitingCommand | None:
        """Show the first waiting command of an order."""
        queue = self._queues.get(order_id)
        return queue[0] if queue else None

    def leave(self, order_id: str) -> None:
        """Let the first command of an order go: it is decided."""
        queue = self._queues[order_id]
        queue.popleft()
        self._count -= 1
        if not queue:
            del self._queues[order_id]
        if len(self._deadlines) > 2 * len(self._queues) + OLD_DEADLINES:
            self._drop_old_deadlines()

    def wait_again(self, order_id: str) -> None:
        """Let an order wait for the user of the create that is its first command now."""
        self._expect(self._queues[order_id][0])

    def take_released(self, now: datetime, most: int = MOST_RELEASED) -> list[tuple[str, UserCheck]]:
        """Take orders whose head can be decided: its user was answered for, or its deadline has passed.

        Of more than `most` the others stay for the next time: after an outage all can be released at once, and all can
        be of one user.
        """
        released: list[tuple[str, UserCheck]] = []
        while self._answers and len(released) < most:
            user_id, check = next(iter(self._answers.items()))
            orders = self._orders_of.get(user_id, {})
            while orders and len(released) < most:
                order_id = next(iter(orders))
                del orders[order_id]
                released.append((order_id, check))
            if not orders:
                self._orders_of.pop(user_id, None)
                del self._answers[user_id]
        while self._deadlines and self._deadlines[0][0] < now and len(released) < most:
            _, order_id, offset = heapq.heappop(self._deadlines)
            head = self.head(order_id)
            if head is not None and head.offset == offset and self._forget(head):
                released.append((order_id, UserCheck.TIMED_OUT))
        return released

    def has_answers(self) -> bool:
        """Tell whether an answer has come since the last release."""
        return bool(self._answers)

    def next_deadline(self) -> datetime | None:
        """Tell when the next deadline passes."""
        return self._deadlines[0][0] if self._deadlines else None

    def oldest(self) -> datetime | None:
        """Tell since when the oldest command waits."""
        return min((queue[0].queued_at for queue in self._queues.values()), default=None)

    def _expect(self, head: WaitingCommand) -> None:
        """Register the head of an order: for its user, and for its deadline."""
        create = head.command
        if not isinstance(create, CreateOrder):
            raise TypeError(f"only a create waits for a user, not a {type(create).__name__}")
        self._orders_of.setdefault(create.user_id, {})[create.order_id] = None
        deadline = head.queued_at + self._deadline
        if create.decide_by is not None:
            deadline = min(deadline, create.decide_by)
        heapq.heappush(self._deadlines, (deadline, create.order_id, head.offset))

    def _drop_old_deadlines(self) -> None:
        """Drop the deadlines of commands that are decided: else each would stay until it has passed, an hour long."""
        self._deadlines = [
            (deadline, order_id, offset)
            for deadline, order_id, offset in self._deadlines
            if (head := self.head(order_id)) is not None and head.offset == offset
        ]
        heapq.heapify(self._deadlines)

    def _forget(self, head: WaitingCommand) -> bool:
        """Take the head of an order off its user's list; False if it was not on it."""
        user_id = head.command.user_id if isinstance(head.command, CreateOrder) else ""
        orders = self._orders_of.get(user_id, {})
        if head.command.order_id not in orders:
            return False
        del orders[head.command.order_id]
        if not orders:
            del self._orders_of[user_id]
        return True

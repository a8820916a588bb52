"""The service in memory: commands are decided by the real rules, and events go to all subscribers."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from aiokafka.structs import ConsumerRecord
from msgspec import structs

from order_service.domain.decision import AskUser, Repeat, UserCheck, answer
from order_service.domain.entry import Entry, after_event, after_rejection
from order_service.domain.identity import command_digest
from order_service.domain.messages import Command, CreateOrder, Event, Rejection
from order_service.errors import DecodeError
from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import topic_names
from order_service.sdk.commands import WAIT_S, Commands
from order_service.sdk.events import OnHole, OnPoison, OnUnknown, OrderEvents, stop_at_hole, stop_at_poison
from order_service.sdk.outcomes import Accepted, AwaitingUser, Outcome, Refused, Unreadable
from order_service.sdk.testing.samples import BEGIN, as_unknown, head_of, order_delivered
from order_service.sdk.versions import Versions
from order_service.wire import avro
from order_service.wire.commands import partition_of
from order_service.wire.headers import Headers
from order_service.wire.ids import with_ids

CheckUser = Callable[[str], UserCheck | None]
"""A replacement of the User Service, called with a user_id. None means no answer: the command waits for ever."""


def _is_active(_user_id: str) -> UserCheck:
    return UserCheck.ACTIVE


class InMemoryOrders:
    """An in-memory replacement of the service.

    `commands` replaces OrderCommands; `effects` and `projection` replace those of OrderEvents. A group keeps its
    offsets across several `effects`, for one subscriber at a time. The clock starts at 9:00 on 5 January 2026, and
    advances by a second with each command. Subscribers wait for new events until `end` is called.
    """

    def __init__(self, *, check_user: CheckUser = _is_active, partitions: int = 4) -> None:
        self.names = topic_names()
        self.records: list[ConsumerRecord] = []
        self.offsets: dict[str, dict[int, int]] = {}
        """The next offset of each partition, for each group that was opened."""
        self.is_ended = False
        self._check_user = check_user
        self._ends = [0] * partitions
        self._entries: dict[str, Entry] = {}
        self.rejections: list[Rejection] = []
        self._outcomes: dict[bytes, Accepted | Refused] = {}  # by the digest of the command
        self._lost: set[str] = set()
        self._now = BEGIN
        self._changed = asyncio.Event()

    @property
    def events(self) -> list[Event]:
        """All events so far. Raises DecodeError if `poison` or `add_unknown` was called."""
        return [avro.decode_event(record.value) for record in self.records]

    @property
    def ends(self) -> dict[int, int]:
        """The end offset of each partition."""
        return dict(enumerate(self._ends))

    def commands(self, actor: str = "service:shop") -> "InMemoryCommands":
        """Return a client that sends commands as `actor`, like OrderCommands."""
        return InMemoryCommands(self, actor)

    def effects(
        self,
        *,
        group: str,
        on_hole: OnHole = stop_at_hole,
        on_poison: OnPoison = stop_at_poison,
        on_unknown: OnUnknown = "deliver",
    ) -> OrderEvents:
        """Return a consumer like `OrderEvents.effects`: when opened, a new group starts at the end."""
        return OrderEvents(_GroupLog(self, group), Versions(), on_hole, on_poison, on_unknown)

    def projection(
        self,
        *,
        start: Mapping[int, int] | None = None,
        on_hole: OnHole = stop_at_hole,
        on_poison: OnPoison = stop_at_poison,
        on_unknown: OnUnknown = "deliver",
    ) -> OrderEvents:
        """Return a consumer like `OrderEvents.projection`: all events, or those from `start` on."""
        versions = Versions()
        return OrderEvents(_AssignedLog(self, start or {}, versions), versions, on_hole, on_poison, on_unknown)

    def add(self, event: Event) -> None:
        """Write any event: a sample, a repeat, or a version that leaves a hole."""
        self._write(event.order_id, avro.encode_event(event))

    def repeat(self, order_id: str) -> None:
        """Write the newest event of an order again."""
        newest = [record for record in self.records if record.key == order_id.encode()][-1]
        self._write(order_id, newest.value)

    def lose_next(self, order_id: str) -> None:
        """Omit the next event of an order, which leaves a hole before the event after it."""
        self._lost.add(order_id)

    def poison(self, order_id: str, value: bytes = b"\0poison") -> None:
        """Write a record that cannot be decoded."""
        self._write(order_id, value)

    def add_unknown(self, order_id: str, name: str = "OrderArchived") -> None:
        """Write the next event of an existing order, of a type that only a later version of the service knows."""
        entry = self._entries[order_id]
        event = order_delivered(order_id, entry.version + 1, previous_digest=entry.head, occurred_at=self._tick())
        value, headers = as_unknown(event, name)
        known = (event.command_id, event.command_digest)
        self._entries[order_id] = structs.replace(entry, head=avro.digest(value), accepted=(*entry.accepted, known))
        self._write(order_id, value, headers)

    def end(self) -> None:
        """End the iteration of all subscribers after the last event."""
        self.is_ended = True
        self._notify()

    async def changed(self) -> None:
        """Wait until a record was written or `end` was called."""
        await self._changed.wait()

    def decide(self, command: Command) -> Outcome:
        """Return the outcome of a command, decided by the rules of the service."""
        try:
            with_ids(command)
        except DecodeError as error:
            return Unreadable(error.reason, error.detail)
        entry = self._entries.get(command.order_id)
        user = self._check_user(command.user_id) if isinstance(command, CreateOrder) else None
        decision = answer(command, entry, self._tick(), user)
        match decision:
            case AskUser():
                return AwaitingUser()
            case Repeat():
                return structs.replace(self._outcomes[command_digest(command)], repeated=True)
            case Event():
                outcome: Accepted | Refused = self._accept(decision, entry)
            case Rejection():
                outcome = self._refuse(decision, entry)
        self._outcomes[command_digest(command)] = outcome
        return outcome

    def _accept(self, event: Event, entry: Entry | None) -> Accepted:
        self._entries[event.order_id] = after_event(entry, event, head_of(event))
        partition = self._partition(event.order_id)
        record = OutcomeRecord(event, partition, self._ends[partition], head_of(event), None)
        if event.order_id in self._lost:
            self._lost.remove(event.order_id)
        else:
            self.add(event)
        return Accepted(record)

    def _refuse(self, rejection: Rejection, entry: Entry | None) -> Refused:
        entry_after = after_rejection(entry, rejection)
        if entry_after is not None:
            self._entries[rejection.order_id] = entry_after
        digest = avro.digest(avro.encode_rejection(rejection))
        self.rejections.append(rejection)
        return Refused(
            OutcomeRecord(rejection, self._partition(rejection.order_id), len(self.rejections) - 1, digest, None)
        )

    def _write(self, order_id: str, value: bytes, headers: Headers | None = None) -> None:
        partition, key = self._partition(order_id), order_id.encode()
        offset = self._ends[partition]
        milliseconds = int(self._now.timestamp() * 1000)
        self.records.append(
            ConsumerRecord(
                self.names.events,
                partition,
                offset,
                milliseconds,
                0,
                key,
                value,
                None,
                len(key),
                len(value),
                headers or [],
            )
        )
        self._ends[partition] += 1
        self._notify()

    def _partition(self, order_id: str) -> int:
        return partition_of(order_id.encode(), len(self._ends))

    def _tick(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        if self.is_ended:
            self._changed.set()


class InMemoryCommands(Commands):
    """A client that sends commands to an InMemoryOrders, which decides them immediately."""

    def __init__(self, orders: InMemoryOrders, actor: str) -> None:
        super().__init__(actor)
        self._orders = orders

    async def send(self, command: Command, _wait_s: float = WAIT_S) -> Outcome:
        """Return the outcome of a command without waiting."""
        return self._orders.decide(command)


class _MemoryLog:
    """The records from the offsets in `_at` on."""

    def __init__(self, orders: InMemoryOrders) -> None:
        self.names = orders.names
        self._orders = orders
        self._at: dict[int, int] = {}
        self._read = 0

    async def next(self) -> ConsumerRecord:
        """Wait for the next record. Raises StopAsyncIteration after the last record once `end` was called."""
        while True:
            while self._read < len(self._orders.records):
                record = self._orders.records[self._read]
                self._read += 1
                if record.offset >= self._at.get(record.partition, 0):
                    return record
            if self._orders.is_ended:
                raise StopAsyncIteration
            await self._orders.changed()

    def is_replay(self, _record: ConsumerRecord) -> bool:
        """Return False: a group does not read history."""
        return False

    def mark_done(self, record: ConsumerRecord) -> None:
        """Do nothing: the caller stores the offsets."""

    async def close(self) -> None:
        """Do nothing: there is no connection to close."""


class _AssignedLog(_MemoryLog):
    def __init__(self, orders: InMemoryOrders, start: Mapping[int, int], versions: Versions) -> None:
        super().__init__(orders)
        self._at = dict(start)
        self._versions = versions
        self._ends: dict[int, int] = {}

    async def open(self) -> None:
        """Record the current end of the log."""
        self._ends = self._orders.ends
        self._versions.begin(partition for partition in self._ends if not self._at.get(partition, 0))

    def is_replay(self, record: ConsumerRecord) -> bool:
        """Return whether a record existed when this log was opened."""
        return bool(record.offset < self._ends[record.partition])


class _GroupLog(_MemoryLog):
    def __init__(self, orders: InMemoryOrders, group: str) -> None:
        super().__init__(orders)
        self._group = group

    async def open(self) -> None:
        """Start at the offsets of the group, or at the end for a new group."""
        self._at = dict(self._orders.offsets.setdefault(self._group, self._orders.ends))

    def mark_done(self, record: ConsumerRecord) -> None:
        """Store the next offset of the group."""
        self._orders.offsets[self._group][record.partition] = record.offset + 1

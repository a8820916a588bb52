"""The reader of outcomes: one consumer for all commands of a client that are awaited.

It reads the partitions of these commands only, from the ends that they had before the command was sent. So it cannot
miss an outcome, and the load in other partitions costs it nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.domain.messages import Command
from order_service.errors import HistoryError, KafkaAwayError, LeaderAwayError, OrderServiceError
from order_service.kafka.connection import Consumer, connection
from order_service.kafka.reader import Reader, kafka_answers
from order_service.kafka.topics import TopicNames, topic_names
from order_service.sdk.followed_partitions import FollowedPartitions
from order_service.sdk.log_index import IndexEntries, LogIndex
from order_service.sdk.outcomes import GRACE_S, Accepted, AwaitingUser, Outcome, Refused, Repeated, Undecided, Watch
from order_service.settings import Settings
from order_service.wire.changelog import POSITION_KEY
from order_service.wire.commands import partition_of

FETCH_MAX_WAIT_MS: Final = 50
"""How long Kafka may hold a fetch: so long a partition that is awaited meanwhile waits to be fetched."""


class AwaitedOutcome:
    """A command whose outcome is awaited. Records that arrive before its offset is known are kept until then."""

    def __init__(self, names: TopicNames, command: Command, partition: int) -> None:
        self.key = command.order_id.encode()
        self.partition = partition
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.watch: Watch | None = None
        self._earlier_outcome: Refused | Repeated = Repeated()
        self._names = names
        self._command = command
        self._early: list[ConsumerRecord] = []
        self._early_position: ConsumerRecord | None = None

    @property
    def is_missed(self) -> bool:
        """Return whether the command is decided, but its outcome was not observed."""
        return self.watch is not None and self.watch.is_decided and not self.outcome.done()

    def set_offset(self, offset: int) -> None:
        """Set the offset of the command, and process the records that arrived before."""
        self.watch = Watch(self._names, self._command, self.partition, offset)
        for record in (*self._early, *([self._early_position] if self._early_position else [])):
            self.on_record(record)
        self._early.clear()

    def on_record(self, record: ConsumerRecord) -> None:
        """Process a record of the order, or a position of the partition, of which only the newest counts."""
        if self.watch is not None:
            self._observe(self.watch, record)
        elif record.key == POSITION_KEY:
            self._early_position = record
        else:
            self._early.append(record)

    def _observe(self, watch: Watch, record: ConsumerRecord) -> None:
        try:
            outcome = watch.observe(record)
        except HistoryError as error:
            self.fail(error)
        else:
            if outcome is not None:
                self.resolve(outcome)

    def on_history_record(self, record: ConsumerRecord) -> None:
        """Process a record of the order's history; of several rejections of a command, the last one counts."""
        try:
            outcome = None if self.watch is None else self.watch.outcome_in(record)
        except HistoryError as error:
            self.fail(error)
        else:
            if isinstance(outcome, Accepted):
                self.resolve(outcome)
            self._earlier_outcome = outcome if isinstance(outcome, Refused) else self._earlier_outcome

    @property
    def has_earlier_outcome(self) -> bool:
        """Return whether the history has a rejection of the command."""
        return isinstance(self._earlier_outcome, Refused)

    def on_history_end(self) -> None:
        """Resolve with the last rejection in the history, or with Repeated without one."""
        self.resolve(self._earlier_outcome)

    def resolve(self, outcome: Outcome) -> None:
        """Set the outcome, unless it is already set."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: OrderServiceError) -> None:
        """Set an error as the result. Whether the command arrived may then be unknown too."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # the caller may have gone: avoids a warning of asyncio

    async def wait(self, wait_s: float) -> Outcome:
        """Return the outcome, or AwaitingUser or Undecided after `wait_s` seconds without one."""
        try:
            async with asyncio.timeout(wait_s):
                return await self.outcome
        except TimeoutError:
            return AwaitingUser() if self.watch is not None and self.watch.waits else Undecided()


class OutcomeReader:
    """A consumer of the partitions in which commands are awaited. Outcomes of repeats are searched in the history."""

    def __init__(
        self,
        settings: Settings,
        within_s: float,
        index: LogIndex | None = None,
        *,
        new_reader: Callable[..., Reader] = Reader,
    ) -> None:
        self._servers: str = connection(settings)["bootstrap_servers"]
        self._within_s = within_s
        self._history = HistorySearch(settings, index)
        self._names = topic_names(settings.topic_prefix)
        self._new_lookup_reader = partial(new_reader, settings)
        self._new_reader = partial(new_reader, settings, fetch_max_wait_ms=FETCH_MAX_WAIT_MS)
        self._reader: Reader
        self._followed: FollowedPartitions
        self._open_readers = AsyncExitStack()
        self._partition_count = 0
        self._awaited: dict[bytes, list[AwaitedOutcome]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and look up the partitions of the commands. Raises KafkaAwayError, TopicsError."""
        names = self._names
        async with AsyncExitStack() as opened:
            lookups = await opened.enter_async_context(self._new_lookup_reader())
            others = (names.events, names.rejections, names.dead_letters, names.table, names.waiting)
            partitions = await lookups.partitions(names.commands, *others)  # raises if a topic is missing
            self._partition_count = sum(topic == names.commands for topic, _ in partitions)
            self._reader = await opened.enter_async_context(self._new_reader())
            self._followed = FollowedPartitions(names, self._reader, lookups)
            self._open_readers = opened.pop_all()

    async def close(self) -> None:
        """Resolve all awaited commands as Undecided, and stop reading."""
        for awaited in self._all():
            awaited.resolve(Undecided())
        for task in (self._task, self._history.task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._followed.close()
        await self._open_readers.aclose()

    @asynccontextmanager
    async def awaiting(self, command: Command) -> AsyncIterator[AwaitedOutcome]:
        """Follow the records of this command from now on. The block sends it and calls `set_offset`.

        Raises LeaderAwayError or KafkaAwayError if an outcome of the command could be missed.
        """
        key = command.order_id.encode()
        awaited = AwaitedOutcome(self._names, command, partition_of(key, self._partition_count))
        with kafka_answers(self._servers):
            async with asyncio.timeout(self._within_s):
                await self._followed.follow(awaited.partition)
        # With its outcome, before the next fetch begins: Kafka would hold that one, and the next partition behind it.
        awaited.outcome.add_done_callback(lambda _: self._followed.release(awaited.partition))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())
        self._awaited[key].append(awaited)
        try:
            yield awaited
        finally:
            awaited.outcome.cancel()
            self._awaited[key].remove(awaited)
            if not self._awaited[key]:
                del self._awaited[key]

    def set_offset(self, awaited: AwaitedOutcome, offset: int) -> None:
        """Set the offset of an awaited command."""
        awaited.set_offset(offset)
        self._search_if_missed(awaited)

    def _search_if_missed(self, awaited: AwaitedOutcome) -> None:
        """Search the history, after GRACE_S, for the outcome of a command that was decided without a new record."""
        if awaited.is_missed:
            asyncio.get_running_loop().call_later(GRACE_S, self._history.add, awaited)

    async def _follow(self) -> None:
        """Read while commands are awaited. An error fails all of them; the next ones are read from new ends."""
        try:
            while True:
                await self._followed.until_read()
                try:
                    self._dispatch(await self._reader.poll())
                except OrderServiceError as error:
                    self._fail(error)
        finally:  # it was cancelled, or has failed
            self._fail(KafkaAwayError("the reader of outcomes was stopped"))

    def _fail(self, error: OrderServiceError) -> None:
        """Raise an error in all callers that wait for an outcome."""
        self._followed.forget()
        for awaited in self._all():
            awaited.fail(error)

    def _dispatch(self, records: Sequence[ConsumerRecord]) -> None:
        positions: dict[int, ConsumerRecord] = {}
        for record in records:
            if record.key == POSITION_KEY:
                positions[record.partition] = record
            elif record.topic != self._names.table:
                self._notify(self._of_order(record), record)
        if positions:
            for awaited in list(self._all()):
                if awaited.partition in positions:
                    self._notify([awaited], positions[awaited.partition])

    def _notify(self, outcomes: Iterable[AwaitedOutcome], record: ConsumerRecord) -> None:
        for awaited in outcomes:
            was_missed = awaited.is_missed
            awaited.on_record(record)
            if not was_missed:
                self._search_if_missed(awaited)

    def _of_order(self, record: ConsumerRecord) -> Sequence[AwaitedOutcome]:
        """Return the awaited outcomes for the order of a record: its key, up to a NUL, is the order_id."""
        return self._awaited.get((record.key or b"").partition(b"\0")[0], ())

    def _all(self) -> Iterator[AwaitedOutcome]:
        for outcomes in list(self._awaited.values()):
            yield from outcomes


class HistorySearch:
    """A search of the history for the outcomes of earlier copies; one scan serves all commands added meanwhile."""

    def __init__(self, settings: Settings, index: LogIndex | None = None) -> None:
        self.task: asyncio.Task[None] | None = None
        self._settings = settings
        self._index = index
        self._queue: list[AwaitedOutcome] = []

    def add(self, awaited: AwaitedOutcome) -> None:
        """Add a command to the search, unless its outcome has arrived."""
        if not awaited.is_missed:
            return
        self._queue.append(awaited)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._queue:
            searched, self._queue = [awaited for awaited in self._queue if awaited.is_missed], []
            try:
                await self._scan(searched)
            except OrderServiceError as error:
                for awaited in searched:
                    awaited.fail(error)

    async def _scan(self, searched: Sequence[AwaitedOutcome]) -> None:
        """Read the partitions of these commands, until each has an outcome or is no longer awaited.

        With an index, read only where the records of their orders are. What it does not find, the log may have.
        The index comes before the ends of the log, because it grows with the log.
        The scan ends at the log end, not at the last stable offset. A transaction whose position was observed is
        committed, but its marker may be late in other partitions; its records are before that end.
        """
        async with Reader(self._settings) as reader:
            events, rejections = reader.names.events, reader.names.rejections
            numbers = {awaited.partition for awaited in searched}
            partitions = [TopicPartition(topic, number) for topic in (events, rejections) for number in numbers]
            leaderless = await reader.leaderless(partitions)
            for awaited in searched:
                if missing := [partition for partition in leaderless if partition.partition == awaited.partition]:
                    awaited.fail(LeaderAwayError(missing))
            left = [awaited for awaited in searched if awaited.is_missed]
            numbers = {awaited.partition for awaited in left}
            partitions = [partition for partition in partitions if partition.partition in numbers]
            entries = await self._find(left)
            ends = await _log_ends(self._settings, partitions)
            if entries is not None and (ranges := entries.ranges(ends)) is not None:
                await _search(reader.within(ranges), left)
                left = [awaited for awaited in left if awaited.is_missed and not awaited.has_earlier_outcome]
            if left:
                await _search(reader.until(_of_partitions(ends, left)), left)
        for awaited in searched:
            awaited.on_history_end()

    async def _find(self, searched: Sequence[AwaitedOutcome]) -> IndexEntries | None:
        """Return what the index has of the orders of these commands; None without an index or an answer."""
        if self._index is None or not searched:
            return None
        return await self._index.find({awaited.key.decode() for awaited in searched})


def _of_partitions(ends: dict[TopicPartition, int], awaited: Sequence[AwaitedOutcome]) -> dict[TopicPartition, int]:
    """Return the ends of the partitions of these commands."""
    numbers = {each.partition for each in awaited}
    return {partition: end for partition, end in ends.items() if partition.partition in numbers}


async def _search(records: AsyncIterator[ConsumerRecord], searched: Sequence[AwaitedOutcome]) -> None:
    """Process the records of these commands' orders, until each command has an outcome or is no longer awaited."""
    by_key: dict[bytes, list[AwaitedOutcome]] = defaultdict(list)
    for awaited in searched:
        by_key[awaited.key].append(awaited)
    left = list(searched)
    async for record in records:
        for awaited in by_key.get(record.key, ()):
            awaited.on_history_record(record)
        while left and not left[-1].is_missed:
            left.pop()
        if not left:
            return


async def _log_ends(settings: Settings, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Return the log end offsets, including records that are not committed yet."""
    arguments = connection(settings)
    consumer = Consumer(**arguments, request_timeout_ms=10_000)
    try:
        with kafka_answers(arguments["bootstrap_servers"]):
            await consumer.start()
            return dict(await consumer.end_offsets(partitions))
    finally:
        await consumer.stop()
